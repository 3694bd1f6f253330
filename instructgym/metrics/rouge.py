"""The longest common subsequence of two texts, as a similarity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from instructgym.metrics.text import words

__all__ = ["homogenisation", "max_rouge_l", "rouge_l"]


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L F1 (Lin 2004): ``2 L / (m + n)``, L being the longest common subsequence of their words, unstemmed.

    1 for equal words, 0 for none in common; two texts without a word are equal.
    """
    one, two = words(first), words(second)
    if not one or not two:
        return float(not one and not two)
    return 2 * _lcs(_masks(one), len(one), two) / (len(one) + len(two))


def max_rouge_l(text: str, pool: Iterable[Sequence[str]]) -> float:
    """The largest ROUGE-L F1 of `text` with texts that are given as `words`; 0.0 for an empty pool.

    Texts whose lengths alone keep them below the best so far are not compared.
    """
    own = words(text)
    masks, best = _masks(own), 0.0
    for other in pool:
        total = len(own) + len(other)
        if not total or 2 * min(len(own), len(other)) <= best * total:
            continue
        best = max(best, 2 * _lcs(masks, len(own), other) / total)
    return best


def homogenisation(texts: Sequence[str], *, pairs: int = 10_000, rng_seed: int = 0) -> float | None:
    """The mean ROUGE-L F1 over pairs of a set (Padmakumar and He, arXiv 2309.05196).

    Over all pairs, or over so many drawn of them (with replacement). 0..1, the higher the more alike; None for fewer
    than two texts. Raises ValueError for fewer than one pair.
    """
    if pairs < 1:
        raise ValueError(f"homogenisation got pairs = {pairs}; expected 1 or more.")
    n = len(texts)
    if n < 2:
        return None
    tokens = [words(text) for text in texts]
    masks = [_masks(each) for each in tokens]
    if n * (n - 1) // 2 <= pairs:
        chosen = [(i, j) for i in range(n) for j in range(i + 1, n)]
    else:
        rng = np.random.default_rng(rng_seed)
        first = rng.integers(n, size=pairs)
        second = (first + rng.integers(1, n, size=pairs)) % n
        chosen = list(zip(first.tolist(), second.tolist(), strict=True))
    total = 0.0
    for i, j in chosen:
        size = len(tokens[i]) + len(tokens[j])
        total += 2 * _lcs(masks[i], len(tokens[i]), tokens[j]) / size if size else 1.0
    return total / len(chosen)


def _masks(tokens: Sequence[str]) -> dict[str, int]:
    """For each word the bits of its places."""
    masks: dict[str, int] = {}
    for place, token in enumerate(tokens):
        masks[token] = masks.get(token, 0) | (1 << place)
    return masks


def _lcs(masks: dict[str, int], length: int, other: Sequence[str]) -> int:
    """Bit-parallel (Hyyro 2004): one word of `other` at a time, all of the first text's places at once."""
    full = (1 << length) - 1
    row = full
    for token in other:
        match = row & masks.get(token, 0)
        if match:
            row = ((row + match) | (row - match)) & full
    return length - row.bit_count()
