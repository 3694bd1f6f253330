"""Bandits: agents that learn which action pays, and need few steps for it."""

from __future__ import annotations

from instructgym.agents.bandits.bandit import Bandit
from instructgym.agents.bandits.context_free import UCB1, EpsilonGreedy, Thompson
from instructgym.agents.bandits.linear import LinearThompson, LinUCB

__all__ = ["UCB1", "Bandit", "EpsilonGreedy", "LinUCB", "LinearThompson", "Thompson"]
