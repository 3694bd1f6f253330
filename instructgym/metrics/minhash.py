"""Pairs of texts whose sets of word n-grams overlap, without comparing all with all (Broder 1997)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from instructgym.metrics.text import words

__all__ = ["MinHashIndex", "jaccard", "minhash_pairs", "shingles"]

_U64 = np.uint64
_CHUNK = 8192  # n-grams hashed at a time: 8 MB at 128 permutations
_FOUND = 0.97


def shingles(text: str, n: int = 3) -> frozenset[int]:
    """Hashes (64 bits) of the distinct word n-grams of a text; of all its words as one where it is shorter than n."""
    return frozenset(_shingles([text], n)[0].tolist())


def jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """Elements in both / elements in either; 1.0 for two empty sets."""
    both = len(first & second)
    either = len(first) + len(second) - both
    return both / either if either else 1.0


class MinHashIndex:
    """Which of the texts added so far have a Jaccard similarity of `threshold` or more with another text of the set.

    MinHash signatures, banded (locality-sensitive hashing), find candidates; each is verified, so no match is wrong.
    The bands are chosen so that a pair right at the threshold is found with 97% probability, a closer one nearly
    always. A text's signature depends on nothing but the text and `rng_seed`. Texts without a word match nothing.

    Args:
        texts: all that will be added or looked up, by their index.
        threshold: of the Jaccard similarity of the sets of word n-grams, above 0 and at most 1.
        num_perm: hash functions; more make the choice of bands finer.
        n: words an n-gram.

    Raises:
        ValueError: a threshold outside (0, 1], or fewer than one permutation or word.
    """

    def __init__(
        self, texts: Sequence[str], threshold: float = 0.7, *, num_perm: int = 128, n: int = 3, rng_seed: int = 0
    ) -> None:
        if not 0.0 < threshold <= 1.0:
            raise ValueError(f"minhash got threshold = {threshold}; expected above 0 and at most 1.")
        for name, value in (("num_perm", num_perm), ("n", n)):
            if value < 1:
                raise ValueError(f"minhash got {name} = {value}; expected 1 or more.")
        self._threshold = threshold
        self._hashes, self._ends = _shingles(texts, n)
        bands, rows = _bands(threshold, num_perm)
        worded = np.diff(self._ends, prepend=0) > 0
        signatures = _signatures(self._hashes, self._ends, bands * rows, rng_seed)
        self._buckets = _shared_buckets(signatures, worded, bands)
        self._members: dict[int, list[int]] = {}  # bucket -> places in self._added
        self._added: list[tuple[int, frozenset[int]]] = []

    def add(self, index: int) -> None:
        """From now on text `index` can be found."""
        shared = self._shared(index)
        for bucket in shared:
            self._members.setdefault(bucket, []).append(len(self._added))
        if shared:
            self._added.append((index, self._set(index)))

    def matches(self, index: int) -> Iterator[int]:
        """The added texts that are as similar to text `index` as the threshold asks, in the order of their adding."""
        candidates: set[int] = set()
        for bucket in self._shared(index):
            candidates.update(self._members.get(bucket, ()))
        if candidates:
            own = self._set(index)
            for place in sorted(candidates):
                other, theirs = self._added[place]
                if jaccard(own, theirs) >= self._threshold:
                    yield other

    def _shared(self, index: int) -> list[int]:
        row = self._buckets[index]
        shared: list[int] = row[row >= 0].tolist()
        return shared

    def _set(self, index: int) -> frozenset[int]:
        start = self._ends[index - 1] if index else 0
        return frozenset(self._hashes[start : self._ends[index]].tolist())


def minhash_pairs(
    texts: Sequence[str], threshold: float = 0.7, *, num_perm: int = 128, n: int = 3, rng_seed: int = 0
) -> Iterator[tuple[int, int]]:
    """All pairs (i < j) that a `MinHashIndex` of the same arguments finds; as many as there are, however many.

    Raises ValueError as `MinHashIndex` does.
    """
    index = MinHashIndex(texts, threshold, num_perm=num_perm, n=n, rng_seed=rng_seed)
    for later in range(len(texts)):
        for earlier in index.matches(later):
            yield earlier, later
        index.add(later)


def _shingles(texts: Sequence[str], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hashes of all n-grams, text after text, and where each text's end; a repeated n-gram is there repeatedly."""
    hash_of: dict[str, int] = {}
    tokens: list[int] = []
    ends: list[int] = []
    for text in texts:
        found = words(text)
        for word in found:
            known = hash_of.get(word)
            if known is None:
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                known = hash_of[word] = int.from_bytes(digest, "little")
            tokens.append(known)
        if found:
            tokens += [0] * (n - len(found))  # a text of fewer words is one n-gram, filled up
        ends.append(len(tokens))
    flat, stops = np.array(tokens, _U64), np.array(ends, np.int64)
    size = max(len(flat) - n + 1, 0)
    grams = np.zeros(size, _U64)
    for offset in range(n):
        grams = _mixed(grams + flat[offset : offset + size])
    # An n-gram that begins within n - 1 words of a text's end would reach into the next text.
    whole = np.ones(len(flat), bool)
    for short in range(1, n):
        last = stops - short
        whole[last[last >= 0]] = False
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)
    return grams[whole[:size]], np.cumsum(np.maximum(stops - starts - (n - 1), 0))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: spreads 64-bit values evenly, no two onto the same."""
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return (values ^ (values >> _U64(31))) + _U64(0x9E3779B97F4A7C15)


def _bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """(bands, rows a band): the most rows for which ``1 - (1 - threshold ** rows) ** bands`` is 0.97 or more."""
    best = (num_perm, 1)
    for rows in range(1, num_perm + 1):
        bands = num_perm // rows
        if 1.0 - (1.0 - threshold**rows) ** bands >= _FOUND:
            best = (bands, rows)
    return best


def _signatures(
    hashes: NDArray[np.uint64], ends: NDArray[np.int64], num_perm: int, rng_seed: int
) -> NDArray[np.uint32]:
    """(n, num_perm): the upper halves of the least of ``a x + b mod 2^64`` over each text's hashes x, for num_perm
    pairs (a odd, b); all ones for a text without."""
    rng = np.random.default_rng(rng_seed)
    a = rng.integers(1 << 64, size=(num_perm, 1), dtype=_U64) | _U64(1)
    b = rng.integers(1 << 64, size=(num_perm, 1), dtype=_U64)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    result = np.full((len(ends), num_perm), 0xFFFFFFFF, np.uint32)
    there = np.flatnonzero(ends > starts)
    first = 0
    while first < len(there):
        begin = starts[there[first]]
        last = max(int(np.searchsorted(ends[there], begin + _CHUNK, "right")), first + 1)
        part = there[first:last]
        stop = ends[part[-1]]
        if len(part) == 1:  # it may be any number of chunks long
            least = np.full((num_perm, 1), (1 << 64) - 1, _U64)
            for place in range(begin, stop, _CHUNK):
                x = hashes[place : min(place + _CHUNK, stop)]
                np.minimum(least, (a * x + b).min(axis=1, keepdims=True), out=least)
        else:
            least = np.minimum.reduceat(a * hashes[begin:stop] + b, starts[part] - begin, axis=1)
        result[part] = (least >> _U64(32)).astype(np.uint32).T
        first = last
    return result


def _shared_buckets(signatures: NDArray[np.uint32], worded: NDArray[np.bool_], bands: int) -> NDArray[np.int32]:
    """(n, bands): the number of each text's bucket, no two bands' alike; -1 if it is alone in it, or has no word."""
    count, width = signatures.shape
    buckets = np.full((count, bands), -1, np.int32)
    rows, used = width // bands, 0
    for band in range(bands):
        key = np.zeros(count, _U64)
        for column in range(band * rows, (band + 1) * rows):
            key = _mixed(key + signatures[:, column])
        _, numbers, sizes = np.unique(key, return_inverse=True, return_counts=True)
        buckets[:, band] = np.where((sizes[numbers] > 1) & worded, numbers + used, -1)
        used += len(sizes)
    return buckets
