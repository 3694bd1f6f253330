"""Pairs of texts whose sets of word n-grams overlap, without comparing all with all (Broder 1997)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from instructgym.metrics.text import words

__all__ = ["jaccard", "minhash_pairs", "shingles"]

_PRIME = np.uint64((1 << 61) - 1)
_BUCKET = 256
_MASK32 = np.uint64(0xFFFFFFFF)


def shingles(text: str, n: int = 3) -> frozenset[int]:
    """Hashes (32 bits) of the distinct word n-grams of a text; of its words where it is shorter than n."""
    tokens = words(text)
    size = min(n, max(len(tokens), 1))
    grams = {" ".join(tokens[start : start + size]) for start in range(max(len(tokens) - size + 1, 0))}
    return frozenset(
        int.from_bytes(hashlib.blake2b(gram.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little")
        for gram in grams
    )


def jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """Elements in both / elements in either; 1.0 for two empty sets."""
    either = len(first | second)
    return len(first & second) / either if either else 1.0


def minhash_pairs(
    texts: Sequence[str], threshold: float = 0.7, *, num_perm: int = 128, n: int = 3, rng_seed: int = 0
) -> Iterator[tuple[int, int]]:
    """Pairs (i < j) of texts whose sets of word n-grams have a Jaccard similarity of `threshold` or more.

    MinHash signatures, banded (locality-sensitive hashing), find candidates; each is verified, so no pair is wrong. The
    bands are chosen so that a pair right at the threshold is found with 97% probability, a closer one nearly always; in
    a bucket of more than 256 each text is compared with the 256 after it.

    Raises ValueError for a threshold outside (0, 1].
    """
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"minhash_pairs got threshold = {threshold}; expected above 0 and at most 1.")
    sets = [shingles(text, n) for text in texts]
    bands, rows = _bands(threshold, num_perm)
    signatures = _signatures(sets, bands * rows, rng_seed)
    seen: set[tuple[int, int]] = set()
    for band in range(bands):
        keys = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        for bucket in _buckets(keys):
            # A bucket of thousands must not be squared. Equal texts are found before, so that large ones are rare.
            for place, i in enumerate(bucket):
                for j in bucket[place + 1 : place + 1 + _BUCKET]:
                    pair = (i, j) if i < j else (j, i)
                    if pair not in seen:
                        seen.add(pair)
                        if sets[pair[0]] and jaccard(sets[pair[0]], sets[pair[1]]) >= threshold:
                            yield pair


def _bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """(bands, rows a band): the most rows for which ``1 - (1 - threshold ** rows) ** bands`` is 0.97 or more."""
    best = (num_perm, 1)
    for rows in range(1, num_perm + 1):
        bands = num_perm // rows
        if 1.0 - (1.0 - threshold**rows) ** bands >= 0.97:
            best = (bands, rows)
    return best


def _signatures(sets: Sequence[frozenset[int]], num_perm: int, rng_seed: int) -> NDArray[np.uint32]:
    """(n, num_perm): the least of ``(a x + b) mod p`` over the elements x of each set, for num_perm pairs (a, b)."""
    rng = np.random.default_rng(rng_seed)
    a = rng.integers(1, 1 << 31, num_perm, dtype=np.uint64) | np.uint64(1)
    b = rng.integers(0, 1 << 61, num_perm, dtype=np.uint64) % _PRIME
    result = np.full((len(sets), num_perm), 0xFFFFFFFF, np.uint32)
    for row, elements in enumerate(sets):
        if elements:
            x = np.fromiter(elements, np.uint64, len(elements))
            # 32-bit element x 31-bit factor + 61-bit offset stays below 2^64.
            hashed = ((x[:, None] * a[None] + b[None]) % _PRIME) & _MASK32
            result[row] = hashed.min(axis=0)
    return result


def _buckets(keys: NDArray[np.uint32]) -> Iterator[list[int]]:
    """Rows with equal keys, where there are two or more."""
    view = keys.view([("", keys.dtype)] * keys.shape[1]).ravel()
    order = np.argsort(view, kind="stable")
    ordered = keys[order]
    ends = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1
    for part in np.split(order, ends):
        if len(part) > 1:
            yield part.tolist()
