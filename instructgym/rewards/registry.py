"""Rewards by name. A new reward of the package is a class in a file of its own and one line here."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from instructgym.errors import ConfigError
from instructgym.plugins import is_file_reference, load_from_file, nearest
from instructgym.rewards.base import Reward
from instructgym.rewards.composition import (
    Clip,
    FunctionReward,
    Gate,
    Lagrangian,
    Normalize,
    Product,
    Schedule,
    WeightedSum,
)
from instructgym.rewards.control import (
    LengthCap,
    LengthResidual,
    OperationCost,
    PerplexityBand,
    Relevance,
    Shaping,
    Validity,
)
from instructgym.rewards.diversity import ArchiveNovelty, CompressionGain, MarginalVendi, NgramNovelty, Novelty
from instructgym.rewards.quality import (
    IFD,
    AdditiveJudge,
    Answerability,
    Complexity,
    Learnability,
    Quality,
    TagCount,
)
from instructgym.rewards.reviewers import ReviewerArchive, ReviewerEquality, ReviewerGain, ReviewerPanel

__all__ = ["COMPOSITIONS", "NEEDS", "REWARDS", "RewardInfo", "find_reward", "label_of", "reward_names"]

ENTRY_POINT_GROUP = "instructgym.rewards"
NEEDS = ("encoder", "expert", "reviewer")
"""Parameters of a reward's constructor that whoever builds it fills in."""


@dataclass(frozen=True)
class RewardInfo:
    """A named reward: one line for people, what it needs (of `NEEDS`), and its class, or the reward as it is."""

    name: str
    summary: str
    needs: frozenset[str]
    made_of: type[Reward] | Reward

    @property
    def reward_options(self) -> tuple[str, ...]:
        """Its options that are rewards themselves."""
        return self.made_of.reward_options if isinstance(self.made_of, type) else ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names that its constructor takes; none for what is built already."""
        return tuple(inspect.signature(self.made_of).parameters) if isinstance(self.made_of, type) else ()

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """Its parameters by name, without those that whoever builds it fills in."""
        if not isinstance(self.made_of, type):
            return {}
        parameters = inspect.signature(self.made_of).parameters
        return {name: one for name, one in parameters.items() if name not in (*NEEDS, "changes_topic")}

    def check_options(self, given: Collection[str]) -> None:
        """Raise `ConfigError` unless it has each of the options `given`, and they are all that it must have."""
        options = self.options
        if any(one.kind is one.VAR_KEYWORD for one in options.values()):
            return
        for name in given:
            if name not in (*options, *self.parameters):
                known = nearest(name, options) if options else "it takes none."
                raise ConfigError(f"reward '{self.name}' has no option '{name}'; {known}")
        must = [repr(name) for name, one in options.items() if one.default is one.empty and name not in given]
        if must:
            raise ConfigError(
                f"reward '{self.name}' needs the option{'s' if must[1:] else ''} {', '.join(must)}; it got "
                f"{', '.join(map(repr, given)) or 'none'}."
            )


def _of_class(found: type[Reward], name: str = "") -> RewardInfo:
    summary = (inspect.getdoc(found) or "").partition("\n")[0]
    needs = frozenset(NEEDS) & set(inspect.signature(found).parameters)
    return RewardInfo(name or found.name, summary, frozenset(needs), found)


def _by_name(classes: Collection[type[Reward]]) -> dict[str, RewardInfo]:
    return {found.name: _of_class(found) for found in classes}


COMPOSITIONS: dict[str, RewardInfo] = _by_name(
    (WeightedSum, Product, Gate, Clip, Normalize, Schedule, LengthResidual, Shaping, Lagrangian)
)
"""Rewards that are made of others."""

REWARDS: dict[str, RewardInfo] = (
    _by_name((ReviewerEquality, ReviewerArchive, ReviewerGain, ReviewerPanel))
    | _by_name((Complexity, Quality, AdditiveJudge, Answerability, TagCount, IFD, Learnability))
    | _by_name((Novelty, ArchiveNovelty, MarginalVendi, NgramNovelty, CompressionGain))
    | _by_name((Validity, Relevance, LengthCap, PerplexityBand, OperationCost))
    | COMPOSITIONS
)
"""The package's own rewards."""


def reward_names() -> tuple[str, ...]:
    """The names that `find_reward` knows: the package's own, then those of installed packages."""
    return (*REWARDS, *sorted(set(_installed()) - set(REWARDS)))


def find_reward(name: str, known: Collection[str] = ()) -> RewardInfo:
    """The reward of that name: the package's, an installed one or ``path/to/file.py:NAME``.

    A file may hold a function of a transition, a Reward class or a Reward. Raises `ConfigError` with the nearest name;
    `known` are further names to choose from in that message.
    """
    if name in REWARDS:
        return REWARDS[name]
    if is_file_reference(name):
        return _info(name, load_from_file(name))
    installed = _installed()
    if name in installed:
        return _info(name, installed[name].load())
    raise ConfigError(
        f"unknown reward '{name}'; {nearest(name, (*known, *reward_names()))} One of your own: 'path/to/file.py:NAME'."
    )


def label_of(name: str) -> str:
    """What a reward is called in metrics: its name, or NAME of ``file.py:NAME``."""
    return name.rpartition(":")[2] if is_file_reference(name) else name


def _info(name: str, found: Any) -> RewardInfo:
    """A user's object as a RewardInfo: its class, itself, or its function."""
    if isinstance(found, type) and issubclass(found, Reward):
        return _of_class(found, name)
    if isinstance(found, Reward):
        return RewardInfo(name, (inspect.getdoc(found) or "").partition("\n")[0], frozenset(), found)
    if callable(found) and not isinstance(found, type):
        summary = (inspect.getdoc(found) or "").partition("\n")[0]
        return RewardInfo(name, summary, frozenset(), FunctionReward(found, label_of(name)))
    raise ConfigError(
        f"reward '{name}' is of type {type(found).__name__}; expected a function of a transition, a Reward or a "
        "Reward class."
    )


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
