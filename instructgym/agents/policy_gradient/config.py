"""Hyperparameters: those that every policy-gradient learner of ours has, and those of our PPO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from instructgym.agents.checking import check_kwargs
from instructgym.errors import ConfigError

__all__ = ["LearnerConfig", "PPOConfig"]

NETWORKS = ("mlp", "gru", "cross_attention")


@dataclass(frozen=True)
class LearnerConfig:
    """What an `ActorCriticLearner` asks for. Names and defaults are Stable-Baselines3's where it has them.

    `n_steps` is the rollout's length an env; `normalize_obs` is the clip, or True for `clip_obs`. `lr_schedule`
    "linear" falls to 0 over the steps of the `learn` call that starts it.

    `network` is "mlp"; "gru", which has a memory of `memory_size` numbers and is learned in sequences of at most
    `sequence_length` steps; or "cross_attention" (queries and keys of `attention_size`), which knows its operations by
    their features, takes a Dict observation as it is, and can choose from operations that it was not trained on.
    `net_arch` are the hidden layers of each.

    `collect` "sync" steps all envs together and repeats itself to the byte. "async" (`AsyncCollector`) takes whoever is
    ready, at least `min_ready` at a time (None: a quarter of the envs), does not learn from what was chosen more than
    `max_staleness` updates ago, and needs an env with send, recv and cancel.

    Raises `ConfigError` for values that make no sense.
    """

    agent: ClassVar[str] = "learner"
    """The agent's name in messages."""

    learning_rate: float = 3e-4
    lr_schedule: str = "constant"
    n_steps: int = 128
    batch_size: int = 64
    gamma: float = 0.99
    gae_lambda: float = 0.95
    normalize_advantage: bool = True
    normalize_obs: bool | float = False
    clip_obs: float = 10.0
    normalize_reward: bool = False
    network: str = "mlp"
    net_arch: tuple[int, ...] = (64, 64)
    memory_size: int = 64
    sequence_length: int = 16
    attention_size: int = 64
    adam_eps: float = 1e-5
    collect: str = "sync"
    min_ready: int | None = None
    max_staleness: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "net_arch", tuple(self.net_arch))
        self._require_counts("n_steps", "batch_size", "memory_size", "sequence_length")
        self._require_positive("learning_rate", "clip_obs", "adam_eps")
        self._require_shares("gamma", "gae_lambda")
        self._require_one_of("lr_schedule", "constant", "linear")
        self._require("normalize_obs", "false, true or a clip above 0", lambda v: isinstance(v, bool) or v > 0)
        self._require("net_arch", "sizes of at least 1", lambda v: all(isinstance(n, int) and n >= 1 for n in v))
        self._require_one_of("network", *NETWORKS)
        self._require(
            "attention_size", "a multiple of 4 above 0", lambda v: isinstance(v, int) and v > 0 and v % 4 == 0
        )
        if self.network == "cross_attention":
            self._require(
                "normalize_obs", "false, since network = 'cross_attention' has a column an operation", _is_false
            )
            self._require("net_arch", "at least one layer, for network = 'cross_attention'", bool)
        self._require_one_of("collect", "sync", "async")
        self._require("max_staleness", "a whole number of at least 0", lambda v: isinstance(v, int) and v >= 0)
        if self.collect == "sync":
            self._require("min_ready", "none, since collect = 'sync' waits for all envs", lambda v: v is None)
        self._require(
            "min_ready",
            "a whole number of at least 1, or none",
            lambda v: v is None or (isinstance(v, int) and v >= 1),
        )

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self:
        """From plain values. Raises `ConfigError` for an unknown name, with the nearest one."""
        check_kwargs(f"agent '{cls.agent}'", kwargs, [field.name for field in fields(cls)])
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
            raise ConfigError(
                f"{self.agent}: min_ready = {self.min_ready}; expected 1 to {num_envs}, the number of envs."
            )
        return self.min_ready

    def _require(self, name: str, expected: str, holds: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        try:
            fine = holds(value)
        except TypeError:
            fine = False
        if not fine:
            raise ConfigError(f"{self.agent}: {name} = {value!r}; expected {expected}.")

    def _require_counts(self, *names: str) -> None:
        for name in names:
            self._require(name, "a whole number of at least 1", lambda v: isinstance(v, int) and v >= 1)

    def _require_positive(self, *names: str) -> None:
        for name in names:
            self._require(name, "a number above 0", lambda v: v > 0)

    def _require_not_negative(self, *names: str) -> None:
        for name in names:
            self._require(name, "a number of at least 0", lambda v: v >= 0)

    def _require_shares(self, *names: str) -> None:
        for name in names:
            self._require(name, "a number from 0 to 1", lambda v: 0 <= v <= 1)

    def _require_one_of(self, name: str, *values: str) -> None:
        shown = [repr(value) for value in values]
        self._require(name, f"{', '.join(shown[:-1])} or {shown[-1]}", lambda v: v in values)


@dataclass(frozen=True)
class PPOConfig(LearnerConfig):
    """Hyperparameters of our PPO, beside those of `LearnerConfig`.

    `clip_range_vf` keeps a value within so much of the value that the rollout recorded, as Stable-Baselines3 does; it
    is in units of the return. `ent_schedule` "linear" moves `ent_coef` to `ent_coef_final` (None: 0) over the steps
    of the `learn` call that starts it. `target_kl` ends an update when the approximate KL of a minibatch exceeds 1.5
    times it.

    Raises `ConfigError` for values that make no sense.
    """

    agent: ClassVar[str] = "ppo"

    n_epochs: int = 10
    clip_range: float = 0.2
    clip_range_vf: float | None = None
    ent_coef: float = 0.0
    ent_schedule: str = "constant"
    ent_coef_final: float | None = None
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    target_kl: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("n_epochs")
        self._require_positive("clip_range", "max_grad_norm")
        self._require_not_negative("ent_coef", "vf_coef")
        self._require("clip_range_vf", "a number above 0, or none", lambda v: v is None or v > 0)
        self._require("target_kl", "a number above 0, or none", lambda v: v is None or v > 0)
        self._require_one_of("ent_schedule", "constant", "linear")
        if self.ent_schedule == "constant":
            self._require("ent_coef_final", "none, since ent_schedule = 'constant' stays", lambda v: v is None)
        self._require("ent_coef_final", "a number of at least 0, or none", lambda v: v is None or v >= 0)


def _is_false(value: Any) -> bool:
    return value is False
