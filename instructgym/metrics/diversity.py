"""How far apart the texts of a set are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.metrics.text import distinct_n

__all__ = ["distinct_2", "mean_pairwise_distance"]


def mean_pairwise_distance(embeddings: NDArray[Any]) -> float | None:  # (n, d) rows of length 1 -> float
    """The mean of 1 - cosine over all n(n-1)/2 pairs, exact, in O(n d).

    The sum of all cosines, each pair twice and each row with itself, is the squared length of the sum of the rows.
    None for fewer than two rows. Raises ValueError if the array is not two-dimensional.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"mean_pairwise_distance got an array of shape {embeddings.shape}; expected (n, d).")
    n = len(embeddings)
    if n < 2:
        return None
    rows = embeddings.astype(np.float64)
    total = rows.sum(axis=0)
    cosines = float(total @ total) - float(np.einsum("nd,nd->", rows, rows))
    return 1.0 - cosines / (n * (n - 1))


def distinct_2(texts: Iterable[str]) -> float | None:
    """Distinct bigrams / all bigrams over a set of texts; None if there is no bigram."""
    return distinct_n(texts, 2)
