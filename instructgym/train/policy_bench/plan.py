"""What is compared: policies, tasks, and the cells that they make together, each with the config of its run."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructgym import __version__
from instructgym.errors import ConfigError
from instructgym.plugins import is_file_reference, nearest
from instructgym.rewards.registry import label_of
from instructgym.train.config import Config, build_config
from instructgym.train.config_text import to_toml
from instructgym.train.policies import TRAINED, is_registered, policy_digest, policy_learns, policy_names
from instructgym.train.runtime import Runtime

__all__ = ["AS_CONFIGURED", "BEST_FIXED", "RANDOM", "Cell", "Plan", "Policy", "Task", "make_plan"]

logger = logging.getLogger(__name__)

RANDOM = "random"
"""Always among the cells: it is the 0 of the scale."""
BEST_FIXED = "best_fixed"
"""Stands for the operation that did best of all when it was always chosen, found afterwards."""
AS_CONFIGURED = "config"
"""Stands for the reward, or the action set, that the config describes."""
AGENT_KEY = "agent"
STEPS_A_CALL = 4
"""A cell ends after so many steps a call at the latest: a policy that always stops asks nobody."""


@dataclass(frozen=True)
class Task:
    """A reward on an action set: what scores are pooled over. `label` is what people call the reward."""

    reward: str
    action_set: str
    label: str = ""

    @property
    def name(self) -> str:
        return f"{self.label or label_of(self.reward)} on {label_of(self.action_set)}"


@dataclass(frozen=True)
class Policy:
    """A policy under its name in the comparison. `agent` is what the registry, or the planners, call it.

    `given` is what whoever asked for it wrote, files by their absolute path.
    """

    name: str
    agent: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    learns: bool = False
    given: str = ""


@dataclass(frozen=True)
class Cell:
    """One policy on one task with one seed: a run of its own. `key` changes with all that its result hangs on."""

    policy: Policy
    task: Task
    seed: int
    config: Config
    folder: str

    @property
    def stages(self) -> tuple[str, ...]:
        return ("train", "evaluate") if self.policy.learns else ("evaluate",)

    @property
    def evaluated(self) -> str:
        """The policy's name in the run's evaluation."""
        return TRAINED if self.policy.learns else self.policy.agent

    @property
    def key(self) -> str:
        text = "\n".join((__version__, to_toml(self.config), *self.stages, policy_digest(self.policy.agent)))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class Plan:
    """`policies` are those of the leaderboard, in the order given; `cells` include what they are measured by."""

    policies: tuple[Policy, ...]
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    best_fixed: bool = False


def make_plan(
    config: Config,
    policies: Sequence[str],
    rewards: Sequence[str],
    action_sets: Sequence[str],
    *,
    budget_calls: int,
    runs: int,
) -> Plan:
    """All cells of a comparison; nothing is asked. Seeds count up from the config's `run.seed`.

    Raises `ConfigError` or `ActionSetError` for names that nothing answers to, for arguments that a policy does not
    take, and where two are called alike.
    """
    sets = list(dict.fromkeys(config.env.action_set if name == AS_CONFIGURED else name for name in _files(action_sets)))
    own = "+".join(map(label_of, config.reward.terms))
    tasks = tuple(
        Task(reward, action_set, own if reward == AS_CONFIGURED else "")
        for reward in _files(rewards)
        for action_set in sets
    )
    _refuse_doubles("task", [task.name for task in tasks])
    if not policies or not tasks:
        raise ConfigError("a comparison needs at least one policy, one reward and one action set.")
    if TRAINED in policies:
        raise ConfigError(
            "policy 'trained' is a run's own; name the agent to be trained, or the folder of a saved one."
        )
    seeds = tuple(config.run.seed + number for number in range(runs))
    runtimes = {task: Runtime(_task_config(config, task)) for task in tasks}
    shown: dict[str, Policy] = {}
    hidden: dict[str, Policy] = {}
    where: dict[str, list[Task]] = {}
    for task, runtime in runtimes.items():
        runtime.check_names()
        wanted = [name for name in _files(policies) if name != BEST_FIXED]
        measures = [RANDOM, *(["fixed"] if BEST_FIXED in policies else [])]
        for table, names in ((shown, wanted), (hidden, measures)):
            for name in policy_names(names, runtime.action_set):
                policy = shown.get(_label(name)) or _policy(name, config, runtime)
                table.setdefault(policy.name, policy)
                if task not in where.setdefault(policy.name, []):
                    where[policy.name].append(task)
    _say_strangers(config, shown)
    hidden = {name: policy for name, policy in hidden.items() if name not in shown}
    cells = [
        _cell(policy, task, seed, config, budget_calls)
        for seed in seeds
        for task in tasks
        for policy in (*hidden.values(), *shown.values())
        if task in where[policy.name]
    ]
    _refuse_doubles("cell folder", [cell.folder for cell in cells])
    return Plan(tuple(shown.values()), tasks, seeds, tuple(cells), BEST_FIXED in policies)


def _files(names: Sequence[str]) -> list[str]:
    """Each name once; files by their absolute path, so that a config means the same from anywhere."""
    found = []
    for name in names:
        path, _, attribute = name.rpartition(":")
        if is_file_reference(name):
            found.append(f"{Path(path).expanduser().absolute()}:{attribute}")
        else:
            found.append(str(Path(name).absolute()) if _is_saved(name) else name)
    return list(dict.fromkeys(found))


def _is_saved(name: str) -> bool:
    return not is_registered(name) and (Path(name) / "agent.json").is_file()


def _label(name: str) -> str:
    """What a policy is called: NAME of a file, the last two folders of a saved agent, else its name."""
    if is_file_reference(name) or not Path(name).is_absolute():
        return label_of(name)
    return "/".join(Path(name).parts[-2:])


def _policy(name: str, config: Config, runtime: Runtime) -> Policy:
    """With its arguments: the config's for the config's agent, and over them those of ``[agents.NAME]``."""
    tables = config.agents or {}
    given = dict(tables.get(name) or tables.get(_label(name)) or {})
    agent = str(given.pop(AGENT_KEY, name))
    own = config.agent.kwargs if agent == config.agent.name else {}
    kwargs = {**own, **given}
    try:
        learns = policy_learns(agent, runtime, kwargs)
    except ConfigError as error:
        raise ConfigError(f"policy '{_label(name)}': {error}") from error
    if kwargs and not is_registered(agent):
        raise ConfigError(f"policy '{_label(name)}' takes no arguments, but got {sorted(kwargs)}.")
    return Policy(_label(name), agent, kwargs, learns, name)


def _say_strangers(config: Config, shown: Mapping[str, Policy]) -> None:
    """A warning and no error: a config may hold the arguments of more policies than are compared this time."""
    names = {*shown, *(policy.agent for policy in shown.values())}
    for name in config.agents or {}:
        if name not in names:
            logger.warning("agents.%s gives arguments to no policy of this comparison; %s", name, nearest(name, shown))


def _refuse_doubles(what: str, names: Sequence[str]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f"more than one {what} is called {doubled}; names must be unique.")


def _task_config(config: Config, task: Task) -> Config:
    data = json.loads(config.model_dump_json())
    if task.reward != AS_CONFIGURED:
        data["reward"] |= {"terms": {task.reward: 1.0}, "kwargs": {}}
    data["env"]["action_set"] = task.action_set
    return build_config(data, f"task {task.name}")


def _cell(policy: Policy, task: Task, seed: int, config: Config, budget_calls: int) -> Cell:
    data = json.loads(_task_config(config, task).model_dump_json())
    data["run"] |= {"name": f"{policy.name}, {task.name}, seed {seed}", "seed": seed}
    data["agents"] = None
    data["evaluate"] |= {"policies": [policy.agent], "reward_memory": "empty", "lineage": True}
    if policy.learns:
        data["agent"] = {"name": policy.agent, "kwargs": dict(policy.kwargs)}
        data["train"] |= {"steps": STEPS_A_CALL * budget_calls, "calls": budget_calls}
        data["evaluate"]["policies"] = [TRAINED]
    elif policy.kwargs:
        data["agents"] = {policy.agent: dict(policy.kwargs)}
    folder = f"cells/{_slug(task.reward)}--{_slug(task.action_set)}/{_slug(policy.name)}/seed-{seed}"
    return Cell(policy, task, seed, build_config(data, policy.name), folder)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.,+-]+", "-", label_of(name))[:80]
