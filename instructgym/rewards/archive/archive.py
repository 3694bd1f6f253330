"""Every instruction ever kept, and the nearest of them to a new one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from instructgym.errors import RunFolderError, UsageError
from instructgym.rewards.archive.cells import Cells, scale_of
from instructgym.rewards.archive.rows import Rows
from instructgym.rewards.archive.texts import Texts

__all__ = ["EXACT_BELOW", "Archive"]

SCHEMA = 1
EXACT_BELOW = 10_000
"""Entries up to which all are compared, and none is missed."""
_LEAST_CANDIDATES = 24
_UNIT = 1e-3
_CHUNK = 16_384
_QUERIES = 1024
_FACTS, _ROWS = "archive.json", "rows.f16"


class Archive:
    """Vectors of length 1, in the order in which they were committed, with their texts if wanted.

    Up to `exact_below` entries the neighbours are exact. Beyond it they are the best, by their half-precision rows, of
    what cells of 8-bit vectors hold near the query; half-precision rows are in files that the system maps, the cells
    are in memory (benchmarks/archive.py: recall, times and memory up to a million).

    The neighbours are a function of the entries in their order, however they were committed, saved and opened, and
    whatever was asked between. `version` counts commits. Nothing here is asynchronous, and one thread at a time may use
    it: a query takes a millisecond at most, a commit of many rows more.
    """

    def __init__(self, dim: int, *, keep_texts: bool = False, exact_below: int = EXACT_BELOW) -> None:
        if dim < 1:
            raise UsageError(f"an archive got dim = {dim}; expected 1 or more.")
        self.dim = dim
        self.version = 0
        self._exact_below = exact_below
        self._rows = Rows(dim)
        self._texts = Texts() if keep_texts else None
        self._cells: Cells | None = None
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

        Queries have length 1 (any other length scales the cosines). Cosines are those with the entries as kept, in half
        precision: within 1e-3. `k` is cut to the number of entries. Raises `UsageError` for a wrong shape, numbers that
        are not finite, or k < 1.
        """
        rows = self._checked(queries, "nearest")
        if k < 1:
            raise UsageError(f"Archive.nearest got k = {k}; expected 1 or more.")
        k = min(k, len(self))
        if not (k and len(rows)):
            return np.empty((len(rows), k), np.int64), np.empty((len(rows), k), np.float32)
        parts = [rows[start : start + _QUERIES] for start in range(0, len(rows), _QUERIES)]
        found = [self._nearest(part, k) for part in parts]
        return np.concatenate([ids for ids, _ in found]), np.concatenate([cosines for _, cosines in found])

    def commit(self, vectors: ArrayLike, texts: Sequence[str] | None = None) -> None:  # (m, dim)
        """Take rows of length 1 in their order; the version goes up by one, also for no rows.

        Raises `UsageError` for a wrong shape, rows of another length (a text without a character has none: leave it
        out), numbers that are not finite, or texts that are missing, too many or not kept; `RunFolderError` if the disk
        is full. After an error nothing was taken.
        """
        rows = self._checked(vectors, "commit") if len(np.shape(vectors)) != 1 or np.size(vectors) else self._none()
        off = np.flatnonzero(np.abs(np.linalg.norm(rows, axis=1) - 1.0) > _UNIT)
        if len(off):
            raise UsageError(
                f"Archive.commit got row {off[0]} of length {np.linalg.norm(rows[off[0]]):.4g}; expected length 1."
            )
        if self._texts is None and texts is not None:
            raise UsageError("Archive.commit got texts; this archive keeps none, make it with keep_texts=True.")
        if self._texts is not None and (texts is None or len(texts) != len(rows)):
            got = "none" if texts is None else str(len(texts))
            raise UsageError(f"Archive.commit got {len(rows)} rows and {got} texts; this archive keeps texts.")
        self._rows.reserve(len(rows))
        for start in range(0, len(rows), _CHUNK):
            self._rows.append(rows[start : start + _CHUNK])
        if self._texts is not None and texts is not None:
            self._texts.append(texts)
        self._dense = None
        if len(self) > self._exact_below:
            cells = self._cells = self._cells or Cells(self.dim, scale_of(self._first_rows()))
            for start in range(len(cells), len(self), _CHUNK):
                # The cells get what a query is compared with: the rounded rows.
                cells.add(self._rows.take(np.arange(start, min(start + _CHUNK, len(self)))))
        self.version += 1

    def vectors(self, ids: ArrayLike) -> NDArray[np.float32]:  # (...,) -> (..., dim)
        """Entries by id, rounded to half precision. Raises `UsageError` for an id that none has."""
        wanted = np.asarray(ids, np.int64)
        outside = wanted[(wanted < 0) | (wanted >= len(self))]
        if outside.size:
            raise UsageError(f"this archive has {len(self)} entries and none with the id {outside.flat[0]}.")
        return self._rows.take(wanted)

    def text(self, entry: int) -> str:
        """The text of an entry. Raises `UsageError` if this archive keeps none, or has no such entry."""
        if self._texts is None:
            raise UsageError("this archive keeps no texts; make it with keep_texts=True.")
        if not 0 <= entry < len(self):
            raise UsageError(f"this archive has {len(self)} entries and none with the id {entry}.")
        return self._texts[entry]

    # --- on disk ------------------------------------------------------------------------------------------------------
    def save(self, folder: Path) -> None:
        """Write the archive to `folder`, which it replaces as a whole; readable by its owner only.

        What is in memory is dropped for the files that were written, and read again if more is committed. Raises
        `RunFolderError` if the files cannot be written: then a folder that was there is as it was.
        """
        folder = Path(folder)
        fresh, old = _beside(folder, "new"), _beside(folder, "old")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(mode=0o700)
            self._write(fresh)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)  # `open` finds it there if this process ends before the next line
            fresh.rename(folder)
        except OSError as error:
            shutil.rmtree(fresh, ignore_errors=True)
            raise RunFolderError(f"cannot write the archive to '{folder}': {_words(error)}.") from error
        shutil.rmtree(old, ignore_errors=True)
        self._adopt(folder, len(self), self._cells.scale if self._cells is not None else None)

    @classmethod
    def open(cls, folder: Path) -> Archive:
        """What `save` wrote. Files are mapped, not read; commits leave them alone, and only `save` changes them.

        Raises `RunFolderError` for a folder that holds no archive, one of another schema, or files cut short.
        """
        folder = Path(folder)
        if not folder.exists() and _beside(folder, "old").exists():
            folder = _beside(folder, "old")
        try:
            facts = json.loads((folder / _FACTS).read_text("utf-8"))
            schema = int(facts["schema"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{folder} holds no archive that can be read: {error}.") from error
        if schema != SCHEMA:
            raise RunFolderError(
                f"the archive in {folder} is of schema {schema}; this version reads schema {SCHEMA}. Build it again."
            )
        try:
            archive = cls(int(facts["dim"]), keep_texts=facts["keep_texts"], exact_below=int(facts["exact_below"]))
            archive.version, count = int(facts["version"]), int(facts["count"])
            scale = float(facts["scale"]) if count > archive._exact_below else None
            sizes = {folder / str(name): int(size) for name, size in facts["bytes"].items()}
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(f"{folder} holds no archive that can be read: {error!r}.") from error
        for path, size in sizes.items():
            if not path.exists():
                raise RunFolderError(f"{path} is missing: the archive was cut short.")
            if (found := path.stat().st_size) != size:
                raise RunFolderError(f"{path} has {found} bytes; expected {size}: the archive was cut short.")
        try:
            archive._adopt(folder, count, scale)
        except ValueError as error:  # numpy, of a file that is shorter than `count` rows
            raise RunFolderError(f"{folder} does not hold {count} rows, as {_FACTS} says: {error}.") from error
        return archive

    # --- inside -------------------------------------------------------------------------------------------------------
    def _write(self, folder: Path) -> None:
        self._rows.save(folder / _ROWS)
        if self._texts is not None:
            self._texts.save(folder)
        if self._cells is not None:
            self._cells.save(folder)
        facts = {
            "schema": SCHEMA,
            "dim": self.dim,
            "count": len(self),
            "version": self.version,
            "keep_texts": self.keeps_texts,
            "exact_below": self._exact_below,
            "scale": None if self._cells is None else self._cells.scale,
            "bytes": {path.name: path.stat().st_size for path in folder.iterdir()},
        }
        (folder / _FACTS).write_text(json.dumps(facts, sort_keys=True) + "\n", "utf-8")
        for path in folder.iterdir():
            path.chmod(0o600)
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def _adopt(self, folder: Path, count: int, scale: float | None) -> None:
        """Stand on the files of `folder`."""
        self._rows = Rows(self.dim, folder / _ROWS, count)
        if self._texts is not None:
            self._texts = Texts.open(folder, count)
        self._cells = Cells(self.dim, scale, folder) if scale is not None else None

    def _nearest(
        self, rows: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:  # (n, dim) -> (n, k), (n, k)
        if self._cells is not None:
            found = self._cells.candidates(rows, max(2 * k, _LEAST_CANDIDATES))
            cosines = np.einsum("nd,ncd->nc", rows, self._rows.take(np.maximum(found, 0)))
            return _ranked(found, np.where(found < 0, -np.inf, cosines).astype(np.float32), k)
        cosines = rows @ self._exact().T
        if k == len(self):
            return _ranked(np.broadcast_to(np.arange(k), cosines.shape), cosines, k)
        # The k-th cosine of each row: everything below it is out, ties stay in.
        least = np.partition(cosines, -k, axis=1)[:, -k]
        picked = [np.flatnonzero(row >= bound) for row, bound in zip(cosines, least, strict=True)]
        return _ranked_ragged(picked, cosines, k)

    def _first_rows(self) -> NDArray[np.float32]:
        """Those that are there whenever the cells begin, however many came with one commit."""
        return self._rows.take(np.arange(min(max(self._exact_below, 1), _CHUNK)))

    def _exact(self) -> NDArray[np.float32]:
        if self._dense is None:
            self._dense = self._rows.all()
        return self._dense

    def _none(self) -> NDArray[np.float32]:
        return np.empty((0, self.dim), np.float32)

    def _checked(self, vectors: ArrayLike, where: str) -> NDArray[np.float32]:
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise UsageError(f"Archive.{where} got an array of shape {rows.shape}; expected (n, {self.dim}).")
        if not np.isfinite(rows).all():
            raise UsageError(f"Archive.{where} got a number that is not finite; expected rows of length 1.")
        return rows


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _words(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


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
