"""Rank correlations; what is undefined is None."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["kendall", "spearman", "spearman_interval"]


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rho, ties at their mean rank; None for fewer than two pairs or a constant side.

    Raises ValueError for sides of different lengths, and for values that are not finite: a missing value is the
    caller's to leave out, and to count.
    """
    return _of("spearmanr", x, y)


def kendall(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b; None for fewer than two pairs or a constant side. Raises as `spearman` does."""
    return _of("kendalltau", x, y)


def spearman_interval(
    x: Sequence[float], y: Sequence[float], *, resamples: int = 1000, rng: np.random.Generator
) -> tuple[float, float] | None:
    """The 95% percentile bootstrap of Spearman's rho over pairs; None for fewer than three, or where rho is undefined.

    Resamples in which a side is constant have no rho and are left out. Raises as `spearman` does.
    """
    if spearman(x, y) is None or len(x) < 3:
        return None
    from scipy.stats import rankdata

    rows = rng.integers(len(x), size=(resamples, len(x)))
    one, two = (_centred(rankdata(np.asarray(side, dtype=np.float64)[rows], axis=1)) for side in (x, y))
    spread = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
    found = (one * two).sum(axis=1)[spread > 0] / spread[spread > 0]
    if not len(found):
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _centred(ranks: NDArray[np.float64]) -> NDArray[np.float64]:  # (resamples, n) -> (resamples, n)
    mean: float = (ranks.shape[1] + 1) / 2  # of any ranks with ties at their mean; so a constant row is exactly zero
    return ranks - mean


def _of(name: str, x: Sequence[float], y: Sequence[float]) -> float | None:
    if len(x) != len(y):
        raise ValueError(f"a correlation got {len(x)} and {len(y)} values; expected as many of one as of the other.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a correlation got a value that is not finite; leave missing values out.")
    if len(x) < 2 or min(x) == max(x) or min(y) == max(y):
        return None
    from scipy import stats

    return float(getattr(stats, name)(x, y).statistic)
