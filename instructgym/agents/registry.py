"""Agents by name: the package's own, installed ones, and those in a user's file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.agents.base import Agent
from instructgym.agents.baselines import FixedAgent, RandomAgent, RoundRobinAgent, SequenceAgent
from instructgym.agents.checking import check_kwargs
from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.plugins import is_file_reference, load_from_file, nearest

__all__ = ["AGENTS", "AgentInfo", "Origin", "Task", "agent_names", "agent_type", "make_agent", "options_of"]

_OFFERED = ("obs_space", "action_space", "seed", "action_names", "action_features", "action_descriptions", "llm")
ENTRY_POINT_GROUP = "instructgym.agents"


@dataclass(frozen=True)
class AgentInfo:
    """What a list shows of an agent. `learns` agents are `Algorithm`s; `takes` is what follows the name's colon.

    `made_by` is ``module:Class`` of an agent that is made as a user's own class is: of what `make_agent` offers it gets
    what its constructor names.
    """

    name: str
    description: str
    learns: bool = False
    takes: str = ""
    made_by: str = ""


ActionFeatures = NDArray[np.float32] | Callable[[], NDArray[np.float32]]
"""What is known of each operation, float32 (A, E): an embedding of its description. Or what makes it, if it is asked
for: embedding may load a model."""


@dataclass(frozen=True)
class Task:
    """What an agent is made for: the spaces of a single env, and its operations, in the order of the actions."""

    obs_space: Any
    action_space: Any
    action_names: Sequence[str] = ()
    action_features: ActionFeatures | None = None


@dataclass(frozen=True)
class Origin:
    """How an agent was made, so that it can be made again."""

    name: str
    kwargs: Mapping[str, Any]
    seed: int
    obs_space: Any
    action_space: Any


AGENTS: dict[str, AgentInfo] = {
    info.name: info
    for info in (
        AgentInfo("random", "uniform over the legal operations"),
        AgentInfo("round_robin", "one operation after the other, by the step of the episode"),
        AgentInfo("fixed", "always the same operation", takes="OPERATION"),
        AgentInfo("sequence", "a fixed sequence of operations, by the step of the episode", takes="OPERATION,..."),
        AgentInfo(
            "epsilon_greedy",
            "the operation that paid best so far, and now and then any",
            learns=True,
            made_by="instructgym.agents.bandits:EpsilonGreedy",
        ),
        AgentInfo(
            "ucb1",
            "the operation that may pay best, by upper confidence bounds",
            learns=True,
            made_by="instructgym.agents.bandits:UCB1",
        ),
        AgentInfo(
            "thompson",
            "operations by the odds that they pay best (Thompson sampling)",
            learns=True,
            made_by="instructgym.agents.bandits:Thompson",
        ),
        AgentInfo(
            "linucb",
            "a linear bandit on the observation, by upper confidence bounds: learns in a thousand steps",
            learns=True,
            made_by="instructgym.agents.bandits:LinUCB",
        ),
        AgentInfo(
            "linear_thompson",
            "a linear bandit on the observation, by Thompson sampling",
            learns=True,
            made_by="instructgym.agents.bandits:LinearThompson",
        ),
        AgentInfo(
            "ppo",
            "our proximal policy optimisation: masked, exact checkpoints",
            learns=True,
            made_by="instructgym.agents.policy_gradient.ppo:PPO",
        ),
        AgentInfo(
            "lm",
            "a language model that reads the instruction and its history, learned by our PPO",
            learns=True,
            made_by="instructgym.agents.language_model.agent:LMInstructor",
        ),
        AgentInfo(
            "llm",
            "a chat model that chooses by answering with an operation's name",
            takes="MODEL",
            made_by="instructgym.agents.language_model.prompted:PromptedInstructor",
        ),
        AgentInfo(
            "ppo_lagrangian",
            "our PPO under a limit on the mean cost of an episode",
            learns=True,
            made_by="instructgym.agents.policy_gradient.lagrangian:PPOLagrangian",
        ),
        AgentInfo(
            "trpo",
            "our trust region policy optimisation: masked, exact checkpoints",
            learns=True,
            made_by="instructgym.agents.policy_gradient.trpo:TRPO",
        ),
        AgentInfo(
            "fitted_q",
            "fitted Q iteration on logged chains: greedy, or with a temperature",
            learns=True,
            made_by="instructgym.agents.offline:FittedQ",
        ),
        AgentInfo(
            "behaviour_cloning",
            "imitates logged choices: a masked softmax classifier on the observation",
            learns=True,
            made_by="instructgym.agents.offline:BehaviourCloning",
        ),
        AgentInfo("sb3:ppo", "PPO of Stable-Baselines3", learns=True),
        AgentInfo("sb3:a2c", "A2C of Stable-Baselines3", learns=True),
        AgentInfo("sb3:dqn", "DQN of Stable-Baselines3", learns=True),
        AgentInfo("sb3:qrdqn", "quantile-regression DQN, of sb3-contrib", learns=True),
        AgentInfo("sb3:maskable_ppo", "PPO with action masks, of sb3-contrib", learns=True),
        AgentInfo("sb3:recurrent_ppo", "PPO with an LSTM, of sb3-contrib", learns=True),
        AgentInfo("sb3:trpo", "trust region policy optimisation, of sb3-contrib", learns=True),
        AgentInfo("sb3:ars", "augmented random search, of sb3-contrib", learns=True),
    )
}


def make_agent(
    name: str,
    obs_space: Any,
    action_space: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    action_names: Sequence[str] = (),
    action_features: ActionFeatures | None = None,
    action_descriptions: Sequence[str] = (),
    llm: Callable[[str], LLM] | None = None,
) -> Agent:
    """The agent of that name.

    Args:
        name: a name of `AGENTS` (``fixed:deepen``, ``sequence:deepen,breadth``), of the entry-point group
            ``instructgym.agents``, or ``path/to/file.py:NAME`` with a class or an instance.
        obs_space: of a single env.
        action_space: of a single env; Discrete.
        kwargs: go to the agent's constructor. A user's class gets them too, and of `obs_space`, `action_space`,
            `seed`, `action_names`, `action_features`, `action_descriptions` and `llm` those that its constructor
            names. What follows the colon of a name that takes something is the argument `model`.
        action_names: the operations' names in the order of the actions.
        action_features: for agents that are to choose from operations that they were not trained on.
        action_descriptions: what the operations do, in the same order.
        llm: gives the chat model of a name, in the role of the instructor.

    Raises:
        ConfigError: an unknown name, operation or argument (with the nearest one), or something that is no agent.
    """
    given = dict(kwargs or {})
    descriptions = tuple(action_descriptions)
    things = (obs_space, action_space, seed, tuple(action_names), action_features, descriptions, llm)
    offered = dict(zip(_OFFERED, things, strict=True))
    agent = _build(name, given, offered)
    agent.origin = Origin(name, given, seed, obs_space, action_space)  # type: ignore[attr-defined]
    return agent


def agent_names() -> tuple[str, ...]:
    """The names that `make_agent` knows: the package's own, then those of installed packages."""
    return (*AGENTS, *sorted(set(_installed()) - set(AGENTS)))


def agent_type(name: str) -> Any:
    """The class, factory or instance that `make_agent` makes an agent of, for what it says before it is made.

    None where that is a matter of the name alone. Raises `ConfigError` for a file that cannot be read.
    """
    if is_file_reference(name):
        return load_from_file(name)
    info = AGENTS.get(name) or AGENTS.get(name.partition(":")[0])
    if info is not None:
        return _load(info.made_by) if info.made_by else None
    installed = _installed()
    return installed[name].load() if name in installed else None


def options_of(name: str) -> dict[str, Any]:
    """The options of one of our own agents with their defaults; empty for those that take none, or not ours."""
    info = AGENTS.get(name)
    if info is None or not info.made_by:
        return {}
    made = _load(info.made_by)
    config_type = getattr(made, "config_type", None)
    if config_type is not None:
        return {field.name: field.default for field in fields(config_type)}
    parameters = inspect.signature(made).parameters
    return {
        key: each.default for key, each in parameters.items() if key not in _OFFERED and each.default is not each.empty
    }


def _build(name: str, kwargs: dict[str, Any], offered: Mapping[str, Any]) -> Agent:
    obs_space, action_space, seed = offered["obs_space"], offered["action_space"], offered["seed"]
    action_names: Sequence[str] = offered["action_names"]
    if name in AGENTS and name.startswith("sb3:"):
        from instructgym.agents.sb3 import SB3Agent

        return SB3Agent(name, obs_space, action_space, kwargs=kwargs, seed=seed)
    if is_file_reference(name):
        return _own(name, load_from_file(name), kwargs, offered)
    head, _, rest = name.partition(":")
    if head in AGENTS and AGENTS[head].made_by and (name == head or AGENTS[head].takes):
        return _own(name, _load(AGENTS[head].made_by), {**({"model": rest} if rest else {}), **kwargs}, offered)
    if head in ("fixed", "sequence"):
        check_kwargs(f"agent '{name}'", kwargs, ())
        indices = [_operation(name, operation.strip(), action_names) for operation in rest.split(",")]
        if head == "sequence":
            return SequenceAgent(indices)
        if len(indices) != 1:
            raise ConfigError(f"agent '{name}' names {len(indices)} operations; expected one, as in 'fixed:OPERATION'.")
        return FixedAgent(indices[0])
    if name in ("random", "round_robin"):
        check_kwargs(f"agent '{name}'", kwargs, ())
        return RandomAgent() if name == "random" else RoundRobinAgent()
    installed = _installed()
    if name not in installed:
        raise ConfigError(
            f"unknown agent '{name}'; {nearest(name, agent_names())} One of your own: 'path/to/file.py:NAME'."
        )
    return _own(name, installed[name].load(), kwargs, offered)


def _operation(name: str, operation: str, action_names: Sequence[str]) -> int:
    if not operation:
        shown = f"'{name}:OPERATION'" if ":" not in name else "an operation after the colon"
        raise ConfigError(f"agent '{name}' names no operation; expected {shown}. Known: {', '.join(action_names)}.")
    if operation not in action_names:
        raise ConfigError(f"agent '{name}': unknown operation '{operation}'; {nearest(operation, action_names)}")
    return list(action_names).index(operation)


def _load(made_by: str) -> Any:
    module, _, attribute = made_by.partition(":")
    return getattr(import_module(module), attribute)


def _own(name: str, found: Any, kwargs: dict[str, Any], offered: Mapping[str, Any]) -> Agent:
    """A user's class, factory or instance as an agent."""
    agent = found
    if inspect.isclass(found) or (callable(found) and not hasattr(found, "act")):
        agent = _call(name, found, offered, kwargs)
    elif kwargs:
        raise ConfigError(f"agent '{name}' is an instance and takes no arguments, but got {sorted(kwargs)}.")
    if not isinstance(agent, Agent):
        raise ConfigError(
            f"agent '{name}' is of type {type(agent).__name__}; expected a subclass or an instance of "
            "instructgym.agents.Agent."
        )
    return agent


def _call(name: str, make: Callable[..., Any], offered: Mapping[str, Any], kwargs: dict[str, Any]) -> Any:
    parameters = inspect.signature(make).parameters
    arguments = {key: value for key, value in offered.items() if key in parameters} | kwargs
    if callable(arguments.get("action_features")):
        arguments["action_features"] = arguments["action_features"]()
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        check_kwargs(f"agent '{name}'", kwargs, [key for key in parameters if key not in offered or key in kwargs])
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"agent '{name}' cannot be made: {error}. Give its arguments as agent.kwargs.") from error
    return make(**arguments)


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
