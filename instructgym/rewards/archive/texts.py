"""Texts by number: one file of bytes and one of ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instructgym.errors import RunFolderError

__all__ = ["Texts"]

_BYTES, _ENDS = "texts.utf8", "texts.ends"


class Texts:
    """Texts in order; those of a saved file stay there."""

    def __init__(self) -> None:
        self._saved: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._ends: NDArray[np.int64] = np.empty(0, "<i8")
        self._new: list[bytes] = []

    def __len__(self) -> int:
        return len(self._ends) + len(self._new)

    def __getitem__(self, number: int) -> str:
        if number < len(self._ends):
            start = self._ends[number - 1] if number else 0
            return bytes(self._saved[start : self._ends[number]]).decode("utf-8", "surrogatepass")
        return self._new[number - len(self._ends)].decode("utf-8", "surrogatepass")

    def append(self, texts: Sequence[str]) -> None:
        self._new += [text.encode("utf-8", "surrogatepass") for text in texts]

    def save(self, folder: Path) -> None:
        """Write both files."""
        with (folder / _BYTES).open("wb") as file:
            self._saved.tofile(file)
            file.writelines(self._new)
        start = int(self._ends[-1]) if len(self._ends) else 0
        ends = start + np.cumsum([len(text) for text in self._new], dtype="<i8")
        with (folder / _ENDS).open("wb") as file:
            self._ends.tofile(file)
            ends.tofile(file)

    @classmethod
    def open(cls, folder: Path, count: int) -> Texts:
        """What `save` wrote. Raises `RunFolderError` if the files are not those of `count` texts."""
        texts = cls()
        path = folder / _ENDS
        if not path.exists() or path.stat().st_size != 8 * count:
            raise RunFolderError(f"{path} is not that of {count} texts: the archive was cut short.")
        if count:
            texts._ends = np.fromfile(path, "<i8")
            size = (folder / _BYTES).stat().st_size if (folder / _BYTES).exists() else 0
            if size != texts._ends[-1]:
                raise RunFolderError(
                    f"{folder / _BYTES} has {size} bytes; expected {texts._ends[-1]}: the archive was cut short."
                )
            if size:
                texts._saved = np.memmap(folder / _BYTES, np.uint8, mode="r")
        return texts
