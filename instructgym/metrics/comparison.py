"""Comparing algorithms by a few runs on several tasks, as Agarwal et al. ask for (arXiv 2108.13264).

Scores come as one array of runs a task, normalised so that tasks can be pooled. Point estimates are the interquartile
mean, the optimality gap, the performance profile and the probability of improvement; their intervals are percentile
bootstraps that resample runs within each task (strata), so tasks themselves are not a source of variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Scores",
    "interquartile_mean",
    "mean_score",
    "optimality_gap",
    "performance_profile",
    "probability_of_improvement",
    "stratified_interval",
]

Scores = Sequence[NDArray[Any]]
"""One array (runs,) a task; tasks may have different numbers of runs."""


def interquartile_mean(scores: Scores) -> float | None:
    """The mean of the middle half of all runs on all tasks (section 4.3 there); None without a run.

    A quarter of the scores, rounded down, is left out at each end, as their released code does: below four runs it is
    the mean.
    """
    pooled = _pooled(scores)
    if not len(pooled):
        return None
    cut = len(pooled) // 4
    return float(np.sort(pooled)[cut : len(pooled) - cut].mean())


def mean_score(scores: Scores) -> float | None:
    """The mean of all runs on all tasks; None without a run."""
    pooled = _pooled(scores)
    return float(pooled.mean()) if len(pooled) else None


def optimality_gap(scores: Scores, target: float = 1.0) -> float | None:
    """By how much the runs miss `target` on average, those above it counting as there; None without a run."""
    pooled = _pooled(scores)
    return float(target - np.minimum(pooled, target).mean()) if len(pooled) else None


def performance_profile(scores: Scores, thresholds: NDArray[Any]) -> NDArray[np.float64]:  # (T,) -> (T,)
    """The share of runs above each threshold (section 4.2 there), each task weighing the same; NaN without a run."""
    shares = [(np.asarray(runs)[:, None] > thresholds).mean(axis=0) for runs in scores if len(runs)]
    return np.mean(shares, axis=0) if shares else np.full(len(thresholds), np.nan)


def probability_of_improvement(scores: Scores, others: Scores) -> float | None:
    """The chance that a run of the one is above a run of the other on a task, the mean over tasks (section 4.3 there).

    Of each task the Mann-Whitney statistic over all pairs of runs, ties counting half. Tasks in which one of them has
    no run are left out; None if none is left. Raises ValueError if the two have different numbers of tasks.
    """
    if len(scores) != len(others):
        raise ValueError(f"probability_of_improvement got {len(scores)} and {len(others)} tasks; expected as many.")
    shares = []
    for ours, theirs in zip(scores, others, strict=True):
        if len(ours) and len(theirs):
            difference = np.asarray(ours, np.float64)[:, None] - np.asarray(theirs, np.float64)[None]
            shares.append(float((difference > 0).mean() + 0.5 * (difference == 0).mean()))
    return float(np.mean(shares)) if shares else None


def stratified_interval(
    statistic: Callable[..., float | None],
    *groups: Scores,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """The percentile interval of ``statistic(*groups)``, the runs of each task of each group resampled.

    None where the statistic is None, or where no task has two runs: there is nothing to resample. With few runs such an
    interval is too narrow, more so the fewer they are. Raises ValueError for `resamples` below 1 or a `level` outside
    of (0, 1).
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"stratified_interval got resamples = {resamples}, level = {level}; expected 1 or more, 0..1.")
    if statistic(*groups) is None or all(len(runs) < 2 for group in groups for runs in group):
        return None
    values = np.empty(resamples)
    for number in range(resamples):
        drawn = [
            [np.asarray(runs)[rng.integers(0, len(runs), len(runs))] if len(runs) else runs for runs in group]
            for group in groups
        ]
        values[number] = statistic(*drawn)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def _pooled(scores: Scores) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(runs, np.float64) for runs in scores]) if len(scores) else np.zeros(0)
