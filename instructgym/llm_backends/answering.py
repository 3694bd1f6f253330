"""An instruction as a prompt of its own, and the answer to it."""

from __future__ import annotations

from instructgym.llm_backends.base import LLM
from instructgym.types import Instruction, Message, Sample, Sampling, Usage

__all__ = ["ANSWER_VERSION", "answer_messages", "ask_for_answer"]

ANSWER_VERSION = "answer/1"


def answer_messages(instruction: Instruction) -> list[Message]:
    """The instruction with its input as one user message (prompt version ``answer/1``)."""
    return [Message("user", instruction.render())]


async def ask_for_answer(
    llm: LLM, instruction: Instruction, *, sample: Sample = (0, 0), sampling: Sampling | None = None
) -> tuple[str | None, Usage]:
    """The answer, stripped, and its usage; None for one that is empty or was cut. Raises `BackendError`."""
    completion = await llm.ask(
        answer_messages(instruction), prompt_version=ANSWER_VERSION, sample=sample, sampling=sampling
    )
    answer = completion.text.strip()
    usage = completion.usage or Usage()
    return (None if completion.finish_reason == "length" or not answer else answer), usage
