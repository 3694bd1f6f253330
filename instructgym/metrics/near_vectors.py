"""Pairs of vectors with a high cosine: all of them, for a part of what it costs to compare all with all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["KeptVectors", "NearVectors", "embedding_pairs"]

_BLOCK = 512  # tiles that stay in the cache of a core
_TILE = 1024
_SAMPLE = 1024
_SLACK = 1e-4  # single precision must not lose a pair by the bound
_FEW = 1 / 64  # more candidates than that share of a tile, and the tile is compared as it is
_GATHER = 16_384
_CHECK_COST = 50_000  # looking at one candidate costs about so many multiplications of a tile


class NearVectors:
    """Rows of length 1, and which pairs of them have a cosine of `threshold` or more; exact.

    A row x is turned by an orthogonal matrix and split into a head of m numbers and a rest. By Cauchy and Schwarz
    ``x y <= head(x) head(y) + |rest(x)| |rest(y)|``, so m + 1 multiplications in place of d rule out most pairs, and
    only the others are looked at. The matrix holds the main directions of the rows, m is what a sample of them makes
    cheapest; where nothing is gained (few rows, or rows without main directions) all is compared.

    Raises:
        ValueError: the array is not two-dimensional, or holds NaN or infinity.
    """

    def __init__(self, vectors: NDArray[Any], threshold: float = 0.9) -> None:  # (n, d)
        if vectors.ndim != 2:
            raise ValueError(f"embedding pairs got an array of shape {vectors.shape}; expected (n, d).")
        self.rows = np.array(vectors, np.float32, order="C")
        if not np.isfinite(self.rows).all():
            raise ValueError("embedding pairs got vectors with NaN or infinity; expected rows of length 1.")
        self._threshold = threshold
        self._heads = _heads(self.rows, threshold)

    def between(self, first: slice, second: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(i, j): places in `first` and in `second`, sorted, of the pairs at or over the threshold."""
        left, right = self.rows[first], self.rows[second]
        if self._heads is not None:
            bound = self._heads[first] @ self._heads[second].T
            candidates = np.flatnonzero(bound >= self._threshold - _SLACK)
            if len(candidates) <= bound.size * _FEW:
                i, j = np.divmod(candidates, len(right))
                cosines = [
                    np.einsum("nd,nd->n", left[i[start : start + _GATHER]], right[j[start : start + _GATHER]])
                    for start in range(0, len(i), _GATHER)
                ]
                near = np.concatenate([*cosines, np.empty(0, np.float32)]) >= self._threshold
                return i[near], j[near]
        i, j = np.divmod(np.flatnonzero(left @ right.T >= self._threshold), max(len(right), 1))
        return i, j

    def move(self, places: Sequence[int], to: int) -> None:
        """Copy the rows at `places` over the rows from `to` on, which are not needed any more."""
        target = slice(to, to + len(places))
        self.rows[target] = self.rows[places]
        if self._heads is not None:
            self._heads[target] = self._heads[places]


class KeptVectors:
    """Rows taken in order, each kept or not: which of the kept ones is the first that is near to the next row?

    Work is O(n kept d) at worst, in blocks; memory is a copy of the vectors and one tile. The arguments and errors are
    those of `NearVectors`.
    """

    def __init__(self, vectors: NDArray[Any], threshold: float = 0.9) -> None:  # (n, d)
        self._near = NearVectors(vectors, threshold)
        self._kept: list[int] = []
        self._moved = 0  # so many of the kept rows stand at the front, in the place of rows that were taken
        self._start = self._stop = 0
        self._before = np.empty(0, np.int64)
        self._within = np.empty((0, 0), bool)
        self._kept_here = np.empty(0, bool)

    def first_match(self, place: int) -> int | None:
        """The first kept row that is near to the row at `place`. Ask for one place after the other."""
        if place >= self._stop:
            self._open_block(place)
        row = place - self._start
        if self._before[row] >= 0:
            return self._kept[int(self._before[row])]
        found = np.flatnonzero(self._within[row] & self._kept_here)
        return self._start + int(found[0]) if len(found) else None

    def add(self, place: int) -> None:
        """Keep the row at `place`, the one that was asked for last."""
        self._kept.append(place)
        self._kept_here[place - self._start] = True

    def _open_block(self, start: int) -> None:
        self._near.move(self._kept[self._moved :], self._moved)
        self._moved = len(self._kept)
        self._start, self._stop = start, min(start + _BLOCK, len(self._near.rows))
        block, size = slice(self._start, self._stop), self._stop - self._start
        self._before = np.full(size, -1, np.int64)
        for tile in range(0, self._moved, _TILE):
            rows, kept = self._near.between(block, slice(tile, min(tile + _TILE, self._moved)))
            which, first = np.unique(rows, return_index=True)
            new = self._before[which] < 0
            self._before[which[new]] = kept[first[new]] + tile
        self._within = np.zeros((size, size), bool)
        self._within[self._near.between(block, block)] = True
        self._kept_here = np.zeros(size, bool)


def embedding_pairs(vectors: NDArray[Any], threshold: float = 0.9) -> Iterator[tuple[int, int]]:  # (n, d)
    """All pairs (i < j) of rows of length 1 with a cosine of `threshold` or more (`NearVectors`).

    O(n^2 d) at worst; memory is one tile of 512 x 1,024 beside a copy of the vectors. Raises ValueError for another
    shape, NaN or infinity.
    """
    near = NearVectors(vectors, threshold)
    for start in range(0, len(near.rows), _BLOCK):
        for other in range(start, len(near.rows), _TILE):
            places, others = near.between(slice(start, start + _BLOCK), slice(other, other + _TILE))
            later = others + other > places + start
            yield from zip((places[later] + start).tolist(), (others[later] + other).tolist(), strict=True)


def _heads(rows: NDArray[np.float32], threshold: float) -> NDArray[np.float32] | None:
    """(n, m + 1): the head of each row and the length of its rest; None where comparing all is cheaper."""
    n, d = rows.shape
    if n < 2 * _SAMPLE:
        return None
    rng = np.random.default_rng(0)
    sample = rows[rng.choice(n, min(n, 4 * _SAMPLE), replace=False)]
    turn = np.linalg.eigh(sample.T.astype(np.float64) @ sample)[1][:, ::-1].astype(np.float32)
    one, two = sample[:_SAMPLE] @ turn, sample[-_SAMPLE:] @ turn
    true = int(np.count_nonzero(one @ two.T >= threshold))
    best, cost = 0, float(d)
    for m in (d // 12, d // 8, d // 6, d // 4, d // 3, d // 2):
        heads = [np.c_[part[:, :m], np.linalg.norm(part[:, m:], axis=1)] for part in (one, two)]
        false = int(np.count_nonzero(heads[0] @ heads[1].T >= threshold - _SLACK)) - true
        this = m + _CHECK_COST * max(false, 0) / (len(one) * len(two))
        if m and this < cost:
            best, cost = m, this
    if not best:
        return None
    result = np.empty((n, best + 1), np.float32)
    for start in range(0, n, 16 * _SAMPLE):
        turned = rows[start : start + 16 * _SAMPLE] @ turn
        result[start : start + len(turned), :best] = turned[:, :best]
        result[start : start + len(turned), best] = np.linalg.norm(turned[:, best:], axis=1)
    return result
