"""How well a score tells two groups apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["auc"]


def auc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """P(a positive scores above a negative) + P(they tie) / 2, the area under the ROC curve (Mann and Whitney 1947).

    In 0..1, 0.5 for a score that tells nothing; None if a side is empty. O((n + m) log(n + m)). Raises ValueError for a
    score that is NaN, which is neither above nor below.
    """
    if not len(positive) or not len(negative):
        return None
    below = np.sort(np.asarray(negative, dtype=np.float64))
    above = np.asarray(positive, dtype=np.float64)
    if np.isnan(below).any() or np.isnan(above).any():
        raise ValueError("auc got a score that is NaN; leave missing scores out.")
    wins = np.searchsorted(below, above, side="left").sum()
    ties = np.searchsorted(below, above, side="right").sum() - wins
    return float((wins + ties / 2) / (len(above) * len(below)))
