"""Approximate neighbours in a graph of 8-bit vectors (HNSW, Malkov and Yashunin, arXiv 1603.09320; by usearch)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Graph"]

CONNECTIVITY = 16
EXPANSION_ADD = 64
EXPANSION_SEARCH = 64
_CHUNK = 4096
_FITTING = 0.9999


class Graph:
    """Candidates for the nearest rows of length 1, by their inner product.

    Components are stored as 8-bit integers times one scale, taken from the first rows so that all but one in 10,000 of
    theirs fit. (By usearch's own scale the components of a unit vector of 384 dimensions fall on a dozen steps.) Rows
    go in one after another on one thread, so that equal rows in equal order are an equal graph.
    """

    def __init__(self, dim: int, scale: float | None = None) -> None:
        self._index = _open(dim)
        self.scale = scale

    def __len__(self) -> int:
        return len(self._index)

    def add(self, vectors: NDArray[np.float32]) -> None:  # (m, dim)
        """Rows take the next numbers."""
        for start in range(0, len(vectors), _CHUNK):
            if self.scale is None:
                self.scale = float(127.0 / max(np.quantile(np.abs(vectors), _FITTING), 1e-6))
            part = self._eight_bits(vectors[start : start + _CHUNK])
            first = len(self._index)
            self._index.add(np.arange(first, first + len(part), dtype=np.uint64), part, threads=1)

    def candidates(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:  # (n, dim) -> (n, count)
        """Numbers of rows near each query, in no particular order; -1 where fewer were found."""
        found = self._index.search(
            self._eight_bits(queries), min(count, len(self)), threads=0 if len(queries) > 1 else 1
        )
        keys = np.atleast_2d(np.asarray(found.keys)).astype(np.int64)
        counts = np.atleast_1d(np.asarray(getattr(found, "counts", [keys.shape[1]] * len(keys))))
        keys[np.arange(keys.shape[1])[None] >= counts[:, None]] = -1
        return keys

    def _eight_bits(self, vectors: NDArray[np.float32]) -> NDArray[np.int8]:
        scaled = np.clip(np.rint(vectors * np.float32(self.scale or 1.0)), -127, 127)
        result: NDArray[np.int8] = scaled.astype(np.int8)
        return result

    def save(self, path: Path) -> None:
        """Write the graph to `path`."""
        self._index.save(str(path))

    def load(self, path: Path) -> None:
        """Read what `save` wrote into this graph."""
        self._index.load(str(path))


def _open(dim: int) -> Any:
    from usearch.index import Index

    return Index(
        ndim=dim,
        metric="ip",
        dtype="i8",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )
