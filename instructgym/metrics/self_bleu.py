"""How much the texts of a set are each other's paraphrase."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from instructgym.metrics.text import words

__all__ = ["self_bleu"]

_EPSILON = 0.1


def self_bleu(texts: Sequence[str], *, max_n: int = 4, sample: int | None = 1000, rng_seed: int = 0) -> float | None:
    """The mean BLEU of each text against all the others (Zhu et al., arXiv 1802.01886); the higher, the more alike.

    BLEU-4 with uniform weights, clipped counts over all references, closest reference length, and smoothing method 1 of
    Chen and Cherry 2014 (0.1 in place of 0 matches). Exact against all others in one pass over the set, for `sample`
    texts drawn without replacement (None: all). An order that a text is too short for counts as no match.

    Returns:
        0..1; None for fewer than two texts that have words.

    Raises:
        ValueError: `max_n` or `sample` is below 1.
    """
    for name, value in (("max_n", max_n), ("sample", sample)):
        if value is not None and value < 1:
            raise ValueError(f"self_bleu got {name} = {value}; expected 1 or more.")
    tokens = [each for each in map(words, texts) if each]
    if len(tokens) < 2:
        return None
    chosen = range(len(tokens))
    if sample is not None and sample < len(tokens):
        chosen = np.random.default_rng(rng_seed).choice(len(tokens), sample, replace=False).tolist()
    counts = [[_ngrams(each, n) for each in tokens] for n in range(1, max_n + 1)]
    most = [_two_largest(order) for order in counts]
    lengths = sorted(len(each) for each in tokens)
    total = 0.0
    for i in chosen:
        logs = 0.0
        for order, largest in zip(counts, most, strict=True):
            own = order[i]
            hits = sum(min(count, _without(largest[gram], i)) for gram, count in own.items())
            logs += math.log((hits or _EPSILON) / max(sum(own.values()), 1))
        size = len(tokens[i])
        reference = _closest(lengths, size)
        penalty = 1.0 if size > reference else math.exp(1.0 - reference / size)
        total += penalty * math.exp(logs / max_n)
    return total / len(chosen)


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


_Largest = tuple[int, int, int]
"""(largest count, the text that has it, second largest count)."""


def _two_largest(order: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], _Largest]:
    found: dict[tuple[str, ...], _Largest] = {}
    for text, counts in enumerate(order):
        for gram, count in counts.items():
            first, owner, second = found.get(gram, (0, -1, 0))
            if count > first:
                found[gram] = (count, text, first)
            elif count > second:
                found[gram] = (first, owner, count)
    return found


def _without(largest: _Largest, text: int) -> int:
    first, owner, second = largest
    return second if owner == text else first


def _closest(lengths: Sequence[int], own: int) -> int:
    """The length nearest to `own` among the others; the shorter of two as near."""
    place = bisect.bisect_left(lengths, own)
    if bisect.bisect_right(lengths, own) - place > 1:
        return own
    near = [lengths[each] for each in (place - 1, place + 1) if 0 <= each < len(lengths)]
    return min(near, key=lambda length: (abs(length - own), length))
