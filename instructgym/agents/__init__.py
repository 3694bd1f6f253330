"""Who decides: agents, bandits, our policy gradients, Stable-Baselines3 by adapter. Importing it loads no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from instructgym.agents.base import Agent, Algorithm, Decision, Progress, row_rng
from instructgym.agents.baselines import FixedAgent, RandomAgent, RoundRobinAgent, SequenceAgent
from instructgym.agents.evaluation import evaluate
from instructgym.agents.persistence import SavedAgent, load_agent, read_saved_agent, save_agent
from instructgym.agents.registry import AGENTS, AgentInfo, Task, agent_names, make_agent

if TYPE_CHECKING:
    from instructgym.agents.bandits import UCB1, EpsilonGreedy, LinearThompson, LinUCB, Thompson
    from instructgym.agents.policy_gradient import (
        PPO,
        TRPO,
        PPOConfig,
        PPOLagrangian,
        PPOLagrangianConfig,
        TRPOConfig,
    )
    from instructgym.agents.sb3 import SB3Agent, SB3VecEnv

__all__ = [
    "AGENTS",
    "PPO",
    "TRPO",
    "UCB1",
    "Agent",
    "AgentInfo",
    "Algorithm",
    "Decision",
    "EpsilonGreedy",
    "FixedAgent",
    "LinUCB",
    "LinearThompson",
    "PPOConfig",
    "PPOLagrangian",
    "PPOLagrangianConfig",
    "Progress",
    "RandomAgent",
    "RoundRobinAgent",
    "SB3Agent",
    "SB3VecEnv",
    "SavedAgent",
    "SequenceAgent",
    "TRPOConfig",
    "Task",
    "Thompson",
    "agent_names",
    "evaluate",
    "load_agent",
    "make_agent",
    "read_saved_agent",
    "row_rng",
    "save_agent",
]

_LAZY = {
    **dict.fromkeys(("EpsilonGreedy", "LinUCB", "LinearThompson", "Thompson", "UCB1"), "bandits"),
    **dict.fromkeys(
        ("PPO", "PPOConfig", "PPOLagrangian", "PPOLagrangianConfig", "TRPO", "TRPOConfig"), "policy_gradient"
    ),
    **dict.fromkeys(("SB3Agent", "SB3VecEnv"), "sb3"),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"instructgym.agents.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'instructgym.agents' has no attribute '{name}'")
