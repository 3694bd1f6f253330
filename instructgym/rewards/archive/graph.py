"""Approximate neighbours in a graph of 8-bit vectors (HNSW, Malkov and Yashunin, arXiv 1603.09320; by usearch)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.errors import RunFolderError

__all__ = ["Graph", "scale_of"]

CONNECTIVITY = 16
EXPANSION_ADD = 64
EXPANSION_SEARCH = 64
_CHUNK = 4096
_FITTING = 0.9999
_GRAPH, _CODES = "graph.usearch", "graph.codes"


class Graph:
    """Candidates for the nearest rows of length 1, by their inner product.

    Components are stored as 8-bit integers times one scale, `scale_of` the first rows. (By usearch's own scale the
    components of a unit vector of 384 dimensions fall on a dozen steps.) Rows go in one after another on one thread, so
    that equal rows in equal order are an equal graph.

    Rows that are equal in 8 bits are one node: as many nodes, more copies than a node has links would link to each
    other alone, and cut themselves and what lies behind them off.

    A graph of a folder is mapped until rows are added, and read into memory then. The mapping outlives the file's name.
    Raises `RunFolderError` if the folder holds no graph.
    """

    def __init__(self, dim: int, scale: float, folder: Path | None = None) -> None:
        self.scale = scale
        self._dim = dim
        self._index = _open(dim)
        self._codes = np.empty(0, "<u8")  # a hash of each row's 8-bit form
        self._count = 0
        self._copies: dict[int, list[int]] = {}  # of a row that is a node: later rows that are equal to it
        self._nodes: dict[int, int] | None = {}  # the row that is the node of a hash; None: not made yet
        self._mapped: NDArray[np.uint8] | None = None
        if folder is not None:
            self._open(folder)

    def __len__(self) -> int:
        return self._count

    def add(self, vectors: NDArray[np.float32]) -> None:  # (m, dim)
        """Rows take the next numbers."""
        if self._mapped is not None:
            self._index = _open(self._dim)
            self._index.load(self._mapped)
            self._mapped = None
        if self._nodes is None:
            codes, rows = np.unique(self._codes, return_index=True)
            self._nodes = dict(zip(codes.tolist(), rows.tolist(), strict=True))
        for start in range(0, len(vectors), _CHUNK):
            part = self._eight_bits(vectors[start : start + _CHUNK])
            codes = _hashes(part)
            new = []
            for row, code in enumerate(codes.tolist()):
                node = self._nodes.setdefault(code, self._count + row)
                if node == self._count + row:
                    new.append(row)
                else:
                    self._copies.setdefault(node, []).append(self._count + row)
            if new:
                self._index.add(np.array(new, np.uint64) + np.uint64(self._count), part[new], threads=1)
            self._keep(codes)

    def candidates(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:  # (n, dim) -> (n, c >= count)
        """Numbers of rows near each query, in no particular order; -1 where fewer were found."""
        found = self._index.search(
            self._eight_bits(queries), min(count, len(self._index)), threads=0 if len(queries) > 1 else 1
        )
        nodes = np.atleast_2d(np.asarray(found.keys)).astype(np.int64)
        counts = np.atleast_1d(np.asarray(getattr(found, "counts", [nodes.shape[1]] * len(nodes))))
        nodes[np.arange(nodes.shape[1])[None] >= counts[:, None]] = -1
        if not self._copies:
            return nodes
        copies = [[copy for node in row for copy in self._copies.get(node, ())[:count]] for row in nodes.tolist()]
        both = np.full((len(nodes), nodes.shape[1] + max(map(len, copies), default=0)), -1, np.int64)
        both[:, : nodes.shape[1]] = nodes
        for row, more in enumerate(copies):
            both[row, nodes.shape[1] : nodes.shape[1] + len(more)] = more
        return both

    def save(self, folder: Path) -> None:
        """Write the graph to files of `folder`."""
        if self._mapped is not None:
            self._mapped.tofile(folder / _GRAPH)
        else:
            self._index.save(str(folder / _GRAPH))
        self._codes[: self._count].tofile(folder / _CODES)

    def _open(self, folder: Path) -> None:
        try:
            self._mapped = np.memmap(folder / _GRAPH, np.uint8, mode="r")
            self._index.view(self._mapped)
            self._codes = np.fromfile(folder / _CODES, "<u8")
        except (OSError, ValueError, RuntimeError) as error:
            raise RunFolderError(f"{folder} holds no graph that can be read: {error}. Build it again.") from error
        self._count, self._nodes = len(self._codes), None
        _, first, inverse = np.unique(self._codes, return_index=True, return_inverse=True)
        node = first[inverse]
        for row in np.flatnonzero(node != np.arange(self._count)).tolist():
            self._copies.setdefault(int(node[row]), []).append(row)

    def _eight_bits(self, vectors: NDArray[np.float32]) -> NDArray[np.int8]:
        scaled = np.clip(np.rint(vectors * np.float32(self.scale)), -127, 127)
        result: NDArray[np.int8] = scaled.astype(np.int8)
        return result

    def _keep(self, codes: NDArray[np.uint64]) -> None:
        wanted = self._count + len(codes)
        if wanted > len(self._codes):
            grown = np.empty(max(wanted, 2 * len(self._codes)), "<u8")
            grown[: self._count] = self._codes[: self._count]
            self._codes = grown
        self._codes[self._count : wanted] = codes
        self._count = wanted


def _open(dim: int) -> Any:
    from usearch.index import Index

    return Index(
        ndim=dim,
        metric="ip",
        dtype="i8",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
        enable_key_lookups=False,  # nothing is asked by its key
    )


def scale_of(rows: NDArray[np.float32]) -> float:  # (n, dim)
    """The steps of 8 bits for a component of 1, so that all but one in 10,000 of the components of `rows` fit."""
    return float(127.0 / max(np.quantile(np.abs(rows), _FITTING), 1e-6))


def _hashes(codes: NDArray[np.int8]) -> NDArray[np.uint64]:
    """64 bits a row: among a million rows two different ones are taken for equal with a probability of 3e-8."""
    digests = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in codes)
    return np.frombuffer(digests, "<u8")
