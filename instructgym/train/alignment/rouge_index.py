"""Is a text too similar, by ROUGE-L, to any of very many? The answer of comparing all, without comparing all."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from instructgym.metrics.rouge import max_rouge_l
from instructgym.metrics.text import words

__all__ = ["RougeIndex"]

_TOGETHER = 8
"""Texts compared before the comparison may end."""


class RougeIndex:
    """Texts that can be asked whether one of them has a ROUGE-L F1 above `threshold` with another text.

    A common subsequence is no longer than the bag of words that two texts share. An inverted index over (word, its
    how-manyth) counts shared words; only the rarest words of a text are looked up, and the frequent ones, whose lists
    are long, are taken as shared. What such bounds do not rule out is compared by `metrics.rouge`. So decisions are
    exactly those of the loop over all texts.

    Raises ValueError for a threshold outside 0..1.
    """

    def __init__(self, threshold: float) -> None:
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"a ROUGE-L threshold is a number from 0 to 1; got {threshold}.")
        self._threshold = threshold
        self._texts: list[list[str]] = []
        self._ids: dict[tuple[str, int], int] = {}
        self._postings: list[array[int]] = []  # of each (word, how-manyth): the texts that hold it
        self._lengths = np.zeros(1024, np.int64)
        self._needed = np.zeros(1, np.int64)  # of m + n words: the shortest subsequence that is above the threshold
        self._least: dict[int, int | None] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        """From now on a text is compared with this one."""
        tokens = words(text)
        number = len(self._texts)
        if number == len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.zeros_like(self._lengths)])
        self._lengths[number] = len(tokens)
        self._texts.append(tokens)
        for key in _occurrences(tokens):
            place = self._ids.setdefault(key, len(self._postings))
            if place == len(self._postings):
                self._postings.append(array("i"))
            self._postings[place].append(number)

    def has_similar(self, text: str) -> bool:
        """Whether `max_rouge_l` of the text with those added is above the threshold, and not just at it.

        A text without a word is similar to none.
        """
        tokens = words(text)
        length = len(tokens)
        least = self._least_needed(length)
        if least is None or not self._texts:
            return False
        lists = [self._postings[place] for key in _occurrences(tokens) if (place := self._ids.get(key)) is not None]
        # `least` words must be shared. If the `skipped` most frequent are, one more must be among the others.
        skipped = min(least - 1, len(lists))
        lists.sort(key=len)
        rare, frequent = lists[: len(lists) - skipped], lists[len(lists) - skipped :]
        if not rare:
            return False
        shared = np.bincount(np.concatenate([np.frombuffer(each, np.intc) for each in rare]))
        found = np.flatnonzero(shared).astype(np.intc)
        others = self._lengths[found]
        needed = self._table(length + int(others.max()))[length + others]
        shared = shared[found]
        hopeful = np.minimum(shared + skipped, others) >= needed
        for number, each in enumerate(frequent, start=1):
            found, shared, needed = found[hopeful], shared[hopeful], needed[hopeful]
            if not len(found):
                return False
            shared = shared + _is_in(found, np.frombuffer(each, np.intc))
            hopeful = shared + (skipped - number) >= needed
        found, shared = found[hopeful], shared[hopeful]
        # The likeliest first: of near-copies the first that is compared mostly decides.
        likeliest = np.argsort(-shared / (length + self._lengths[found]), kind="stable")
        return self._compare(text, found[likeliest].tolist())

    def _compare(self, text: str, numbers: list[int]) -> bool:
        for start in range(0, len(numbers), _TOGETHER):
            some = (self._texts[number] for number in numbers[start : start + _TOGETHER])
            if max_rouge_l(text, some) > self._threshold:
                return True
        return False

    def _least_needed(self, length: int) -> int | None:
        """The fewest words that a text must share to be similar, whatever its length; None if no text can be."""
        if length not in self._least:
            table = self._table(2 * length)
            # What a text of `other` words needs grows with their number, and texts of more than `length` need more.
            enough = (int(table[length + other]) for other in range(1, length + 1) if table[length + other] <= other)
            self._least[length] = next(enough, None)
        return self._least[length]

    def _table(self, total: int) -> NDArray[np.int64]:
        """``needed[m + n]``, by the very expression that `metrics.rouge` computes, so that rounding is the same."""
        known = len(self._needed)
        if known <= total:
            more = np.empty(max(total + 1, 2 * known) - known, np.int64)
            for place in range(len(more)):
                more[place] = _shortest_above(self._threshold, known + place)
            self._needed = np.concatenate([self._needed, more])
        return self._needed


def _shortest_above(threshold: float, total: int) -> int:
    length = int(threshold * total / 2)
    while 2 * length / total <= threshold:
        length += 1
    while length and 2 * (length - 1) / total > threshold:
        length -= 1
    return length


def _is_in(numbers: NDArray[np.intc], members: NDArray[np.intc]) -> NDArray[np.bool_]:
    """Which of `numbers` are among `members`, which go up."""
    places = members.searchsorted(numbers)
    places[places == len(members)] = 0
    return np.asarray(members[places] == numbers)


def _occurrences(tokens: Sequence[str]) -> list[tuple[str, int]]:
    """Each word with its how-manyth, so that a bag of words is a set."""
    counts: dict[str, int] = {}
    found = []
    for token in tokens:
        number = counts.get(token, 0)
        counts[token] = number + 1
        found.append((token, number))
    return found
