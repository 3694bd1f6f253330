"""Policies by name: what `evolve.policy` and `evaluate.policies` may hold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from instructgym.agents.base import Agent
from instructgym.envs.operations import ActionSet
from instructgym.errors import ConfigError
from instructgym.rewards.base import Reward
from instructgym.train.reward_memory import load_memory
from instructgym.train.run_folder import canonical_json, digest_files
from instructgym.train.stage import StageContext

__all__ = ["AGENT", "REWARD_MEMORY", "check_policy_name", "policy_digest", "policy_named", "policy_names", "reward_of"]

AGENT = "agent"
"""The folder of the trained instructor in a run's folder."""
REWARD_MEMORY = "agent/reward"
"""The folder of the memory that the reward had when training ended, if it has one."""
FIXED = "fixed:"


def policy_names(names: Sequence[str], action_set: ActionSet) -> list[str]:
    """`names` with ``fixed`` replaced by one name an operation; `stop` alone would do nothing and is left out."""
    fixed = [f"{FIXED}{operation.name}" for operation in action_set.operations if not operation.stops]
    spread = [one for name in names for one in (fixed if name == "fixed" else [name])]
    return list(dict.fromkeys(spread))


def policy_named(name: str, context: StageContext) -> Agent:
    """The policy: ``trained``, ``random``, ``round_robin``, ``fixed:OPERATION``, or the folder of a saved agent.

    Raises `ConfigError` for an unknown name, `ActionSetError` for an unknown operation and for an agent that was saved
    for another action set.
    """
    from instructgym.agents.baselines import FixedAgent, RandomAgent, RoundRobinAgent

    action_set = context.runtime.action_set
    check_policy_name(name, action_set)
    if name == "random":
        return RandomAgent()
    if name == "round_robin":
        return RoundRobinAgent()
    if name.startswith(FIXED):
        return FixedAgent(action_set.index(name.removeprefix(FIXED)))
    from instructgym.agents import load_agent  # loads torch

    folder = context.folder.path / AGENT if name == "trained" else Path(name)
    return load_agent(folder, expected_action_set_hash=action_set.hash, expected_action_set_names=action_set.names)


def check_policy_name(name: str, action_set: ActionSet) -> None:
    """Raise `ConfigError` or `ActionSetError` unless `name` can be a policy's."""
    if name.startswith(FIXED):
        action_set.index(name.removeprefix(FIXED))
    elif name not in ("trained", "random", "round_robin") and not Path(name).is_dir():
        raise ConfigError(
            f"unknown policy '{name}'; expected trained, random, round_robin, fixed:OPERATION, or the folder of a "
            "saved agent."
        )


def policy_digest(name: str) -> str:
    """The hash of a saved agent outside the run; empty for what the config says completely."""
    if name in ("trained", "random", "round_robin") or name.startswith(FIXED):
        return ""
    return hashlib.sha256(canonical_json(digest_files(Path(name), ["."])).encode()).hexdigest()[:16]


def reward_of(context: StageContext, stage: str) -> Reward:
    """The run's reward, with the memory that training left where there is one."""
    reward = context.runtime.reward_for(stage)
    path = context.folder.path / REWARD_MEMORY
    if "train" in context.manifests and path.exists():
        reward.load_state_dict(load_memory(path))
    return reward
