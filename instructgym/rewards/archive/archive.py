"""Every instruction ever kept, and the nearest of them to a new one."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from instructgym.errors import RunFolderError, UsageError
from instructgym.rewards.archive.graph import Graph
from instructgym.rewards.archive.rows import Rows
from instructgym.rewards.archive.texts import Texts

__all__ = ["EXACT_BELOW", "Archive"]

SCHEMA = 1
EXACT_BELOW = 10_000
"""Entries up to which all are compared: as fast as a graph there, and exact."""
_LEAST_CANDIDATES = 24
_UNIT = 1e-3
_CHUNK = 16_384


class Archive:
    """Vectors of length 1, in the order in which they were committed, with their texts if wanted.

    Up to `exact_below` entries the neighbours are exact. Beyond it they are the best, by their half-precision rows, of
    what a graph of 8-bit vectors holds near the query; rows are in files that the system maps, the graph is in memory
    (benchmarks/archive.py: recall, times and memory up to a million).

    The neighbours are a function of what was committed, saved and opened in which order. `version` counts commits.
    Nothing here is asynchronous: a query takes a millisecond at most, a commit of many rows more.
    """

    def __init__(self, dim: int, *, keep_texts: bool = False, exact_below: int = EXACT_BELOW) -> None:
        if dim < 1:
            raise UsageError(f"an archive got dim = {dim}; expected 1 or more.")
        self.dim = dim
        self.version = 0
        self._exact_below = exact_below
        self._rows = Rows(dim)
        self._texts = Texts() if keep_texts else None
        self._graph: Graph | None = None
        self._graph_file: Path | None = None
        self._scale: float | None = None
        self._dense: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def keeps_texts(self) -> bool:
        """Whether `text` can be asked."""
        return self._texts is not None

    def nearest(
        self, queries: ArrayLike, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:  # (n, dim) -> (n, k), (n, k)
        """Ids and cosines of the k nearest entries to each query, best first, equal ones by id.

        Queries have length 1 (any other length scales the cosines). `k` is cut to the number of entries. Raises
        `UsageError` for a wrong shape, a number that is not finite, or k < 1.
        """
        rows = self._checked(queries, "nearest")
        if k < 1:
            raise UsageError(f"Archive.nearest got k = {k}; expected 1 or more.")
        k = min(k, len(self))
        if k == 0:
            return np.empty((len(rows), 0), np.int64), np.empty((len(rows), 0), np.float32)
        if len(self) <= self._exact_below:
            cosines = rows @ self._exact().T
            ids = np.broadcast_to(np.arange(len(self)), cosines.shape)
            if k < len(self):  # the k-th cosine of each row: everything below it is out, ties stay in
                least = np.partition(cosines, -k, axis=1)[:, -k]
                picked = [np.flatnonzero(row >= bound) for row, bound in zip(cosines, least, strict=True)]
                return _ranked_ragged(picked, cosines, k)
            return _ranked(ids, cosines, k)
        found = self._opened_graph().candidates(rows, max(2 * k, _LEAST_CANDIDATES))
        cosines = np.einsum("nd,ncd->nc", rows, self._rows.take(np.maximum(found, 0)))
        return _ranked(found, np.where(found < 0, -np.inf, cosines).astype(np.float32), k)

    def commit(self, vectors: ArrayLike, texts: Sequence[str] | None = None) -> None:  # (m, dim)
        """Take rows of length 1 in their order; the version goes up by one, also for no rows.

        Raises `UsageError` for a wrong shape, rows of another length, numbers that are not finite, or texts that are
        missing or too many.
        """
        rows = self._checked(vectors, "commit") if len(np.shape(vectors)) != 1 or np.size(vectors) else self._none()
        off = np.flatnonzero(np.abs(np.linalg.norm(rows, axis=1) - 1.0) > _UNIT)
        if len(off):
            raise UsageError(
                f"Archive.commit got row {off[0]} of length {np.linalg.norm(rows[off[0]]):.4g}; expected length 1."
            )
        if self._texts is not None:
            if texts is None or len(texts) != len(rows):
                got = "none" if texts is None else str(len(texts))
                raise UsageError(f"Archive.commit got {len(rows)} rows and {got} texts; this archive keeps texts.")
            self._texts.append(texts)
        had_graph = len(self) > self._exact_below
        before = len(self)
        for start in range(0, len(rows), _CHUNK):
            self._rows.append(rows[start : start + _CHUNK])
        self._dense = None
        if len(self) > self._exact_below:
            graph = self._opened_graph() if had_graph else self._new_graph()
            for start in range(before if had_graph else 0, len(self), _CHUNK):
                # The graph gets what a query is compared with: the rounded rows.
                graph.add(self._rows.take(np.arange(start, min(start + _CHUNK, len(self)))))
        self.version += 1

    def vectors(self, ids: ArrayLike) -> NDArray[np.float32]:  # (...,) -> (..., dim)
        """Entries by id, rounded to half precision."""
        return self._rows.take(np.asarray(ids, np.int64))

    def text(self, entry: int) -> str:
        """The text of an entry. Raises `UsageError` if this archive keeps none."""
        if self._texts is None:
            raise UsageError("this archive keeps no texts; make it with keep_texts=True.")
        return self._texts[entry]

    # --- on disk ------------------------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write the archive to `folder`, which it replaces as a whole; readable by its owner only."""
        folder = Path(folder)
        fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        fresh.mkdir(parents=True, mode=0o700)
        self._rows.save(fresh / "rows.f16")
        if self._texts is not None:
            self._texts.save(fresh)
        if len(self) > self._exact_below:
            graph = self._opened_graph()
            graph.save(fresh / "graph.usearch")
            self._scale = graph.scale
        facts = {
            "schema": SCHEMA,
            "dim": self.dim,
            "count": len(self),
            "version": self.version,
            "keep_texts": self.keeps_texts,
            "exact_below": self._exact_below,
            "scale": self._scale,
        }
        (fresh / "archive.json").write_text(json.dumps(facts, sort_keys=True) + "\n", "utf-8")
        for path in fresh.iterdir():
            path.chmod(0o600)
        old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def open(cls, folder: Path) -> Archive:
        """What `save` wrote. Rows are mapped, the graph is read when it is first needed; commits leave the files alone.

        Raises `RunFolderError` for a folder that holds no archive, one of another schema, or files cut short.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / "archive.json").read_text("utf-8"))
            schema, dim, count = int(facts["schema"]), int(facts["dim"]), int(facts["count"])
            keep_texts, exact_below = bool(facts["keep_texts"]), int(facts["exact_below"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{folder} holds no archive that can be read: {error}.") from error
        if schema != SCHEMA:
            raise RunFolderError(
                f"the archive in {folder} is of schema {schema}; this version reads schema {SCHEMA}. Build it again."
            )
        archive = cls(dim, keep_texts=keep_texts, exact_below=exact_below)
        archive.version = int(facts["version"])
        rows = folder / "rows.f16"
        expected = {rows: count * dim * 2}
        for path, size in expected.items():
            found = path.stat().st_size if path.exists() else 0
            if found != size:
                raise RunFolderError(f"{path} has {found} bytes; expected {size}: the archive was cut short.")
        archive._rows = Rows(dim, rows, count)
        archive._scale = facts.get("scale")
        if keep_texts:
            archive._texts = Texts.open(folder, count)
        if count > exact_below:
            archive._graph_file = folder / "graph.usearch"
            if not archive._graph_file.exists():
                raise RunFolderError(f"{archive._graph_file} is missing: the archive was cut short.")
        return archive

    # --- inside -------------------------------------------------------------------------------------------------------
    def _exact(self) -> NDArray[np.float32]:
        if self._dense is None:
            self._dense = self._rows.all()
        return self._dense

    def _new_graph(self) -> Graph:
        self._graph = Graph(self.dim, self._scale)
        return self._graph

    def _opened_graph(self) -> Graph:
        if self._graph is None:
            graph = self._new_graph()
            if self._graph_file is not None:
                graph.load(self._graph_file)
                self._graph_file = None
        assert self._graph is not None
        return self._graph

    def _none(self) -> NDArray[np.float32]:
        return np.empty((0, self.dim), np.float32)

    def _checked(self, vectors: ArrayLike, where: str) -> NDArray[np.float32]:
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise UsageError(f"Archive.{where} got an array of shape {rows.shape}; expected (n, {self.dim}).")
        if not np.isfinite(rows).all():
            raise UsageError(f"Archive.{where} got a number that is not finite; expected rows of length 1.")
        return rows


def _ranked(
    ids: NDArray[np.int64], cosines: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    order = np.lexsort((ids, -cosines), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(cosines, order, axis=1)


def _ranked_ragged(
    picked: Sequence[NDArray[np.int64]], cosines: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As `_ranked`, where each row has its own candidates, k of them or more."""
    ids = np.empty((len(picked), k), np.int64)
    best = np.empty((len(picked), k), np.float32)
    for row, candidates in enumerate(picked):
        found = cosines[row, candidates]
        order = np.lexsort((candidates, -found))[:k]
        ids[row], best[row] = candidates[order], found[order]
    return ids, best
