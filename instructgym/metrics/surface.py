"""What can be seen of an instruction without understanding it: size, sentences, figures, question, input."""

from __future__ import annotations

import re
from bisect import bisect_left

from instructgym.metrics.text import count_words

__all__ = ["SURFACE_FEATURES", "surface_features"]

_SIZES = (5, 10, 20, 40, 80)
_OPENINGS = (5, 10, 20)
_SENTENCES = (1, 2, 4)
_SIZES_UP_TO, _OPENINGS_UP_TO, _SENTENCES_UP_TO = (
    [(True,) * passed + (False,) * (len(bounds) - passed) for passed in range(len(bounds) + 1)]
    for bounds in (_SIZES, _OPENINGS, _SENTENCES)
)
_SENTENCE_END = re.compile(r"[.?!](?=\s|$)|[。？！]|\n+")
_DIGIT = re.compile(r"\d")

SURFACE_FEATURES = (
    "has_input",
    "question",
    "figures",
    *(f"words>{size}" for size in _SIZES),
    *(f"first_sentence_words>{size}" for size in _OPENINGS),
    *(f"sentences>{size}" for size in _SENTENCES),
    *(f"input_words>{size}" for size in _SIZES),
)
"""The names of what `surface_features` returns, in order."""


def surface_features(text: str, data: str) -> tuple[bool, ...]:  # -> (len(SURFACE_FEATURES),)
    """Facts of an instruction's text and of its input, each true or false; sizes as thermometers: > 5, > 10, ....

    "Figures" are decimal digits in the text, "question" is a question mark in it; a sentence ends at ``.``, ``?`` or
    ``!`` before a space, at their full-width forms, or at the end of a line.
    """
    total, size = count_words(text), count_words(data)
    ends = [match for match in _SENTENCE_END.finditer(text) if text[: match.start()].strip()]
    sentences = len(ends) + bool(text[ends[-1].end() :].strip() if ends else text.strip())
    opening = count_words(text[: ends[0].start()]) if ends else total
    return (
        bool(data.strip()),
        "?" in text or "？" in text or "؟" in text,
        _DIGIT.search(text) is not None,
        *_SIZES_UP_TO[bisect_left(_SIZES, total)],
        *_OPENINGS_UP_TO[bisect_left(_OPENINGS, opening)],
        *_SENTENCES_UP_TO[bisect_left(_SENTENCES, sentences)],
        *_SIZES_UP_TO[bisect_left(_SIZES, size)],
    )
