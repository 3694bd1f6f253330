"""Near-duplicates in a set of texts, and which of them to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.metrics.minhash import minhash_pairs
from instructgym.metrics.text import normalise

__all__ = ["Deduplicated", "Dropped", "deduplicate", "embedding_pairs", "exact_pairs", "keep_best"]

_BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Dropped:
    """A text that was dropped, the kept one that it duplicates, and how that was found: exact, minhash or embedding."""

    index: int
    duplicate_of: int
    found_by: str


@dataclass(frozen=True)
class Deduplicated:
    """Indices of what is kept, in order, and what was dropped for which of them."""

    kept: tuple[int, ...]
    dropped: tuple[Dropped, ...]


def exact_pairs(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(first, later) for texts that are equal once case, spacing, punctuation and Unicode variants are folded."""
    first: dict[str, int] = {}
    for index, text in enumerate(texts):
        key = normalise(text)
        if key in first:
            yield first[key], index
        else:
            first[key] = index


def embedding_pairs(vectors: NDArray[Any], threshold: float = 0.9) -> Iterator[tuple[int, int]]:  # (n, d)
    """Pairs (i < j) of rows of length 1 with a cosine of `threshold` or more: exact, O(n^2 d) in blocks.

    Memory is a block of 2,048 x 2,048 floats beside the vectors. Raises ValueError for another shape.
    """
    if vectors.ndim != 2:
        raise ValueError(f"embedding_pairs got an array of shape {vectors.shape}; expected (n, d).")
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        for other in range(start, len(rows), _BLOCK):
            near = np.argwhere(block @ rows[other : other + _BLOCK].T >= threshold)
            for i, j in (near + np.array([start, other])).tolist():
                if i < j:
                    yield i, j


def keep_best(
    count: int, pairs: Iterable[tuple[int, int, str]], quality: Sequence[float] | None = None
) -> Deduplicated:
    """Of every duplicate the best: an item is dropped only for a kept one that it is paired with.

    Items are taken from the best on (ties: the first); what is paired with one that was taken before is dropped. So no
    two kept ones are a pair, and a chain a - b - c whose ends are no pair loses only its middle, or only its ends.

    Args:
        pairs: (i, j, how it was found).
        quality: higher is better; None takes the order.
    """
    linked: dict[int, dict[int, str]] = {}
    for i, j, how in pairs:
        linked.setdefault(i, {}).setdefault(j, how)
        linked.setdefault(j, {}).setdefault(i, how)
    order = range(count) if quality is None else sorted(range(count), key=lambda index: (-quality[index], index))
    kept: set[int] = set()
    dropped: dict[int, Dropped] = {}
    for index in order:
        if index in dropped:
            continue
        kept.add(index)
        for other, how in linked.get(index, {}).items():
            if other not in kept and other not in dropped:
                dropped[other] = Dropped(other, index, how)
    return Deduplicated(tuple(sorted(kept)), tuple(dropped[index] for index in sorted(dropped)))


def deduplicate(
    texts: Sequence[str],
    *,
    quality: Sequence[float] | None = None,
    vectors: NDArray[Any] | None = None,
    jaccard: float | None = 0.7,
    cosine: float = 0.9,
) -> Deduplicated:
    """Drop near-duplicates, keeping the best of each group (`keep_best`).

    Args:
        quality: one number a text, higher is better; None keeps the first.
        vectors: (n, d) rows of length 1; None leaves out the comparison by embedding.
        jaccard: similarity of word 3-grams that makes a duplicate (MinHash); None leaves it out.
        cosine: of vectors that makes a duplicate. Deita (arXiv 2312.15685) takes 0.9.

    Raises:
        ValueError: qualities or vectors are not as many as texts.
    """
    for name, given in (("qualities", quality), ("vectors", vectors)):
        if given is not None and len(given) != len(texts):
            raise ValueError(f"deduplicate got {len(texts)} texts and {len(given)} {name}; expected as many.")
    # Equal texts first: the others need comparing once a text, and buckets stay small.
    groups: dict[int, list[int]] = {}
    duplicate_of = {later: first for first, later in exact_pairs(texts)}
    for later, first in duplicate_of.items():
        groups.setdefault(first, []).append(later)
    distinct = [index for index in range(len(texts)) if index not in duplicate_of]
    # Each group of equal texts is stood for by its best.
    best = [
        max([index, *groups.get(index, ())], key=lambda each: (0.0 if quality is None else quality[each], -each))
        for index in distinct
    ]
    near: list[tuple[int, int, str]] = []
    if jaccard is not None:
        near += [(i, j, "minhash") for i, j in minhash_pairs([texts[index] for index in best], jaccard)]
    if vectors is not None:
        near += [(i, j, "embedding") for i, j in embedding_pairs(np.asarray(vectors)[best], cosine)]
    chosen = keep_best(len(best), near, None if quality is None else [quality[index] for index in best])
    dropped = [Dropped(best[each.index], best[each.duplicate_of], each.found_by) for each in chosen.dropped]
    stands_for = {index: best[place] for place, index in enumerate(distinct)}
    gone = {each.index: each.duplicate_of for each in dropped}
    for first in distinct:
        representative = stands_for[first]
        # What equals a dropped text duplicates whatever that one duplicates.
        kept_one = gone.get(representative, representative)
        dropped += [
            Dropped(index, kept_one, "exact") for index in (first, *groups.get(first, ())) if index != representative
        ]
    kept = tuple(sorted(best[index] for index in chosen.kept))
    return Deduplicated(kept, tuple(sorted(dropped, key=lambda each: each.index)))
