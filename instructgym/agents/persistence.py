"""A saved agent is a folder: `agent.json`, the arrays as safetensors, and what the agent writes by itself.

Equal agents give equal bytes: there is no time, no version and no pickle in what we write (Stable-Baselines3's own
zip, which `SB3Agent` adds, holds all three). `agent.json` is written last, so a folder that has it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructgym.agents.base import Agent
from instructgym.agents.registry import Origin, Task, make_agent
from instructgym.agents.spaces import space_from_json, space_to_json
from instructgym.errors import ActionSetError, ConfigError

__all__ = ["SavedAgent", "load_agent", "read_saved_agent", "save_agent"]

SCHEMA = 1
_CARD, _WEIGHTS = "agent.json", "weights.safetensors"


@dataclass(frozen=True)
class SavedAgent:
    """What `agent.json` says. `meta` is whatever the caller of `save_agent` wanted to keep."""

    name: str
    kwargs: Mapping[str, Any]
    seed: int
    action_set_hash: str
    action_set_names: tuple[str, ...]
    observation_space: Mapping[str, Any]
    action_space: Mapping[str, Any]
    state: Mapping[str, Any]
    meta: Mapping[str, Any]


def save_agent(
    agent: Agent,
    folder: str | Path,
    *,
    action_set_hash: str,
    action_set_names: Sequence[str],
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write `agent` into `folder`, which is made if it is not there.

    Raises `ConfigError` for an agent that cannot be made again: one that neither `make_agent` made nor is our PPO
    or an `SB3Agent`.
    """
    from safetensors.numpy import save

    target = Path(folder)
    origin = _origin(agent)
    arrays, values = {}, {}
    for name, value in sorted(agent.state_dict().items()):
        if isinstance(value, np.ndarray):
            arrays[name] = np.ascontiguousarray(value)
        else:
            values[name] = value
    card = {
        "schema": SCHEMA,
        "name": origin.name,
        "kwargs": dict(origin.kwargs),
        "seed": origin.seed,
        "action_set": {"hash": action_set_hash, "names": list(action_set_names)},
        "observation_space": space_to_json(origin.obs_space),
        "action_space": space_to_json(origin.action_space),
        "state": values,
        "meta": dict(meta or {}),
    }
    text = json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False, default=_plain) + "\n"
    target.mkdir(parents=True, exist_ok=True)
    (target / _CARD).unlink(missing_ok=True)
    _replace(target / _WEIGHTS, save(arrays))
    agent.save_files(target)
    _replace(target / _CARD, text.encode())


def load_agent(
    folder: str | Path,
    *,
    expected_action_set_hash: str | None,
    expected_action_set_names: Sequence[str] = (),
    task: Task | None = None,
) -> Agent:
    """The agent that `save_agent` wrote.

    What its state holds as ``action_features`` is offered to it when it is made.

    Args:
        folder: where it is.
        expected_action_set_hash: of the set that the agent will choose from; None skips the comparison.
        expected_action_set_names: for the message, if the hash differs.
        task: what it will act in. If the hash differs, an agent that can choose from any operations
            (`Agent.any_actions`) is made for this one.

    Raises:
        ActionSetError: the agent was saved for another action set.
        ConfigError: the folder holds no agent, or a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    source = Path(folder)
    saved = read_saved_agent(source)
    try:
        arrays = load_file(source / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _damaged(source, error) from error
    own = Task(
        space_from_json(dict(saved.observation_space)),
        space_from_json(dict(saved.action_space)),
        saved.action_set_names,
        arrays.get("action_features"),
    )
    agent = _made(saved, own)
    if expected_action_set_hash is not None and saved.action_set_hash != expected_action_set_hash:
        if agent.any_actions and task is not None:
            return _restored(_made(saved, task), source, saved, arrays)
        wanted = f" ({', '.join(expected_action_set_names)})" if expected_action_set_names else ""
        raise ActionSetError(
            f"the agent in {source} was saved for action set {saved.action_set_hash} "
            f"({', '.join(saved.action_set_names)}), this run has {expected_action_set_hash}{wanted}. "
            "Run with the set that it was saved for, or train an agent for this one."
        )
    return _restored(agent, source, saved, arrays)


def read_saved_agent(folder: str | Path) -> SavedAgent:
    """What `agent.json` says, without making the agent. Raises `ConfigError` if there is none or it cannot be read."""
    path = Path(folder) / _CARD
    if not path.is_file():
        raise ConfigError(f"{folder} holds no saved agent: there is no {path}.")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        schema = card["schema"]
        if schema != SCHEMA:
            raise ConfigError(
                f"{path} is of schema {schema}; this version reads schema {SCHEMA}. Train the agent again, or use the "
                "version that saved it."
            )
        return SavedAgent(
            name=card["name"],
            kwargs=card["kwargs"],
            seed=card["seed"],
            action_set_hash=card["action_set"]["hash"],
            action_set_names=tuple(card["action_set"]["names"]),
            observation_space=card["observation_space"],
            action_space=card["action_space"],
            state=card["state"],
            meta=card["meta"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _made(saved: SavedAgent, task: Task) -> Agent:
    return make_agent(
        saved.name,
        task.obs_space,
        task.action_space,
        kwargs=saved.kwargs,
        seed=saved.seed,
        action_names=task.action_names,
        action_features=task.action_features,
    )


def _restored(agent: Agent, source: Path, saved: SavedAgent, arrays: Mapping[str, Any]) -> Agent:
    try:
        agent.load_state_dict({**arrays, **saved.state})
        agent.load_files(source)
    except (OSError, KeyError, ValueError) as error:
        raise _damaged(source, error) from error
    return agent


def _damaged(source: Path, error: Exception) -> ConfigError:
    return ConfigError(f"the agent in {source} is damaged: {type(error).__name__}: {error}")


def _origin(agent: Agent) -> Origin:
    origin = getattr(agent, "origin", None)
    if isinstance(origin, Origin):
        return origin
    own = getattr(agent, "make_origin", None)
    if own is None:
        raise ConfigError(
            f"an agent of class {type(agent).__name__} cannot be saved, for nobody could make it again; make it with "
            "make_agent('path/to/file.py:NAME', ...)."
        )
    return Origin(*own())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise ConfigError(
        f"an agent's state or meta holds a {type(value).__name__}; expected JSON values and numpy arrays."
    )


def _replace(path: Path, data: bytes) -> None:
    """Write, then rename: a reader sees the old file or the new one."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(data)
    os.replace(partial, path)
