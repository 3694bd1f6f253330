"""Near-duplicates in a set of texts, and which of them to keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.metrics.minhash import MinHashIndex
from instructgym.metrics.near_vectors import KeptVectors
from instructgym.metrics.text import normalise

__all__ = ["Deduplicated", "Dropped", "deduplicate", "exact_pairs", "keep_best"]


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


def keep_best(
    count: int, pairs: Iterable[tuple[int, int, str]], quality: Sequence[float] | None = None
) -> Deduplicated:
    """Of every duplicate the best: an item is dropped only for a kept one that it is paired with.

    Items are taken from the best on (ties: the first); what is paired with one that was taken before is dropped. So no
    two kept ones are a pair, and a chain a - b - c whose ends are no pair loses only its middle, or only its ends.

    Args:
        pairs: (i, j, how it was found).
        quality: higher is better; None takes the order.

    Raises:
        ValueError: a quality is NaN or infinite.
    """
    linked: dict[int, dict[int, str]] = {}
    for i, j, how in pairs:
        linked.setdefault(i, {}).setdefault(j, how)
        linked.setdefault(j, {}).setdefault(i, how)
    kept: set[int] = set()
    dropped: dict[int, Dropped] = {}
    for index in _from_the_best(count, quality):
        if index in dropped:
            continue
        kept.add(index)
        for other, how in linked.get(index, {}).items():
            if other not in kept and other not in dropped:
                dropped[other] = Dropped(other, index, how)
    return _in_order(count, dropped)


def deduplicate(
    texts: Sequence[str],
    *,
    quality: Sequence[float] | None = None,
    vectors: NDArray[Any] | None = None,
    jaccard: float | None = 0.7,
    cosine: float = 0.9,
) -> Deduplicated:
    """Drop near-duplicates, keeping the best of each group: what `keep_best` gives of all pairs, without making them.

    Texts are taken from the best on and compared with those kept so far, so that a thousand variants of one text cost a
    thousand comparisons. Of several kept ones that a text duplicates the best is named. Texts that are equal
    (`exact_pairs`) share one fate: that of the best of them.

    Args:
        quality: one number a text, higher is better; None keeps the first, as ties do.
        vectors: (n, d) rows of length 1; None leaves out the comparison by embedding.
        jaccard: similarity of word 3-grams that makes a duplicate (MinHash); None leaves it out.
        cosine: of vectors that makes a duplicate. Deita (arXiv 2312.15685) takes 0.9.

    Raises:
        ValueError: qualities or vectors are not as many as texts, or not finite.
    """
    for name, given in (("qualities", quality), ("vectors", vectors)):
        if given is not None and len(given) != len(texts):
            raise ValueError(f"deduplicate got {len(texts)} texts and {len(given)} {name}; expected as many.")
    order = _from_the_best(len(texts), quality)
    best: dict[str, int] = {}
    stands_for = {index: best.setdefault(normalise(texts[index]), index) for index in order}
    distinct = list(best.values())
    by_words = None if jaccard is None else MinHashIndex([texts[index] for index in distinct], jaccard)
    by_vectors = None if vectors is None else KeptVectors(np.asarray(vectors)[distinct], cosine)
    dropped: dict[int, Dropped] = {}
    for place, index in enumerate(distinct):
        first = [
            (other, how)
            for other, how in (
                (next(by_words.matches(place), None) if by_words else None, "minhash"),
                (by_vectors.first_match(place) if by_vectors else None, "embedding"),
            )
            if other is not None
        ]
        if first:
            other, how = min(first, key=lambda found: found[0])
            dropped[index] = Dropped(index, distinct[other], how)
            continue
        for kept in (by_words, by_vectors):
            if kept:
                kept.add(place)
    for index, equal in stands_for.items():
        if index != equal:
            there = dropped.get(equal)
            dropped[index] = Dropped(index, there.duplicate_of if there else equal, "exact")
    return _in_order(len(texts), dropped)


def _from_the_best(count: int, quality: Sequence[float] | None) -> list[int]:
    """Indices from the highest quality to the lowest, ties in order."""
    if quality is None:
        return list(range(count))
    if not all(map(math.isfinite, quality)):
        raise ValueError("the qualities hold NaN or infinity; expected finite numbers.")
    return sorted(range(count), key=lambda index: -quality[index])


def _in_order(count: int, dropped: Mapping[int, Dropped]) -> Deduplicated:
    kept = tuple(index for index in range(count) if index not in dropped)
    return Deduplicated(kept, tuple(dropped[index] for index in sorted(dropped)))
