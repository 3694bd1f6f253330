"""Diversity of a set as the sum of how novel each of its items is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["novelsum"]

_BLOCK = 512
_REGULARISER = 1e-9


def novelsum(
    embeddings: NDArray[Any],  # (n, d) rows of length 1
    reference: NDArray[Any] | None = None,  # (m, d) rows of length 1
    *,
    neighbours: int = 10,
    density_power: float = 0.5,
    proximity_power: float = 1.0,
    count_self: bool = True,
) -> float | None:
    """NovelSum (Yang et al., arXiv 2502.17184), as its authors' released code computes it.

    For each item its cosine distances to all items of the set, sorted and averaged with the weights
    ``1 / rank ** proximity_power``, times the item's density ``1 / (mean squared distance to its nearest in the
    reference) ** density_power``; then the mean over items. Near items weigh most, and in a crowded region the same
    distance counts for more. The density is that of the item itself, as in the code; the paper's own formula was not
    compared.

    Args:
        reference: what density is estimated in (duplicates once); the set itself if None.
        neighbours: K of the density, the item itself not among them.
        density_power, proximity_power: 0 leaves the one or the other out; the authors try 0 to 0.5 and 0 to 2.
        count_self: whether the item itself, at distance 0, has rank 1, as in the code of the published numbers. Their
            later code leaves it out by default, so that the nearest other item weighs 1 and not 1/2.

    Returns:
        None for fewer than two rows, or a reference with fewer than two different rows. O(n (n + m) d).

    Raises:
        ValueError: an array is not two-dimensional, the dimensions differ, or `neighbours` is below 1.
    """
    others = embeddings if reference is None else reference
    if embeddings.ndim != 2 or others.ndim != 2 or embeddings.shape[1] != others.shape[1]:
        raise ValueError(
            f"novelsum got arrays of shape {embeddings.shape} and {others.shape}; expected (n, d), (m, d)."
        )
    if neighbours < 1:
        raise ValueError(f"novelsum got neighbours = {neighbours}; expected 1 or more.")
    rows = embeddings.astype(np.float64)
    crowd = np.unique(others.astype(np.float64), axis=0)
    if len(rows) < 2 or len(crowd) < 2:
        return None
    k = min(neighbours, len(crowd) - 1)
    counted = len(rows) if count_self else len(rows) - 1
    weights = 1.0 / np.arange(1, counted + 1) ** proximity_power
    weights /= weights.sum()
    total = 0.0
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        squared = np.maximum(2.0 - 2.0 * (block @ crowd.T), 0.0)
        near = np.partition(squared, k, axis=1)[:, : k + 1]
        # The nearest is the item itself where it is in the reference; the released code drops it in any case.
        mean = (near.sum(axis=1) - near.min(axis=1)) / k
        density = 1.0 / (mean + _REGULARISER) ** density_power
        distances = np.maximum(1.0 - block @ rows.T, 0.0)
        if not count_self:
            places = np.arange(len(block))
            distances[places, places + start] = np.inf
        distances.sort(axis=1)
        total += float((density * (distances[:, :counted] @ weights)).sum())
    return total / len(rows)
