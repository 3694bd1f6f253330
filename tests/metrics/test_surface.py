"""What can be seen of an instruction without understanding it."""

from __future__ import annotations

import pytest

from instructgym.metrics.surface import SURFACE_FEATURES, surface_features


def _true(text: str, data: str = "") -> set[str]:
    return {name for name, value in zip(SURFACE_FEATURES, surface_features(text, data), strict=True) if value}


@pytest.mark.parametrize(
    ("text", "data", "expected"),
    [
        ("Name a tree.", "", set()),
        ("", "", set()),
        ("Which of these is prime?", "7, 8", {"has_input", "question"}),
        ("Add 2 and 3.", "", {"figures"}),
        ("Name a tree. Say why.", "", {"sentences>1"}),
        (
            "Write a short story about the keeper of a lighthouse in winter. Keep it plain.",
            "",
            {"words>5", "words>10", "first_sentence_words>5", "first_sentence_words>10", "sentences>1"},
        ),
        ("Version 1.5 of it", "", {"figures"}),
        (
            "写一首关于大海的诗。为什么？",
            "",
            {"question", "words>5", "words>10", "first_sentence_words>5", "sentences>1"},
        ),
        ("Sort.", "a b c d e f", {"has_input", "input_words>5"}),
    ],
)
def test_features_are_read_off_the_text(text: str, data: str, expected: set[str]) -> None:
    assert _true(text, data) == expected
