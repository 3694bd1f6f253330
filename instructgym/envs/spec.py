"""`EnvConfig`: everything that ``gymnasium.make("instructgym/InstructionEvolution-v0", ...)`` accepts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from instructgym.envs.dynamics import Eliminates
from instructgym.envs.elimination import DEFAULT_RULES, RULES
from instructgym.envs.loading import load_action_set
from instructgym.envs.observations import EMBEDDING_MODES, Tokenizer, check_mode
from instructgym.envs.operations import ActionSet
from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM, LLMBackend
from instructgym.plugins import nearest
from instructgym.rewards.base import Reward
from instructgym.rewards.building import requires
from instructgym.rewards.composition import as_reward
from instructgym.rewards.encoders.base import Encoder
from instructgym.types import Instruction, Sampling, Seed, Transition

__all__ = ["BACKENDS", "EnvConfig"]

BACKENDS = ("simulated", "openai")
REVIEWER_SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=256)
"""The reviewer gives a verdict, not prose."""

RewardSpec = Mapping[str, Any] | Reward | Callable[[Transition], Any] | str


def _default_reward() -> Mapping[str, Any]:
    return {"reviewer_equality": 1.0, "novelty": 0.15, "gate": True}


@dataclass(frozen=True, eq=False, kw_only=True)
class EnvConfig:
    """The options of the environments, checked when built. Raises `ConfigError` or `ActionSetError`.

    What names a part may also be the part itself: an `ActionSet`, `Reward`, `Encoder`, `LLM`, ... An `LLM` is used as
    it is (whoever made it closes it); an `LLMBackend` is a transport, which gets ledger, retry and limits around it.

    Attributes:
        action_set: a name, ``file.py:NAME`` (see `load_action_set`) or an `ActionSet`.
        with_stop: add the operation `stop`, which ends the episode.
        observation: ``flat``, ``dict``, ``features``, ``features_dict``, ``tokens`` or ``last_operation`` (see
            `Observer`).
        observation_length: tokens in mode ``tokens``.
        tokenizer: for mode ``tokens``; None is bytes.
        reward: a name or ``file.py:NAME``, names with weights (see `make_reward`; the key ``gate``: a rewrite that is
            not a valid instruction earns 0), a function of a transition, or a `Reward`.
        elimination: ``default``, names of rules, or an `EliminationRules`.
        penalty: what an eliminated rewrite costs, 0 or more; the reward is its negative.
        horizon: steps in an episode.
        seeds: ``default``, the path of a JSONL file, or a sequence of texts, `Instruction` or `Seed`.
        draws_per_seed: how many different chains of expert samples there are; None: 2**31.
        expert, reviewer: ``simulated``, ``openai``, an `LLMBackend` or an `LLM`; reviewer None is the expert's model.
        base_url, model, api_key_env: for ``openai``; the key is read from that environment variable alone.
        concurrency: at most so many calls to the endpoint at once; None: what it takes is found out (`AdaptiveLimit`).
        sampling: the expert's; the reviewer is asked greedily.
        encoder: ``hashing``, ``auto``, a sentence-transformers name or folder (see `open_encoder`), or an `Encoder`.
        ledger_path: a SQLite file that keeps every call; None keeps them in memory. One env a file.
        run_seed: decides the request seeds, and with them what the expert samples.
    """

    action_set: str | ActionSet = "evol_instruct"
    with_stop: bool = False
    observation: str = "flat"
    observation_length: int = 512
    tokenizer: Tokenizer | None = None
    reward: RewardSpec = field(default_factory=_default_reward)
    elimination: str | Sequence[str] | Eliminates = "default"
    penalty: float = 0.1
    horizon: int = 4
    seeds: str | Path | Sequence[Seed | Instruction | str] = "default"
    draws_per_seed: int | None = None
    expert: str | LLMBackend | LLM = "simulated"
    reviewer: str | LLMBackend | LLM | None = None
    base_url: str = "https://api.openai.com/v1"
    model: str = ""
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    encoder: str | Encoder = "hashing"
    ledger_path: str | Path | None = None
    run_seed: int = 0

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> EnvConfig:
        """The config of keyword arguments. An unknown one is a `ConfigError` with the nearest name."""
        known = [item.name for item in fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(f"unknown option '{name}' of the environment; {nearest(name, known)}")
        return cls(**options)

    def __post_init__(self) -> None:
        load_action_set(self.action_set)
        check_mode(self.observation)
        _at_least("horizon", self.horizon, 1)
        _at_least("observation_length", self.observation_length, 1)
        _at_least("run_seed", self.run_seed, 0)
        for name in ("draws_per_seed", "concurrency"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if not (_is_number(self.penalty) and self.penalty >= 0):
            raise ConfigError(
                f"penalty = {self.penalty!r}; expected a finite number of 0 or more: an eliminated rewrite earns its "
                "negative."
            )
        for role in ("expert", "reviewer"):
            self._check_llm(role, getattr(self, role))
        self._check_reward()
        self._check_elimination()
        if not (isinstance(self.encoder, Encoder) or (isinstance(self.encoder, str) and self.encoder.strip())):
            raise ConfigError(f"encoder = {self.encoder!r}; expected a name such as 'hashing', or an Encoder.")

    @property
    def reward_spec(self) -> Mapping[str, Any]:
        """The named rewards as `make_reward` takes them; empty if the reward is an object."""
        if isinstance(self.reward, str):
            return {self.reward: 1.0}
        return self.reward if isinstance(self.reward, Mapping) else {}

    @property
    def rule_names(self) -> tuple[str, ...] | None:
        """The names of the elimination rules; None if the rules are an object."""
        if self.elimination == "default":
            return DEFAULT_RULES
        return tuple(self.elimination) if isinstance(self.elimination, Sequence) else None

    @property
    def embeds(self) -> bool:
        """True if the observation is made with the encoder."""
        return self.observation in EMBEDDING_MODES

    def _check_llm(self, role: str, value: object) -> None:
        if isinstance(value, str):
            if value not in BACKENDS:
                raise ConfigError(f"unknown {role} '{value}'; {nearest(value, BACKENDS)}")
            if value == "openai" and not self.model:
                raise ConfigError(f"{role} = 'openai' has no model; pass model='...', and base_url if it is elsewhere.")
        elif not isinstance(value, (LLM, LLMBackend)) and not (value is None and role == "reviewer"):
            raise ConfigError(
                f"{role} is of type {type(value).__name__}; expected {' or '.join(BACKENDS)}, an LLMBackend or an LLM."
            )

    def _check_reward(self) -> None:
        if isinstance(self.reward, (str, Mapping)):
            requires(self.reward_spec)
        else:
            as_reward(self.reward)

    def _check_elimination(self) -> None:
        rules = self.elimination
        if rules == "default" or hasattr(rules, "inspect"):
            return
        if isinstance(rules, str) or not isinstance(rules, Sequence):
            raise ConfigError(
                f"elimination = {rules!r}; expected 'default', EliminationRules, or names of {', '.join(RULES)}."
            )
        for name in rules:
            if name not in RULES:
                raise ConfigError(f"unknown elimination rule '{name}'; {nearest(name, RULES)}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _at_least(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} = {value!r}; expected a whole number of {least} or more.")
