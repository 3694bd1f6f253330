"""The reward card: what a reward pays on transitions with known truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from instructgym.metrics.correlation import spearman
from instructgym.metrics.ranking import auc
from instructgym.metrics.text import count_words
from instructgym.train.reward_bench.probes import BAD, GOOD, HALVES, Probe, kinds_of

__all__ = ["FOOLED_BELOW", "HalfCard", "RewardCard", "reward_card"]

FOOLED_BELOW = 0.6
"""A kind fools a reward if good rewrites beat it less often than that: a coin reaches 0.5."""


@dataclass(frozen=True)
class HalfCard:
    """What a reward says of one half of the probes.

    `means` by kind; `auc` is P(a good rewrite scores higher than a bad one), ties 1/2, averaged over the bad kinds so
    that each counts the same; `auc_by_kind` against each of them. None where a side has no score. `missing` counts
    probes without a score.
    """

    means: dict[str, float | None]
    auc: float | None
    auc_by_kind: dict[str, float | None]
    missing: int
    probes: int


@dataclass(frozen=True)
class RewardCard:
    """A reward on the probes, each half apart.

    `length_correlation` is Spearman's with the log ratio of the child's words to the parent's, over all probes;
    `fooled_by` are the bad kinds over both halves that good rewrites beat in fewer than `FOOLED_BELOW` of cases, the
    worst first.
    """

    reward: str
    halves: dict[str, HalfCard]
    length_correlation: float | None
    fooled_by: tuple[str, ...]


def reward_card(name: str, probes: Sequence[Probe], values: Sequence[float | None]) -> RewardCard:
    """The card from the scores of `probes`, in their order; None is a missing score."""
    both = _half(probes, values)
    worst = sorted((found, kind) for kind, found in both.auc_by_kind.items() if found is not None)
    growth = [_growth(probe) for probe, value in zip(probes, values, strict=True) if value is not None]
    present = [value for value in values if value is not None]
    return RewardCard(
        name,
        {half: _half(*_of_half(half, probes, values)) for half in HALVES},
        spearman(growth, present),
        tuple(kind for found, kind in worst if found < FOOLED_BELOW),
    )


def _half(probes: Sequence[Probe], values: Sequence[float | None]) -> HalfCard:
    by_kind: dict[str, list[float]] = {kind: [] for kind in kinds_of(probes)}
    for probe, value in zip(probes, values, strict=True):
        if value is not None:
            by_kind[probe.kind].append(value)
    good = [value for kind in GOOD for value in by_kind.get(kind, ())]
    against = {kind: auc(good, by_kind[kind]) for kind in BAD if kind in by_kind}
    known = [found for found in against.values() if found is not None]
    return HalfCard(
        means={kind: math.fsum(found) / len(found) if found else None for kind, found in by_kind.items()},
        auc=math.fsum(known) / len(known) if known else None,
        auc_by_kind=against,
        missing=sum(value is None for value in values),
        probes=len(probes),
    )


def _of_half(
    half: str, probes: Sequence[Probe], values: Sequence[float | None]
) -> tuple[list[Probe], list[float | None]]:
    chosen = [(probe, value) for probe, value in zip(probes, values, strict=True) if probe.half == half]
    return [probe for probe, _ in chosen], [value for _, value in chosen]


def _growth(probe: Probe) -> float:
    child = probe.transition.child
    assert child is not None  # every probe has one
    return math.log((1 + count_words(child.render())) / (1 + count_words(probe.transition.parent.render())))
