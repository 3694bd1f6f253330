"""Vectors in half precision, in files that the system maps: page cache and not the process's memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instructgym.errors import RunFolderError

__all__ = ["Rows"]

_IN_MEMORY_BYTES = 16 << 20
_DTYPE = np.dtype("<f2")


class Rows:
    """An array (n, dim) of float16 that grows at its end.

    `base` rows are those of a saved file, read-only. What is appended stays in memory up to 16 MiB and then goes to an
    unnamed temporary file, so that nothing changes a saved file and nothing is left behind.
    """

    def __init__(self, dim: int, base: Path | None = None, count: int = 0) -> None:
        self.dim = dim
        self._file: int | None = None
        self._base: NDArray[np.float16] = np.empty((0, dim), _DTYPE)
        if base is not None and count:
            self._base = np.asarray(np.memmap(base, dtype=_DTYPE, mode="r", shape=(count, dim)))
        self._tail: NDArray[np.float16] = np.empty((0, dim), _DTYPE)
        self._used = 0

    def __len__(self) -> int:
        return len(self._base) + self._used

    def reserve(self, count: int) -> None:
        """Make room for `count` more rows. Raises `RunFolderError` if the disk has none; the rows stay as they were."""
        wanted = self._used + count
        if wanted > len(self._tail):
            self._grow(max(wanted, self._used + self._used // 2, 256))

    def append(self, vectors: NDArray[np.float32]) -> None:  # (m, dim)
        """Add rows, rounded to half precision."""
        self.reserve(len(vectors))
        self._tail[self._used : self._used + len(vectors)] = vectors
        self._used += len(vectors)

    def take(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:  # (...,) -> (..., dim)
        """Rows by number, in single precision."""
        flat = ids.reshape(-1)
        old = flat < len(self._base)
        if old.all():
            rows = _single(self._base[flat])
        else:
            rows = np.empty((len(flat), self.dim), np.float32)
            rows[old] = _single(self._base[flat[old]])
            rows[~old] = _single(self._tail[flat[~old] - len(self._base)])
        return rows.reshape(*ids.shape, self.dim)

    def all(self) -> NDArray[np.float32]:  # (n, dim)
        """Every row in single precision; for small archives."""
        return _single(np.concatenate([self._base, self._tail[: self._used]]))

    def save(self, path: Path) -> None:
        """Write all rows to `path`."""
        with path.open("wb") as file:
            for part in (self._base, self._tail[: self._used]):
                if len(part):
                    part.tofile(file)

    def _grow(self, capacity: int) -> None:
        if capacity * self.dim * _DTYPE.itemsize <= _IN_MEMORY_BYTES:
            grown: NDArray[np.float16] = np.empty((capacity, self.dim), _DTYPE)
            grown[: self._used] = self._tail[: self._used]
            self._tail = grown
            return
        try:
            self._grow_file(capacity)
        except OSError as error:
            raise RunFolderError(
                f"the archive's temporary file in '{tempfile.gettempdir()}' cannot grow to {capacity:,} rows: "
                f"{error.strerror or error}. Free some space, or set TMPDIR to a folder that has it."
            ) from error

    def _grow_file(self, capacity: int) -> None:
        file = self._file
        if file is None:
            file, name = tempfile.mkstemp(prefix="instructgym-archive-")
            os.unlink(name)
        try:
            # Blocks are taken now: a full disk is an error here, where a write into a mapped hole kills the process.
            os.posix_fallocate(file, 0, capacity * self.dim * _DTYPE.itemsize)
            with os.fdopen(os.dup(file), "r+b") as stream:
                tail = np.memmap(stream, dtype=_DTYPE, mode="r+", shape=(capacity, self.dim))
        except OSError:
            if self._file is None:
                os.close(file)
            raise
        if self._file is None:
            tail[: self._used] = self._tail[: self._used]
        self._file, self._tail = file, tail

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _single(rows: NDArray[np.float16]) -> NDArray[np.float32]:
    """The same numbers in single precision, in a fifth of `astype`'s time."""
    import numkong

    return np.asarray(numkong.astype(rows, "float32")) if rows.size else rows.astype(np.float32)
