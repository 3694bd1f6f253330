"""Does a training prompt stand in an evaluation set, or the other way round? By n-grams of words (arXiv 2005.14165)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from instructgym.metrics.text import words

__all__ = ["Contamination"]


class Contamination:
    """Evaluation texts, of which a prompt must not hold `n` words in a row.

    Of texts shorter than `n` words all of them count: an evaluation text that stands whole in a prompt, and a prompt
    that stands whole in an evaluation text. One shorter than `least` words is a common phrase; it counts only where
    prompt and text are equal.

    Raises ValueError unless ``1 <= least <= n``.
    """

    def __init__(self, texts: Iterable[str], *, n: int = 13, least: int = 4) -> None:
        if not 1 <= least <= n:
            raise ValueError(f"decontamination got n = {n} and least = {least}; expected 1 <= least <= n.")
        self._n, self._least = n, least
        self._texts = [found for text in texts if (found := words(text))]
        self._whole = {" ".join(text) for text in self._texts}
        self._short: dict[int, set[str]] = {}  # by their number of words
        for text in self._texts:
            if least <= len(text) < n:
                self._short.setdefault(len(text), set()).add(" ".join(text))
        self._within: dict[int, set[str]] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def holds(self, text: str) -> bool:
        """Whether `text` is contaminated. A text without a word is not."""
        if not self._texts:
            return False
        own = words(text)
        if " ".join(own) in self._whole and own:
            return True
        size = min(self._n, len(own))
        if size >= self._least and any(gram in self._grams(size) for gram in _grams(own, size)):
            return True
        return any(gram in known for length, known in self._short.items() for gram in _grams(own, length))

    def _grams(self, size: int) -> set[str]:
        """The runs of `size` words of the evaluation texts, made when first needed."""
        if size not in self._within:
            self._within[size] = {gram for text in self._texts for gram in _grams(text, size)}
        return self._within[size]


def _grams(tokens: Sequence[str], n: int) -> Iterator[str]:
    return (" ".join(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
