"""Approximate neighbours in cells of 8-bit vectors, split as they fill (after SPFresh, Xu et al., arXiv 2410.14452)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.errors import RunFolderError

__all__ = ["Cells", "scale_of"]

CAPACITY = 256
PROBES, LEAST_PROBES = 32, 4
BLOCK = 256
_CELLS_FOR_ONE_LESS = 32
_REVISED = 2 * BLOCK
_LEAST_SHARE = CAPACITY // 8
_ROUNDS = 6
_FITTING = 0.9999
_GROUP = 16
_TIE = 2.0**-31  # products are whole numbers, and numbers of rows are below 2^31
_CODES, _ORDER, _SIZES, _SUMS = "cells.codes", "cells.order", "cells.sizes", "cells.sums"


class Cells:
    """Candidates for the nearest rows of length 1, by their inner product.

    Components are stored as 8-bit integers times one scale, `scale_of` the first rows. Each row lies in the cell whose
    centroid has the largest inner product with it; a cell of `CAPACITY` rows is split in two (2-means). Cells that grew
    from few rows hold some that are nearer to a later centroid, so with each block of new rows the cells next in turn
    are revised. A query looks into `PROBES` cells, down to `LEAST_PROBES` where there are many, which are finer.

    Rows go in by blocks of `BLOCK`, those of an unfinished block are compared one by one: so the cells are a function
    of the rows in their order, however they were committed. What decides is counted in whole numbers, which no machine
    rounds differently.

    Cells of a folder are mapped until they change. The mapping outlives the file's name. Raises `RunFolderError` if the
    folder holds no cells.
    """

    def __init__(self, dim: int, scale: float, folder: Path | None = None) -> None:
        self.scale = scale
        self._dim = dim
        self._codes: list[NDArray[np.int8]] = []  # a cell's rows, then room; of a folder: no room, read-only
        self._rows: list[NDArray[np.int32]] = []  # their numbers
        self._sizes = np.empty(0, np.int64)
        self._sums = np.empty((0, dim), np.int64)
        self._centroids = np.empty((0, dim), np.int8)
        self._packed: Any = None  # the centroids, as the library wants them; None: not made yet
        self._fresh = np.empty((0, dim), np.int8)
        self._placed = 0
        self._turn = 0
        if folder is not None:
            self._open(folder)

    def __len__(self) -> int:
        return self._placed + len(self._fresh)

    def add(self, vectors: NDArray[np.float32]) -> None:  # (m, dim)
        """Rows take the next numbers."""
        self._fresh = np.concatenate([self._fresh, self._eight_bits(vectors)])
        whole = len(self._fresh) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            block = self._fresh[start : start + BLOCK]
            self._place(block, np.arange(self._placed, self._placed + BLOCK, dtype=np.int32), self._nearest(block))
            self._placed += BLOCK
            self._revise()
        self._fresh = self._fresh[whole:].copy()

    def candidates(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:  # (n, dim) -> (n, count)
        """Numbers of `count` rows near each query, in no particular order; -1 where there are no more rows."""
        import numkong

        codes = self._eight_bits(queries)
        probed = self._probed(codes, min(count, len(self)))
        sizes = self._sizes[probed].tolist()
        fresh = np.arange(self._placed, len(self), dtype=np.int32)
        beside = np.asarray(numkong.cdist(codes, self._fresh, "dot")) if len(fresh) else np.empty((len(codes), 0))
        found = np.full((len(queries), count), -1, np.int64)
        for query, cells in enumerate(probed.tolist()):
            one, dots, rows = codes[query : query + 1], [beside[query]], [fresh]
            for cell, size in zip(cells, sizes[query], strict=True):
                if size:
                    dots.append(np.asarray(numkong.cdist(one, self._codes[cell][:size], "dot"))[0])
                    rows.append(self._rows[cell][:size])
            numbers = np.concatenate(rows)
            if len(numbers) > count:
                near = np.concatenate(dots) - numbers * _TIE  # of equal ones those that came first
                numbers = numbers[np.argpartition(near, len(near) - count)[len(near) - count :]]
            found[query, : len(numbers)] = numbers
        return found

    def save(self, folder: Path) -> None:
        """Write the cells to files of `folder`."""
        with (folder / _CODES).open("wb") as codes, (folder / _ORDER).open("wb") as order:
            for cell, size in enumerate(self._sizes[: len(self._codes)].tolist()):
                self._codes[cell][:size].tofile(codes)
                self._rows[cell][:size].astype("<i4").tofile(order)
            self._fresh.tofile(codes)
        cells = len(self._codes)
        self._sums[:cells].astype("<i8").tofile(folder / _SUMS)
        np.append(self._sizes[:cells], self._turn).astype("<i8").tofile(folder / _SIZES)

    def _open(self, folder: Path) -> None:
        try:
            *sizes, self._turn = np.fromfile(folder / _SIZES, "<i8").tolist()
            codes = np.asarray(np.memmap(folder / _CODES, np.int8, mode="r")).reshape(-1, self._dim)
            order = np.fromfile(folder / _ORDER, "<i4").astype(np.int32)
            sums = np.fromfile(folder / _SUMS, "<i8").astype(np.int64).reshape(len(sizes), self._dim)
            if (
                sum(sizes) != len(order)
                or not 0 <= len(codes) - len(order) < BLOCK
                or (np.sort(order) != np.arange(len(order))).any()
            ):
                raise ValueError("its files speak of different rows")
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{folder} holds no cells that can be read: {error}. Build them again.") from error
        self._placed = len(order)
        self._fresh = np.array(codes[self._placed :])
        order.flags.writeable = False
        ends = np.cumsum(sizes)
        if sizes:
            self._codes, self._rows = np.split(codes[: self._placed], ends[:-1]), np.split(order, ends[:-1])
        self._sizes, self._sums = np.array(sizes, np.int64), sums
        self._centroids = self._rounded(sums)

    # --- inside -------------------------------------------------------------------------------------------------------
    def _dots(self, codes: NDArray[np.int8]) -> NDArray[np.int32]:  # (m, dim) -> (m, cells)
        import numkong

        if self._packed is None:
            self._packed = numkong.dots_pack(self._centroids[: len(self._codes)])
        dots: NDArray[np.int32] = np.asarray(numkong.dots_packed(np.ascontiguousarray(codes), self._packed))
        return dots

    def _nearest(self, codes: NDArray[np.int8]) -> NDArray[np.int64]:  # (m, dim) -> (m,)
        """The cell of each row; the first cell is made of them if there is none."""
        if not self._codes:
            self._append(codes[:0], np.empty(0, np.int32))
        nearest: NDArray[np.int64] = self._dots(codes).argmax(axis=1)
        return nearest

    def _probed(self, codes: NDArray[np.int8], count: int) -> NDArray[np.int64]:  # (n, dim) -> (n, cells)
        """The cells to look into for `count` rows: with more rows than that, where there are any."""
        probes = max(
            PROBES - len(self._codes) // _CELLS_FOR_ONE_LESS, LEAST_PROBES, -(-LEAST_PROBES * count // CAPACITY)
        )
        while True:
            cells = self._best_cells(codes, probes)
            if cells.shape[1] == len(self._codes) or self._sizes[cells].sum(axis=1).min() >= count:
                return cells
            probes *= 2

    def _best_cells(
        self, codes: NDArray[np.int8], count: int
    ) -> NDArray[np.int64]:  # (n, dim) -> (n, min(count, cells))
        cells = len(self._codes)
        if cells <= count:
            return np.broadcast_to(np.arange(cells), (len(codes), cells))
        dots = self._dots(codes)
        # The best lie in the groups whose maxima are best: less to sort.
        groups = cells // _GROUP
        if groups <= count:
            return _largest(dots, count)
        best = dots[:, : groups * _GROUP].reshape(len(dots), _GROUP, groups).max(axis=1)
        members = (_largest(best, count)[:, :, None] + groups * np.arange(_GROUP)).reshape(len(dots), -1)
        rest = np.broadcast_to(np.arange(groups * _GROUP, cells), (len(dots), cells % _GROUP))
        some = np.concatenate([members, rest], axis=1)
        return np.take_along_axis(some, _largest(np.take_along_axis(dots, some, 1), count), 1)

    def _place(self, codes: NDArray[np.int8], numbers: NDArray[np.int32], cells: NDArray[np.int64]) -> None:
        """Put rows into cells, splitting those that are full."""
        touched = set()
        for code, number, cell in zip(codes, numbers.tolist(), cells.tolist(), strict=True):
            if self._sizes[cell] == CAPACITY:
                other = self._split(cell)
                both = self._centroids[[cell, other]].astype(np.int32) @ code.astype(np.int32)
                cell = cell if both[0] >= both[1] else other
            self._own(cell)
            size = self._sizes[cell]
            self._codes[cell][size], self._rows[cell][size] = code, number
            self._sizes[cell] = size + 1
            self._sums[cell] += code
            touched.add(cell)
        self._centre(np.array(sorted(touched)))

    def _revise(self) -> None:
        """Move rows of the next cells in turn to where they are nearest now."""
        seen = 0
        while seen < _REVISED and seen < self._placed:
            cell = self._turn = self._turn % len(self._codes)
            self._turn += 1
            size = int(self._sizes[cell])
            seen += max(size, 1)
            if not size:
                continue
            codes = self._codes[cell][:size]
            dots = self._dots(codes)
            best = dots.argmax(axis=1)
            moved = np.flatnonzero(dots[np.arange(size), best] > dots[:, cell])
            if not len(moved):
                continue
            leaving, numbers = codes[moved], self._rows[cell][moved]
            staying = np.setdiff1d(np.arange(size), moved)
            self._own(cell)
            self._codes[cell][: len(staying)] = codes[staying]
            self._rows[cell][: len(staying)] = self._rows[cell][staying]
            self._sizes[cell] = len(staying)
            self._sums[cell] -= leaving.sum(axis=0, dtype=np.int64)
            self._centre(np.array([cell]))
            self._place(leaving, numbers, best[moved])

    def _split(self, cell: int) -> int:
        """Halve a cell by 2-means; the number of the new one."""
        codes, rows = self._codes[cell][:CAPACITY].copy(), self._rows[cell][:CAPACITY].copy()
        exact = codes.astype(np.float32)  # products of 8-bit numbers and sums of them are whole numbers below 2^24
        one = codes[np.argmin(exact @ self._centroids[cell].astype(np.float32))]
        two = codes[np.argmin(exact @ one.astype(np.float32))]
        side = np.zeros(CAPACITY, bool)
        for _ in range(_ROUNDS):
            lead = exact @ (one.astype(np.float32) - two.astype(np.float32))
            before, side = side, lead > 0
            if not _LEAST_SHARE <= side.sum() <= CAPACITY - _LEAST_SHARE:  # halve what does not fall in two
                side = np.zeros(CAPACITY, bool)
                side[np.argsort(-lead, kind="stable")[: CAPACITY // 2]] = True
            if (side == before).all():
                break
            one, two = (self._rounded(codes[part].sum(axis=0, dtype=np.int64)[None])[0] for part in (side, ~side))
        kept = int(side.sum())
        self._own(cell)
        self._codes[cell][:kept], self._rows[cell][:kept] = codes[side], rows[side]
        self._sizes[cell], self._sums[cell] = kept, codes[side].sum(axis=0, dtype=np.int64)
        other = self._append(codes[~side], rows[~side])
        self._centre(np.array([cell, other]))
        return other

    def _append(self, codes: NDArray[np.int8], rows: NDArray[np.int32]) -> int:
        cell = len(self._codes)
        if cell == len(self._sizes):
            for name in ("_sizes", "_sums", "_centroids"):
                old = getattr(self, name)
                grown = np.zeros((max(2 * cell, 16), *old.shape[1:]), old.dtype)
                grown[:cell] = old
                setattr(self, name, grown)
        own, numbers = self._roomy(codes, rows)
        self._codes.append(own)
        self._rows.append(numbers)
        self._sizes[cell], self._sums[cell] = len(codes), codes.sum(axis=0, dtype=np.int64)
        return cell

    def _own(self, cell: int) -> None:
        """Give a cell that is mapped rows of its own."""
        if not self._rows[cell].flags.writeable:
            self._codes[cell], self._rows[cell] = self._roomy(self._codes[cell], self._rows[cell])

    def _roomy(
        self, codes: NDArray[np.int8], rows: NDArray[np.int32]
    ) -> tuple[NDArray[np.int8], NDArray[np.int32]]:  # (m, dim), (m,) -> (CAPACITY, dim), (CAPACITY,)
        both = np.empty((CAPACITY, self._dim), np.int8), np.empty(CAPACITY, np.int32)
        both[0][: len(codes)], both[1][: len(rows)] = codes, rows
        return both

    def _centre(self, cells: NDArray[np.int64]) -> None:
        """Round the centroids of `cells` anew."""
        if len(cells):
            self._centroids[cells] = self._rounded(self._sums[cells])
            self._packed = None

    def _rounded(self, sums: NDArray[np.int64]) -> NDArray[np.int8]:
        """Sums of rows as 8-bit rows of length 1."""
        lengths = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
        return _clipped(sums * (self.scale / np.maximum(lengths, 1.0)))

    def _eight_bits(self, vectors: NDArray[np.float32]) -> NDArray[np.int8]:
        return _clipped(vectors * np.float32(self.scale))


def scale_of(rows: NDArray[np.float32]) -> float:  # (n, dim)
    """The steps of 8 bits for a component of 1, so that all but one in 10,000 of the components of `rows` fit."""
    return float(127.0 / max(np.quantile(np.abs(rows), _FITTING), 1e-6))


def _clipped(scaled: NDArray[Any]) -> NDArray[np.int8]:
    rounded: NDArray[np.int8] = np.clip(np.rint(scaled), -127, 127).astype(np.int8)
    return rounded


def _largest(values: NDArray[Any], count: int) -> NDArray[np.int64]:  # (n, m) -> (n, count)
    return np.argpartition(values, values.shape[1] - count, axis=1)[:, values.shape[1] - count :]
