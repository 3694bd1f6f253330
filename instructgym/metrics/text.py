"""Counting and comparing texts. Every count of words in InstructGym is `count_words`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["STOP_WORDS", "count_words", "distinct_n", "has_only_stop_words", "normalise", "words"]

# Han, kana and half-width katakana: scripts that put no space between words. Hangul does, and is left out.
_CJK_CHARACTERS = "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
_CJK = re.compile(f"[{_CJK_CHARACTERS}]")
_CJK_OR_ITS_PUNCTUATION = re.compile(f"[{_CJK_CHARACTERS}\u3000-\u303f\u30fb\uff00-\uff0f\uff1a-\uff20]")
_ASCII_WORD = re.compile(r"[a-z0-9_]+(?:'[a-z]+)?")
_WORD = re.compile(rf"[{_CJK_CHARACTERS}]|[^\W{_CJK_CHARACTERS}]+(?:['’][^\W{_CJK_CHARACTERS}]+)?")

STOP_WORDS = frozenset(
    """a about above after again against all also am an and any are as at be because been before being below between
    both but by can could did do does doing down during each few for from further had has have having he her here hers
    him his how i if in into is it its itself just may me might more most must my nor now of off on once only or
    other our out over own per please same shall she should so some such than that the their them then there these they
    this those through to too under until up upon us very was we were what when where which while who whom whose why
    will with would you your yours yourself""".split()
)
"""English function words, lower case."""


def count_words(text: str) -> int:
    """The number of whitespace-separated words, each CJK character being a word of its own."""
    if text.isascii():
        return len(text.split())
    return len(_CJK.findall(text)) + len(_CJK_OR_ITS_PUNCTUATION.sub(" ", text).split())


def words(text: str) -> list[str]:
    """The words in order, lower-cased and without punctuation; each CJK character is a word."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(text.lower().replace("’", "'"))


def has_only_stop_words(text: str) -> bool:
    """True if nothing but function words, punctuation and space is there. Digits, signs and emoji are content."""
    found = _WORD.finditer(text.lower().replace("’", "'"))
    if any(match[0] not in STOP_WORDS for match in found):
        return False
    return not any(unicodedata.category(character)[0] in "SN" for character in text)


class _Fold(dict[int, str | None]):
    """A `str.translate` table that decides by Unicode category, once a character."""

    def __missing__(self, codepoint: int) -> str | None:
        character = chr(codepoint)
        category = unicodedata.category(character)
        folded: str | None = character
        if character in "'’‘ʼ" or category == "Cf":  # don't = dont; zero-width and direction marks are nothing
            folded = None
        elif character in "`´" or (category[0] in "PZC" and character not in "%&@#"):
            folded = " "
        self[codepoint] = folded
        return folded


_FOLD = _Fold()
# "2 - 2" and "2 * 2" are different questions: between numbers these signs are arithmetic, not punctuation.
_ARITHMETIC = re.compile(r"(?<=[\d)])[ \t]*([-*/\u2013])[ \t]*(?=[\d(])")
_ARITHMETIC_SIGN = {"-": " \u2212 ", "\u2013": " \u2212 ", "*": " \u00d7 ", "/": " \u00f7 "}
_HEADING = re.compile(r"^[ \t]*#+[ \t]+", re.M)


@lru_cache(maxsize=4096)  # a child is compared as a parent one step later
def normalise(text: str) -> str:
    """`text` with case, spacing, punctuation and Unicode variants folded, to find copies and duplicates.

    Symbols stay (``C``, ``C#`` and ``C++`` differ, so do ``2 + 2`` and ``2 - 2``), and so do emoji and accents.
    """
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    if "#" in folded:
        folded = _HEADING.sub("", folded)
    if any(sign in folded for sign in _ARITHMETIC_SIGN):
        folded = _ARITHMETIC.sub(lambda match: _ARITHMETIC_SIGN[match[1]], folded)
    return " ".join(folded.translate(_FOLD).split())


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Distinct n-grams / all n-grams over a set of texts (Li et al. 2016); None if there is no n-gram at all."""
    if n < 1:
        raise ValueError(f"distinct_n got n = {n}; expected 1 or more.")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for text in texts:
        tokens = words(text)
        for start in range(len(tokens) - n + 1):
            seen.add(tuple(tokens[start : start + n]))
            total += 1
    return len(seen) / total if total else None
