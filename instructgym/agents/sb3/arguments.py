"""Which arguments an algorithm of Stable-Baselines3 takes from a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgym.agents.checking import check_kwargs
from instructgym.agents.sb3.algorithms import Family
from instructgym.errors import ConfigError

__all__ = ["own_arguments"]

_OURS = ("net_arch", "normalize_obs", "clip_obs", "retries", "callbacks", "tensorboard_log")
_OURS_OFF_POLICY = ("save_replay_buffer",)
_REFUSED = {
    "self": "it is no argument",
    "policy": "the observation space and net_arch decide it",
    "env": "learn() gets it",
    "seed": "it is the agent's, in a config run.seed",
    "device": "networks this small are no faster elsewhere than on the CPU",
    "verbose": "what it logs goes to the metrics, and nothing is printed",
    "_init_setup_model": "it is no argument",
}


def own_arguments(name: str, family: Family, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Of an agent's arguments those that are the algorithm's own; the others are `SB3Agent`'s.

    Raises `ConfigError` for an argument that neither of them knows, with the nearest, and for one that is not the
    user's to set.
    """
    owner = f"agent '{name}'"
    for key in kwargs:
        if key in _REFUSED:
            raise ConfigError(f"{owner} takes no argument '{key}': {_REFUSED[key]}.")
    ours = (*_OURS, *(_OURS_OFF_POLICY if family.off_policy else ()))
    theirs = [key for key in family.parameters() if key not in (*_REFUSED, *ours)]
    check_kwargs(owner, kwargs, [*theirs, *ours])
    own = {key: value for key, value in kwargs.items() if key not in ours}
    if isinstance(own.get("train_freq"), list):
        own["train_freq"] = tuple(own["train_freq"])  # a config has no tuples
    return own
