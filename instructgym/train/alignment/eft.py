"""Judge examples (EFT, arXiv 2401.10020): the judge's question with a reply whose score agrees with people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.rewards.concurrency import gather
from instructgym.train.alignment.anchors import anchor_pairs, split_anchors
from instructgym.train.alignment.eft_files import RankedAnswers, ScoredAnswer
from instructgym.train.alignment.judgements import ADDITIVE, TIED, Question, judge
from instructgym.train.alignment.records import Candidate, Judgement, Prompt
from instructgym.types import Completion, Instruction, Message

__all__ = [
    "EFTOutcome",
    "JudgeExample",
    "agrees_with_ranks",
    "anchor_pairs",
    "examples_from_ranks",
    "examples_from_score",
    "on_scale",
    "rebalance",
    "split_anchors",
    "to_scale",
    "written_reply",
]

Order = Literal["strict", "weak"]


@dataclass(frozen=True, slots=True)
class JudgeExample:
    """A chat that teaches to judge: the question, and as the last turn the reply. `score` is what the reply says."""

    prompt: str
    answer: int
    messages: tuple[Message, ...]
    score: float

    def as_row(self) -> dict[str, Any]:
        """A JSON object; `messages` have ``role`` and ``content``."""
        turns = [{"role": message.role, "content": message.content} for message in self.messages]
        return {"prompt": self.prompt, "answer": self.answer, "score": self.score, "messages": turns}


@dataclass(frozen=True, slots=True)
class EFTOutcome:
    """The judge examples of one row, or why there are none: ``unparsed``, ``disagrees`` or ``no_order``."""

    examples: tuple[JudgeExample, ...] = ()
    dropped: str | None = None


def agrees_with_ranks(scores: Sequence[float | None], ranks: Sequence[float], order: Order = "strict") -> bool:
    """Whether scores put answers in the order of their ranks, of which the lowest is the best.

    Answers of equal rank may score as they like. ``strict``: each of two unequal ranks has a higher score for the
    better one. ``weak``: none has a lower one, and one at least has a higher. Never, if a score is missing or all ranks
    are equal. Raises ValueError unless there are as many scores as ranks.
    """
    if len(scores) != len(ranks):
        raise ValueError(f"got {len(scores)} scores and {len(ranks)} ranks; expected as many of one as of the other.")
    found = [score for score in scores if score is not None]
    if len(found) < len(scores):
        return False
    signs = [
        0
        if abs(found[one] - found[two]) <= TIED
        else 1
        if (found[one] > found[two]) == (ranks[one] < ranks[two])
        else -1
        for one, two in combinations(range(len(ranks)), 2)
        if ranks[one] != ranks[two]
    ]
    if not signs:
        return False
    return min(signs) > 0 if order == "strict" else min(signs) >= 0 and max(signs) > 0


async def examples_from_ranks(
    llm: LLM,
    row: RankedAnswers,
    *,
    question: Question = ADDITIVE,
    draws: int = 3,
    order: Order = "strict",
    parse_retries: int = 0,
) -> EFTOutcome:
    """Judge every answer `draws` times; the first draw whose scores agree with the ranks gives the examples.

    One draw is one reply to each answer, so that a kept set is of one mind. Raises `BackendError` if a call fails.
    """
    if len(set(row.ranks)) < 2:
        return EFTOutcome(dropped="no_order")
    judged = await _judge_all(llm, row.id, row.instruction, row.answers, question, draws, parse_retries)
    whole = False
    for draw in range(draws):
        scores = [each.samples[draw] for each in judged]
        whole = whole or None not in scores
        if agrees_with_ranks(scores, row.ranks, order):
            return EFTOutcome(
                tuple(
                    _example(question, row.id, number, row.instruction, answer, each, draw)
                    for number, (answer, each) in enumerate(zip(row.answers, judged, strict=True))
                )
            )
    return EFTOutcome(dropped="disagrees" if whole else "unparsed")


async def examples_from_score(
    llm: LLM,
    row: ScoredAnswer,
    *,
    question: Question = ADDITIVE,
    draws: int = 3,
    parse_retries: int = 0,
) -> EFTOutcome:
    """Judge an answer `draws` times; the first reply that gives people's score is the example.

    The label is on the question's scale (see `on_scale`). A label with reasons needs no judge: they and the score are
    the reply. Raises `BackendError` if a call fails, and `ConfigError` for a label out of the scale.
    """
    low, high = question.scale
    if not low <= row.score <= high:
        raise ConfigError(
            f"the score of answer '{row.id}' is {row.score:g}; expected {low} to {high}, the scale of question "
            f"'{question.name}'. Set eft.label_scale to the scale of the labels."
        )
    if row.reasons.strip():
        reply = written_reply(question, row.reasons, row.score)
        messages = question.messages(row.instruction, row.answer)
        return EFTOutcome((JudgeExample(row.id, 0, (*messages, Message("assistant", reply)), row.score),))
    [judged] = await _judge_all(llm, row.id, row.instruction, [row.answer], question, draws, parse_retries)
    for draw, score in enumerate(judged.samples):
        if score is not None and abs(score - row.score) <= TIED:
            return EFTOutcome((_example(question, row.id, 0, row.instruction, row.answer, judged, draw),))
    return EFTOutcome(dropped="disagrees" if judged.valid else "unparsed")


async def _judge_all(
    llm: LLM,
    name: str,
    instruction: Instruction,
    answers: Sequence[str],
    question: Question,
    draws: int,
    parse_retries: int,
) -> list[Judgement]:
    prompt = Prompt(name, instruction.text, instruction.input)
    return await gather(
        [
            judge(
                llm,
                prompt,
                Candidate(name, number, answer, "people"),
                question=question,
                samples=draws,
                min_valid=1,
                parse_retries=parse_retries,
            )
            for number, answer in enumerate(answers)
        ],
        instant=llm.instant,
    )


def _example(
    question: Question, name: str, number: int, instruction: Instruction, answer: str, judged: Judgement, draw: int
) -> JudgeExample:
    messages = question.messages(instruction, answer)
    score = judged.samples[draw]
    if score is None:
        raise ValueError(f"draw {draw} of answer {number} to '{name}' could not be read; it is no example.")
    return JudgeExample(name, number, (*messages, Message("assistant", judged.replies[draw].strip())), score)


def written_reply(question: Question, reasons: str, score: float) -> str:
    """Reasons and a score as a judge writes them. Raises `ConfigError` if the question does not read such replies."""
    reply = f"{reasons.strip()}\n\nScore: {score:g}".lstrip()
    read = question.read(Completion(reply))
    if read is None or abs(read - score) > TIED:
        raise ConfigError(
            f"question '{question.name}' reads {reply[-40:]!r} as {read}; expected {score:g}. Give replies of its own "
            "format instead of reasons."
        )
    return reply


def on_scale(
    rows: Sequence[RankedAnswers | ScoredAnswer], labels: tuple[float, float] | None, scale: tuple[int, int]
) -> list[RankedAnswers | ScoredAnswer]:
    """The rows with their score labels on the judge's scale (`to_scale`); `labels` None says that they are.

    Raises `ConfigError` for the first label outside its scale.
    """
    low, high = labels or scale
    found: list[RankedAnswers | ScoredAnswer] = []
    for row in rows:
        if isinstance(row, ScoredAnswer):
            if not low <= row.score <= high:
                raise ConfigError(
                    f"the score of answer '{row.id}' is {row.score:g}; expected {low:g} to {high:g}. Set "
                    "eft.label_scale to the scale of the labels."
                )
            row = row.with_score(to_scale(row.score, (low, high), scale))
        found.append(row)
    return found


def to_scale(score: float, labels: tuple[float, float], scale: tuple[int, int]) -> int:
    """A label of one scale on another: linear, to the nearest whole number, a half up.

    Raises `ConfigError` for a label outside its scale, or a scale that does not go up.
    """
    low, high = labels
    if not low < high:
        raise ConfigError(f"the labels' scale is {low:g} to {high:g}; expected low < high.")
    if not low <= score <= high:
        raise ConfigError(f"a label is {score:g}; expected {low:g} to {high:g}.")
    return math.floor(scale[0] + (score - low) / (high - low) * (scale[1] - scale[0]) + 0.5)


def rebalance(
    examples: Sequence[JudgeExample], rng: np.random.Generator, *, most: float = 1.0
) -> tuple[list[JudgeExample], int]:
    """(the examples in order, how many were dropped): the commonest score keeps `most` times as many as the second.

    A judge that learns from what a judge says learns mostly its favourite score. Which ones stay `rng` draws. Examples
    of one score alone stay as they are. Raises ValueError for `most` below 1.
    """
    if most < 1:
        raise ValueError(f"rebalance got most = {most}; expected 1 or more.")
    counts = Counter(example.score for example in examples).most_common(2)
    if len(counts) < 2:
        return [*examples], 0
    (commonest, count), (_, second) = counts
    keep = int(most * second)
    if count <= keep:
        return [*examples], 0
    places = [place for place, example in enumerate(examples) if example.score == commonest]
    out = {places[number] for number in rng.permutation(count)[keep:].tolist()}
    return [example for place, example in enumerate(examples) if place not in out], len(out)
