"""Hyperparameters of our PPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from instructgym.agents.checking import check_kwargs
from instructgym.errors import ConfigError

__all__ = ["PPOConfig"]


@dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters. `n_steps` is the rollout's length an env; `normalize_obs` is the clip, or True for `clip_obs`.

    `lr_schedule` "linear" falls to 0 over the steps of the `learn` call that starts it. `target_kl` ends an update
    when the approximate KL of a minibatch exceeds 1.5 times it.

    `collect` "sync" steps all envs together and repeats itself to the byte. "async" (`AsyncCollector`) takes whoever is
    ready, at least `min_ready` at a time (None: a quarter of the envs), does not learn from what was chosen more than
    `max_staleness` updates ago, and needs an env with send, recv and cancel.

    Raises `ConfigError` for values that make no sense.
    """

    learning_rate: float = 3e-4
    lr_schedule: str = "constant"
    n_steps: int = 128
    batch_size: int = 64
    n_epochs: int = 10
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = None
    normalize_advantage: bool = True
    normalize_obs: bool | float = False
    clip_obs: float = 10.0
    normalize_reward: bool = False
    net_arch: tuple[int, ...] = (64, 64)
    adam_eps: float = 1e-5
    collect: str = "sync"
    min_ready: int | None = None
    max_staleness: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "net_arch", tuple(self.net_arch))
        for name in ("n_steps", "batch_size", "n_epochs"):
            _require(self, name, "a whole number of at least 1", lambda v: isinstance(v, int) and v >= 1)
        for name in ("learning_rate", "clip_range", "max_grad_norm", "clip_obs", "adam_eps"):
            _require(self, name, "a number above 0", lambda v: v > 0)
        for name in ("ent_coef", "vf_coef"):
            _require(self, name, "a number of at least 0", lambda v: v >= 0)
        for name in ("gamma", "gae_lambda"):
            _require(self, name, "a number from 0 to 1", lambda v: 0 <= v <= 1)
        _require(self, "target_kl", "a number above 0, or none", lambda v: v is None or v > 0)
        _require(self, "lr_schedule", "'constant' or 'linear'", lambda v: v in ("constant", "linear"))
        _require(self, "normalize_obs", "false, true or a clip above 0", lambda v: isinstance(v, bool) or v > 0)
        _require(
            self, "net_arch", "sizes of at least 1", lambda v: all(isinstance(size, int) and size >= 1 for size in v)
        )
        _require(self, "collect", "'sync' or 'async'", lambda v: v in ("sync", "async"))
        _require(self, "max_staleness", "a whole number of at least 0", lambda v: isinstance(v, int) and v >= 0)
        if self.collect == "sync":
            _require(self, "min_ready", "none, since collect = 'sync' waits for all envs", lambda v: v is None)
        _require(
            self,
            "min_ready",
            "a whole number of at least 1, or none",
            lambda v: v is None or (isinstance(v, int) and v >= 1),
        )

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> PPOConfig:
        """From plain values. Raises `ConfigError` for an unknown name, with the nearest one."""
        check_kwargs("agent 'ppo'", kwargs, cls.__dataclass_fields__)
        return cls(**kwargs)

    @property
    def obs_clip(self) -> float | None:
        """The clip of the observation normaliser, None without one."""
        if isinstance(self.normalize_obs, bool):
            return self.clip_obs if self.normalize_obs else None
        return float(self.normalize_obs)

    def ready_of(self, num_envs: int) -> int:
        """How many of `num_envs` envs the asynchronous collector waits for. Raises `ConfigError` for more than all."""
        if self.min_ready is None:
            return max(1, num_envs // 4)
        if self.min_ready > num_envs:
            raise ConfigError(f"ppo: min_ready = {self.min_ready}; expected 1 to {num_envs}, the number of envs.")
        return self.min_ready


def _require(config: PPOConfig, name: str, expected: str, holds: Callable[[Any], bool]) -> None:
    value = getattr(config, name)
    try:
        fine = holds(value)
    except TypeError:
        fine = False
    if not fine:
        raise ConfigError(f"ppo: {name} = {value!r}; expected {expected}.")
