"""How much of a rewrite's wording is new."""

from __future__ import annotations

from instructgym.errors import ConfigError
from instructgym.metrics.text import words
from instructgym.rewards.base import Reward
from instructgym.types import Score, Transition

__all__ = ["NgramNovelty"]


class NgramNovelty(Reward):
    """The share of the child's n-grams that neither parent nor seed has, averaged over n = 1 to `max_n`.

    Words in lower case without punctuation; texts are rendered with their inputs; a distinct n-gram counts once. Orders
    that the child is too short for are left out. Terms: ``ngram_novelty/1``, ``/2``, ..., the share of each order.
    Synonyms and gibberish are all new.
    """

    name = "ngram_novelty"

    def __init__(self, *, max_n: int = 3) -> None:
        if isinstance(max_n, bool) or not isinstance(max_n, int) or max_n < 1:
            raise ConfigError(f"ngram_novelty got max_n = {max_n!r}; expected a whole number of 1 or more.")
        self._max_n = max_n

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        child, parent, seed = (words(each.render()) for each in (transition.child, transition.parent, transition.seed))
        terms = {}
        for n in range(1, self._max_n + 1):
            own = _ngrams(child, n)
            if own:
                terms[f"{self.name}/{n}"] = len(own - _ngrams(parent, n) - _ngrams(seed, n)) / len(own)
        if not terms:
            return Score(None)
        value = sum(terms.values()) / len(terms)
        return Score(value, terms | {self.name: value})


def _ngrams(tokens: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)}
