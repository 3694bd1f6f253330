"""Rewards by name. A new reward of the package is a class in a file of its own and one line in `REWARDS`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.plugins import is_file_reference, load_from_file, nearest
from instructgym.rewards.base import Reward
from instructgym.rewards.composition import FunctionReward, Gate, WeightedSum
from instructgym.rewards.encoder_base import Encoder
from instructgym.rewards.novelty import Novelty
from instructgym.rewards.reviewer import ReviewerEquality
from instructgym.rewards.validity import Validity

__all__ = ["REWARDS", "RewardInfo", "make_reward", "requires", "reward_names"]

ENTRY_POINT_GROUP = "instructgym.rewards"
REVIEWER, ENCODER = "reviewer", "encoder"
Options = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What rewards are built from."""

    reviewer: LLM | None = None
    encoder: Encoder | None = None
    changes_topic: Collection[str] | Callable[[str], bool] = ("breadth",)


@dataclass(frozen=True)
class RewardInfo:
    """A named reward: one line for people, what it needs (``reviewer``, ``encoder``), and how it is built."""

    name: str
    summary: str
    needs: frozenset[str]
    build: Callable[[Parts, Options], Reward]


REWARDS: dict[str, RewardInfo] = {
    info.name: info
    for info in (
        RewardInfo(
            "reviewer_equality",
            "1 if the reviewer LLM finds the rewrite not equal to its parent, asked in both orders",
            frozenset({REVIEWER}),
            lambda parts, options: ReviewerEquality(_given(parts.reviewer, REVIEWER), **options),
        ),
        RewardInfo(
            "novelty",
            "embedding distance of the rewrite to its parent and to the seed",
            frozenset({ENCODER}),
            lambda parts, options: Novelty(_given(parts.encoder, ENCODER), **options),
        ),
        RewardInfo(
            "validity",
            "1 if the rewrite is an instruction by its text alone: length, no refusal, leak or chatter, on topic",
            frozenset({ENCODER}),
            lambda parts, options: Validity(parts.encoder, **{"changes_topic": parts.changes_topic, **options}),
        ),
    )
}
"""The package's own rewards."""


def reward_names() -> tuple[str, ...]:
    """The names that `make_reward` knows: the package's own, then those of installed packages."""
    return (*REWARDS, *sorted(set(_installed()) - set(REWARDS)))


def requires(spec: Mapping[str, Any]) -> frozenset[str]:
    """What a spec needs: a subset of ``reviewer`` and ``encoder``. Loads the user's files; raises `ConfigError`."""
    terms, gate, _ = _read(spec, {})
    return frozenset().union(*(_find(name).needs for name in (*terms, *([gate] if gate else []))))


def make_reward(
    spec: Mapping[str, Any],
    *,
    reviewer: LLM | None = None,
    encoder: Encoder | None = None,
    options: Mapping[str, Options] | None = None,
    changes_topic: Collection[str] | Callable[[str], bool] = ("breadth",),
) -> Reward:
    """The reward that `spec` describes: a `WeightedSum`, inside a `Gate` if it asks for one.

    Args:
        spec: name -> weight, or name -> table with ``weight`` and the reward's own options. A name is one of
            `reward_names()` or ``path/to/file.py:NAME`` (a function of a transition, a Reward class whose parameters
            ``reviewer`` and ``encoder`` are filled in, or a Reward). The key ``gate`` is True (= "validity"), the name
            of a reward, or {name: threshold}; False or None is no gate.
        reviewer, encoder: what the rewards that need one get.
        options: options by name, as if they stood in the spec.
        changes_topic: the operations that are meant to leave the parent's subject, for "validity".

    Raises:
        ConfigError: an unknown name (with the nearest), a bad weight or option, or a reviewer or encoder that is needed
            and not given.
    """
    terms, gate, threshold = _read(spec, options or {})
    parts = Parts(reviewer, encoder, changes_topic)
    total = WeightedSum({_label(name): (_build(name, parts, own), weight) for name, (weight, own) in terms.items()})
    if gate is None:
        return total
    gate_options = {} if options is None else options.get(gate, {})
    return Gate(_build(gate, parts, gate_options), total, threshold)


def _read(
    spec: Mapping[str, Any], options: Mapping[str, Options]
) -> tuple[dict[str, tuple[float, dict[str, Any]]], str | None, float]:
    """(name -> (weight, options), name of the gate or None, its threshold)."""
    terms: dict[str, tuple[float, dict[str, Any]]] = {}
    for name, value in spec.items():
        if name == "gate":
            continue
        own = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weight = own.pop("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ConfigError(f"reward '{name}' has weight {weight!r}; expected a finite number.")
        terms[name] = (float(weight), {**own, **options.get(name, {})})
    if not any(weight for weight, _ in terms.values()):
        raise ConfigError(f"the reward {dict(spec)} has no term whose weight is not 0; name at least one.")
    labels = [_label(name) for name in terms]
    doubled = sorted({label for label in labels if labels.count(label) > 1})
    if doubled:
        raise ConfigError(f"the reward has more than one term called {doubled}; names must be unique.")
    gate = spec.get("gate")
    if gate is None or gate is False:
        return terms, None, 0.5
    if gate is True:
        return terms, "validity", 0.5
    if isinstance(gate, str):
        return terms, gate, 0.5
    if isinstance(gate, Mapping) and len(gate) == 1:
        ((name, threshold),) = gate.items()
        if isinstance(threshold, (int, float)) and not isinstance(threshold, bool) and math.isfinite(threshold):
            return terms, str(name), float(threshold)
    raise ConfigError(f"the reward's gate is {gate!r}; expected true, a reward's name or {{name = threshold}}.")


def _build(name: str, parts: Parts, options: Options) -> Reward:
    try:
        return _find(name).build(parts, options)
    except TypeError as error:
        raise ConfigError(f"reward '{name}' cannot be built with options {dict(options)}: {error}.") from error


def _find(name: str) -> RewardInfo:
    if name in REWARDS:
        return REWARDS[name]
    if is_file_reference(name):
        return _info(name, load_from_file(name))
    installed = _installed()
    if name in installed:
        return _info(name, installed[name].load())
    raise ConfigError(
        f"unknown reward '{name}'; {nearest(name, reward_names())} One of your own: 'path/to/file.py:NAME'."
    )


def _info(name: str, found: Any) -> RewardInfo:
    """A user's object as a RewardInfo: its class, itself, or its function."""
    summary = (inspect.getdoc(found) or "").partition("\n")[0]
    if isinstance(found, type) and issubclass(found, Reward):
        needs = frozenset({REVIEWER, ENCODER} & set(inspect.signature(found).parameters))

        def build(parts: Parts, options: Options) -> Reward:
            given = {need: _given(getattr(parts, need), need) for need in sorted(needs)}
            reward: Reward = found(**given, **options)
            return reward

        return RewardInfo(name, summary, needs, build)
    if isinstance(found, Reward):
        return RewardInfo(name, summary, frozenset(), lambda parts, options: _no_options(name, found, options))
    if callable(found) and not isinstance(found, type):
        wrapped = FunctionReward(found, _label(name))
        return RewardInfo(name, summary, frozenset(), lambda parts, options: _no_options(name, wrapped, options))
    raise ConfigError(
        f"reward '{name}' is of type {type(found).__name__}; expected a function of a transition, a Reward or a "
        "Reward class."
    )


def _no_options(name: str, reward: Reward, options: Options) -> Reward:
    if options:
        raise ConfigError(f"reward '{name}' takes no options, got {dict(options)}; options go to Reward classes.")
    return reward


def _given(part: T | None, need: str) -> T:
    if part is None:
        raise ConfigError(f"the reward needs a{'n' if need[0] in 'aeiou' else ''} {need}, got None; pass one.")
    return part


def _label(name: str) -> str:
    """What a term is called in metrics: the name, or NAME of ``file.py:NAME``."""
    return name.rpartition(":")[2] if is_file_reference(name) else name


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
