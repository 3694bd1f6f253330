"""Whether a student gets the rewrite right sometimes: learnability p(1-p) (arXiv 2502.12272)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from instructgym.errors import ConfigError, InstructGymError, RewardError
from instructgym.llm_backends.answering import ask_for_answer
from instructgym.llm_backends.base import LLM
from instructgym.plugins import is_file_reference, load_from_file
from instructgym.rewards.base import InstructionReward
from instructgym.rewards.concurrency import gather
from instructgym.rewards.judging.asking import PARSE_RETRIES, ask_until_read, check_retries
from instructgym.rewards.judging.correctness import CORRECTNESS_VERSION, correctness_messages, read_correctness
from instructgym.rewards.quality.scoring import check_number, check_whole
from instructgym.types import Instruction, Score, Usage

__all__ = ["Checker", "Learnability"]

Checker = Callable[[Instruction, str], Any]
"""``(instruction, answer) -> bool``, sync or async; None for an answer that it cannot judge."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """One answer of the student: right, wrong, or None if it could not be had or judged."""

    right: bool | None
    usage: Usage
    calls: int
    unparsable: int = 0


class Learnability(InstructionReward):
    """How much a student could learn from the rewrite: p(1-p), p being the share of its answers that are right.

    0 for what it always or never solves, 0.25 at most. Over n samples the estimate is (n-1)/n of the truth on average.

    Args:
        expert: its backend and model answer as the student.
        reviewer: who judges the answers; not needed with a checker of your own.
        student_model: another model of the expert's backend to be the student; empty for the expert itself.
        samples: answers an instruction, the samples ``(0, 0)``, ``(0, 1)``, ....
        checker: ``reviewer``, or ``path/to/file.py:NAME`` of a function ``(instruction, answer) -> bool``, sync or
            async, with None for an answer that it cannot judge; in Python the function itself.
        temperature: of the student.
        parse_retries: how often an unparsable reply of the reviewer is asked for again, as another sample.

    Terms: ``/p``, ``/samples_valid`` counts the answers that were judged (cut and empty ones are not), ``/unparsable``
    counts replies of the reviewer that could not be read. The score is missing if fewer than half were judged.
    """

    name = "learnability"

    def __init__(
        self,
        expert: LLM,
        reviewer: LLM | None = None,
        *,
        student_model: str = "",
        samples: int = 8,
        checker: str | Checker = "reviewer",
        temperature: float = 0.7,
        parse_retries: int = PARSE_RETRIES,
    ) -> None:
        if not isinstance(student_model, str):
            raise ConfigError(f"{self.name} got student_model = {student_model!r}; expected a model's name, or ''.")
        self._samples = check_whole(self.name, "samples", samples, 2)
        sampling = replace(expert.sampling, temperature=check_number(self.name, "temperature", temperature))
        self._student = replace(expert, model=student_model or expert.model, sampling=sampling)
        self._retries = check_retries(self.name, parse_retries)
        self._reviewer = reviewer
        self._checker = _checker(checker)
        if self._checker is None and reviewer is None:
            raise ConfigError(
                f"{self.name} got checker = 'reviewer', but no reviewer; pass one, or a function as the checker."
            )

    async def score_instruction(self, instruction: Instruction) -> Score:
        trials = await gather([self._try(instruction, i) for i in range(self._samples)])
        judged = [trial.right for trial in trials if trial.right is not None]
        usage = sum((trial.usage for trial in trials), Usage())
        calls = sum(trial.calls for trial in trials)
        terms = {
            f"{self.name}/samples_valid": float(len(judged)),
            f"{self.name}/unparsable": float(sum(trial.unparsable for trial in trials)),
        }
        if 2 * len(judged) < self._samples:
            return Score(None, terms, usage, calls)
        p = sum(judged) / len(judged)
        value = p * (1.0 - p)
        return Score(value, {self.name: value, f"{self.name}/p": p, **terms}, usage, calls)

    async def _try(self, instruction: Instruction, i: int) -> _Trial:
        answer, usage = await ask_for_answer(self._student, instruction, sample=(0, i))
        if answer is None:
            return _Trial(None, usage, 1)
        if self._checker is not None:
            return _Trial(await self._checked(self._checker, instruction, answer), usage, 1)
        assert self._reviewer is not None  # refused by the constructor
        judgement = await ask_until_read(
            self._reviewer,
            correctness_messages(instruction, answer),
            prompt_version=CORRECTNESS_VERSION,
            read=read_correctness,
            retries=self._retries,
        )
        return _Trial(judgement.value, usage + judgement.usage, 1 + judgement.calls, judgement.unparsable)

    async def _checked(self, checker: Checker, instruction: Instruction, answer: str) -> bool | None:
        try:
            right = checker(instruction, answer)
            if inspect.isawaitable(right):
                right = await right
        except InstructGymError:
            raise
        except Exception as error:
            raise RewardError(
                f"reward '{self.name}': its checker raised {type(error).__name__}: {error}; expected True, False or "
                f"None. Instruction: {_excerpt(instruction)!r}."
            ) from error
        if right is not None and not isinstance(right, (bool, np.bool_)):
            raise RewardError(
                f"reward '{self.name}': its checker returned {right!r}; expected True, False or None. Instruction: "
                f"{_excerpt(instruction)!r}."
            )
        return None if right is None else bool(right)


def _checker(checker: str | Checker) -> Checker | None:
    """The function of a checker option; None for the reviewer."""
    if checker == "reviewer":
        return None
    found = load_from_file(checker) if isinstance(checker, str) and is_file_reference(checker) else checker
    if not callable(found) or isinstance(found, type):
        raise ConfigError(
            f"learnability got checker = {checker!r}; expected 'reviewer' or 'path/to/file.py:NAME' of a function "
            "(instruction, answer) -> bool."
        )
    return found


def _excerpt(instruction: Instruction) -> str:
    text = " ".join(instruction.text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
