"""Policies by name: what `evolve.policy`, `evaluate.policies` and `bench policies` may hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructgym.agents.base import Agent, Algorithm, OfflineAlgorithm
from instructgym.agents.registry import Task
from instructgym.envs.operations import ActionSet
from instructgym.errors import ConfigError
from instructgym.plugins import is_file_reference, load_from_file
from instructgym.rewards.base import Reward
from instructgym.train.planning import PLANNERS, Planner, planner_named
from instructgym.train.reward_memory import load_memory
from instructgym.train.run_folder import canonical_json, digest_files
from instructgym.train.stage import StageContext

if TYPE_CHECKING:
    from instructgym.train.runtime import Runtime

__all__ = [
    "AGENT",
    "FIXED",
    "PROMPTED",
    "REWARD_MEMORY",
    "TRAINED",
    "build_agent",
    "check_policy_name",
    "how_chosen",
    "is_registered",
    "policy_digest",
    "policy_learns",
    "policy_named",
    "policy_names",
    "reward_of",
]

AGENT = "agent"
"""The folder of the trained instructor in a run's folder."""
REWARD_MEMORY = "agent/reward"
"""The folder of the memory that the reward had when training ended, if it has one."""
TRAINED = "trained"
PROMPTED = "llm:"
"""What a policy's name begins with that asks the chat model named after it."""
FIXED = "fixed:"


def policy_names(names: Sequence[str], action_set: ActionSet) -> list[str]:
    """`names` with ``fixed`` replaced by one name an operation; `stop` alone would do nothing and is left out."""
    fixed = [f"{FIXED}{operation.name}" for operation in action_set.operations if not operation.stops]
    spread = [one for name in names for one in (fixed if name == "fixed" else [name])]
    return list(dict.fromkeys(spread))


def policy_named(name: str, context: StageContext, stage: str = "") -> Agent | Planner:
    """The policy, ready to act; what it asks is accounted to `stage`.

    ``trained`` (this run's), the folder of a saved agent, ``greedy``, ``search``, or any agent of the registry that
    needs no training; its arguments stand in the config's `agents` by that name.

    Raises `ConfigError` for an unknown name and for an agent that has to learn first, `ActionSetError` for an unknown
    operation and for an agent that was saved for another action set.
    """
    runtime = context.runtime
    action_set = runtime.action_set
    check_policy_name(name, action_set, context.config.env.horizon)
    planner = planner_named(name, action_set, context.config.env.horizon)
    if planner is not None:
        return planner
    if is_registered(name):
        kwargs = (context.config.agents or {}).get(name, {})
        agent = build_agent(name, runtime, kwargs, context.config.run.seed, stage)
        if isinstance(agent, (Algorithm, OfflineAlgorithm)):
            raise ConfigError(
                f"policy '{name}' learns, and has not yet; expected one that needs no training, or 'trained'. Train it "
                f"with agent.name={name}, or compare it by `instructgym bench policies`."
            )
        return agent
    from instructgym.agents import load_agent, read_saved_agent

    folder = context.folder.path / AGENT if name == TRAINED else Path(name)
    saved = read_saved_agent(folder)
    if saved.name.startswith(PROMPTED):  # it has learned nothing, and needs somebody to ask
        return build_agent(saved.name, runtime, saved.kwargs, saved.seed, stage)
    return load_agent(
        folder,
        expected_action_set_hash=action_set.hash,
        expected_action_set_names=action_set.names,
        task=_task(saved.name, runtime, saved.kwargs),
    )


def build_agent(name: str, runtime: Runtime, kwargs: Mapping[str, Any], seed: int, stage: str = "") -> Agent:
    """An agent of the registry for this run's action set and the observations that it reads. Raises `ConfigError`.

    What it asks of an LLM is accounted to `stage`.
    """
    from instructgym.agents import make_agent

    task = _task(name, runtime, kwargs)
    return make_agent(
        name,
        task.obs_space,
        task.action_space,
        kwargs=kwargs,
        seed=seed,
        action_names=task.action_names,
        action_features=task.action_features,
        action_descriptions=[operation.description for operation in runtime.action_set.operations],
        llm=runtime.instructor(stage),
    )


def _task(name: str, runtime: Runtime, kwargs: Mapping[str, Any]) -> Task:
    from gymnasium import spaces

    return Task(
        runtime.observer_before(name, kwargs).space,
        spaces.Discrete(len(runtime.action_set)),
        runtime.action_set.names,
        lambda: runtime.action_features,
    )


def how_chosen(policy: Agent | Planner) -> dict[str, Any]:
    """What a result says of how a policy chose, under ``choosing``; nothing where there is nothing to say."""
    counts = policy.counts if isinstance(policy, Agent) else {}
    return {"choosing": dict(counts)} if counts else {}


def policy_learns(name: str, runtime: Runtime, kwargs: Mapping[str, Any]) -> bool:
    """Whether a policy has to be trained. Raises `ConfigError` or `ActionSetError` for one that cannot be made."""
    check_policy_name(name, runtime.action_set, runtime.config.env.horizon)
    agent = build_agent(name, runtime, kwargs, 0) if is_registered(name) else None
    if isinstance(agent, OfflineAlgorithm):
        raise ConfigError(
            f"policy '{name}' learns from logs; train it by `instructgym train --from-ledger DIR`, and name the folder "
            "that it is saved in."
        )
    return isinstance(agent, Algorithm)


def is_registered(name: str) -> bool:
    """True for what `make_agent` makes: a name of the registry (what follows its colon aside), or a file's."""
    from instructgym.agents.registry import AGENTS, agent_names

    head = name.partition(":")[0]
    return is_file_reference(name) or name in agent_names() or (head in AGENTS and bool(AGENTS[head].takes))


def check_policy_name(name: str, action_set: ActionSet, horizon: int) -> None:
    """Raise `ConfigError` or `ActionSetError` unless `name` can be a policy's."""
    if name.startswith(FIXED):
        action_set.index(name.removeprefix(FIXED))
    elif is_file_reference(name):
        load_from_file(name)
    elif name == TRAINED or planner_named(name, action_set, horizon) is not None or is_registered(name):
        return
    elif not Path(name).is_dir():
        raise ConfigError(
            f"unknown policy '{name}'; expected trained, random, round_robin, fixed:OPERATION, {', '.join(PLANNERS)}, "
            "another agent that needs no training (`instructgym list agents`), FILE.py:NAME, or the folder of a saved "
            "agent."
        )


def policy_digest(name: str) -> str:
    """The hash of what a policy is read from: a saved agent, a user's file. Empty for what the config says."""
    if is_file_reference(name):
        path = Path(name.rpartition(":")[0]).expanduser()
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
    if name == TRAINED or is_registered(name) or not Path(name).is_dir():
        return ""
    return hashlib.sha256(canonical_json(digest_files(Path(name), ["."])).encode()).hexdigest()[:16]


def reward_of(context: StageContext, stage: str) -> Reward:
    """The run's reward, with the memory that training left where there is one (and `evaluate` is to have it)."""
    reward = context.runtime.reward_for(stage)
    path = context.folder.path / REWARD_MEMORY
    trained = stage != "evaluate" or context.config.evaluate.reward_memory == "trained"
    if trained and "train" in context.manifests and path.exists():
        reward.load_state_dict(load_memory(path))
    return reward
