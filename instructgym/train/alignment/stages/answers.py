"""Stages `candidates` and `demonstrations` of a round: the student's answers, and the teacher's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from instructgym.errors import BackendError
from instructgym.llm_backends.answering import ANSWER_VERSION, answer_messages
from instructgym.llm_backends.base import LLM
from instructgym.train.alignment.context import AlignmentContext, Round, words_of
from instructgym.train.alignment.records import Candidate, Prompt
from instructgym.train.alignment.stages.prompts import PROMPTS
from instructgym.train.stage import StageOutput
from instructgym.types import Sampling

__all__ = ["CANDIDATES", "DEMONSTRATIONS", "answers_of", "run_candidates", "run_demonstrations"]

CANDIDATES, DEMONSTRATIONS = "candidates.jsonl", "demonstrations.jsonl"


def run_candidates(context: AlignmentContext, round_: Round) -> StageOutput:
    """Writes `candidates.jsonl`: N answers a prompt of the model before, one where nobody judges."""
    section = context.config.candidates
    stage = f"{round_.model}.candidates"
    sampling = Sampling(section.temperature, section.top_p, section.max_tokens)
    student = context.ask_student(round_.before, stage, sampling)
    count = section.count if round_.pipeline.judged else 1
    return _write(context, round_, stage, student, count, CANDIDATES)


def run_demonstrations(context: AlignmentContext, round_: Round) -> StageOutput:
    """Writes `demonstrations.jsonl`: the teacher's answer to each prompt."""
    stage = f"{round_.model}.demonstrations"
    return _write(context, round_, stage, context.ask_guide("teacher", stage), 1, DEMONSTRATIONS)


def _write(context: AlignmentContext, round_: Round, stage: str, llm: LLM, count: int, name: str) -> StageOutput:
    prompts = context.read(Prompt, round_.file(PROMPTS))
    answers = answers_of(context, prompts, llm, count, stage)
    context.write(round_.file(name), answers)
    lost = sum(answer.failure is not None for answer in answers)
    result: dict[str, Any] = {
        "answers": len(answers) - lost,
        "failed": lost,
        "cut": sum(answer.cut for answer in answers),
        "accounting": context.connection.accounting(stage),
    }
    return StageOutput((round_.file(name),), result, lost=lost)


def answers_of(context: AlignmentContext, prompts: list[Prompt], llm: LLM, count: int, stage: str) -> list[Candidate]:
    """`count` answers to each prompt, in the order of prompts and numbers."""
    items = [(row, index) for row in range(len(prompts)) for index in range(count)]

    async def answer(item: tuple[int, int]) -> Candidate:
        row, index = item
        prompt = prompts[row]
        blank = Candidate(prompt.id, index, "", llm.model)
        try:
            completion = await llm.ask(
                answer_messages(prompt.as_instruction), prompt_version=ANSWER_VERSION, sample=(row, index)
            )
        except BackendError as error:
            return replace(blank, failure=words_of(error))
        tokens = None if completion.usage is None else completion.usage.completion_tokens
        cut = completion.finish_reason == "length"
        return replace(blank, text=completion.text.strip(), tokens=tokens, cut=cut)

    return context.each(stage, answer, items)
