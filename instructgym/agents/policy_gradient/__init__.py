"""Policy gradients of our own: the learner, its networks and what collects its rollouts. Importing it loads torch."""

from __future__ import annotations

from instructgym.agents.policy_gradient.config import PPOConfig
from instructgym.agents.policy_gradient.ppo import PPO

__all__ = ["PPO", "PPOConfig"]
