"""The judge's question that a config names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instructgym.errors import ConfigError
from instructgym.plugins import is_file_reference, load_from_file, nearest
from instructgym.train.alignment.judgements import ADDITIVE, Question

if TYPE_CHECKING:
    from instructgym.train.alignment.config import AlignmentConfig

__all__ = ["QUESTIONS", "question_of"]

QUESTIONS = ("additive", "testbed")


def question_of(config: AlignmentConfig) -> Question:
    """`judging.question`: a name, or ``path/to/file.py:NAME`` of a `Question`. Raises `ConfigError`."""
    name = config.judging.question
    if name == "additive":
        return ADDITIVE
    if name == "testbed":
        from instructgym.train.alignment.in_testbed import SHORT_QUESTION

        return SHORT_QUESTION
    if not is_file_reference(name):
        raise ConfigError(f"'judging.question' is '{name}'; {nearest(name, QUESTIONS)}")
    found = load_from_file(name)
    if not isinstance(found, Question):
        raise ConfigError(f"'judging.question' is '{name}', a {type(found).__name__}; expected a Question.")
    return found
