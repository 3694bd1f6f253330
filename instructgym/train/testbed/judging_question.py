"""The judge's question in the testbed: short enough for a model of a million parameters to read and answer."""

from __future__ import annotations

from instructgym.rewards.judging.scores import parse_score
from instructgym.types import Completion, Instruction, Message

__all__ = ["SHORT_SCALE", "SHORT_VERSION", "judged_answer", "messages", "read", "reply"]

SHORT_VERSION = "testbed_judge/1"
SHORT_SCALE = (0, 5)
_HEAD, _BETWEEN = "judge ", " = "


def messages(instruction: Instruction, answer: str) -> list[Message]:
    """``judge INSTRUCTION = ANSWER``, to be answered with ``Score: N`` (prompt version ``testbed_judge/1``)."""
    return [Message("user", f"{_HEAD}{instruction.render()}{_BETWEEN}{answer}")]


def reply(score: int) -> str:
    """A reply that gives a score."""
    return f"Score: {score}"


def read(completion: Completion) -> float | None:
    """The score, 0 to 5; None if the reply cannot be read."""
    low, high = SHORT_SCALE
    return parse_score(completion.text, low=low, high=high)


def judged_answer(question: str) -> tuple[str, str] | None:
    """(instruction, answer) of a question; None for a text that is none."""
    if not question.startswith(_HEAD) or _BETWEEN not in question:
        return None
    instruction, _, answer = question.removeprefix(_HEAD).rpartition(_BETWEEN)
    return instruction, answer
