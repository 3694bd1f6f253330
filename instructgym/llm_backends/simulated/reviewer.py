"""The simulated reviewer: says whether two instructions ask for the same, from their words alone.

Like real reviewers it is easily pleased: any new content word or a new block of data makes two instructions differ,
on the subject or off it, and now and then it errs.
"""

from __future__ import annotations

from instructgym.llm_backends.simulated.draws import Draws
from instructgym.llm_backends.simulated.reading import content_words

__all__ = ["equality"]

ERROR_RATE = 0.01
_NEW_WORDS = 2


def equality(first: str, second: str, draws: Draws) -> str:
    """``Equal`` or ``Not Equal``, with a line of reasons before it."""
    before, after = content_words(first), content_words(second)
    gained, lost = len(after - before), len(before - after)
    equal = gained < _NEW_WORDS and lost < _NEW_WORDS
    if draws.uniform() < ERROR_RATE:
        equal = not equal
    if equal:
        return "The second asks for nothing that the first does not.\nEqual"
    return f"They differ in what they ask for ({gained} notions new, {lost} gone).\nNot Equal"
