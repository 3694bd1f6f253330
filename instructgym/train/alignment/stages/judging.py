"""Stages `judge` and `gate` of a round: every candidate's points, and whether the judge can be believed."""

from __future__ import annotations

import json
from typing import Any

from instructgym.errors import BackendError
from instructgym.llm_backends.base import LLM
from instructgym.rewards.concurrency import gather
from instructgym.train.alignment.context import AlignmentContext, Round, words_of
from instructgym.train.alignment.gate import AnchorResult, check_gate
from instructgym.train.alignment.judgements import break_ties, judge, panel
from instructgym.train.alignment.questions import question_of
from instructgym.train.alignment.records import Candidate, Judgement, Prompt
from instructgym.train.alignment.stages.answers import CANDIDATES
from instructgym.train.alignment.stages.first_model import ANCHORS
from instructgym.train.alignment.stages.prompts import PROMPTS
from instructgym.train.stage import StageOutput
from instructgym.types import Sampling

__all__ = ["GATE", "JUDGEMENTS", "judge_of", "run_gate", "run_judge"]

JUDGEMENTS, GATE = "judgements.jsonl", "gate.json"


def run_judge(context: AlignmentContext, round_: Round) -> StageOutput:
    """Writes `judgements.jsonl`: one for each candidate that is an answer."""
    stage = f"{round_.model}.judge"
    prompts = {prompt.id: prompt for prompt in context.read(Prompt, round_.file(PROMPTS))}
    candidates = context.read(Candidate, round_.file(CANDIDATES))
    items = [(prompts[each.prompt], each) for each in candidates if each.failure is None and not each.cut]
    judgements, lost = _judged(context, round_, items, stage)
    if context.config.judging.break_ties:
        judgements = _ties_broken(context, round_, judgements, items, stage)
    context.write(round_.file(JUDGEMENTS), judgements)
    samples = sum(len(each.samples) for each in judgements)
    valid = sum(each.valid for each in judgements)
    result: dict[str, Any] = {
        "judgements": len(judgements),
        "missing": sum(each.score is None for each in judgements),
        "parse_rate": valid / samples if samples else None,
        "failed": lost,
        "accounting": context.connection.accounting(stage),
    }
    return StageOutput((round_.file(JUDGEMENTS),), result, lost=lost)


def run_gate(context: AlignmentContext, round_: Round) -> StageOutput:
    """Writes `gate.json`: whether the round's judge passed, and if not, why. The run halts where it did not."""
    stage = f"{round_.model}.gate"
    judgements = context.read(Judgement, round_.file(JUDGEMENTS))
    rows = context.folder.read_lines(ANCHORS)
    items = []
    for number, row in enumerate(rows):
        prompt = Prompt(f"anchor-{number}", row["instruction"], row.get("input", ""))
        for index, text in enumerate((row["better"], row["worse"])):
            items.append((prompt, Candidate(prompt.id, index, text, "anchor")))
    judged, lost = _judged(context, round_, items, stage)
    scores = {(each.prompt, each.candidate): each.score for each in judged}
    anchors = [
        AnchorResult(better=scores.get((f"anchor-{number}", 0)), worse=scores.get((f"anchor-{number}", 1)))
        for number in range(len(rows))
    ]
    question = question_of(context.config)
    report = check_gate(judgements, scale=question.scale, anchors=anchors, settings=context.config.gate)
    passed = report.passed or not context.config.gate.enabled
    document = {"judge": round_.pipeline.judge, "passed": passed, "reasons": list(report.reasons), **report.numbers}
    context.folder.write_text(round_.file(GATE), json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    document["accounting"] = context.connection.accounting(stage)
    return StageOutput((round_.file(GATE),), document, lost=lost)


def judge_of(context: AlignmentContext, round_: Round, stage: str) -> LLM:
    """Who judges in a round: the model before, or the judge of the config."""
    settings = context.config.judging
    if round_.pipeline.judge == "student":
        sampling = Sampling(settings.temperature, settings.top_p, settings.max_tokens)
        return context.ask_student(round_.before, stage, sampling)
    return context.ask_guide("judge", stage)


def _judges_of(context: AlignmentContext, round_: Round, stage: str) -> list[LLM]:
    """Everybody whose scores count: the judge of the round, and its panel where it has one."""
    more = context.config.judging.panel if round_.pipeline.judge == "judge" else ()
    return [
        judge_of(context, round_, stage),
        *(context.ask_guide("judge", stage, model=model) for model in more),
    ]


def _ties_broken(
    context: AlignmentContext,
    round_: Round,
    judgements: list[Judgement],
    items: list[tuple[Prompt, Candidate]],
    stage: str,
) -> list[Judgement]:
    """Equal scores of a prompt's answers told apart by comparison; as they are where a call fails."""
    llm = judge_of(context, round_, stage)
    answers: dict[str, list[Candidate]] = {}
    for prompt, candidate in items:
        answers.setdefault(prompt.id, []).append(candidate)
    groups: dict[str, list[Judgement]] = {}
    for each in judgements:
        groups.setdefault(each.prompt, []).append(each)
    prompts = {prompt.id: prompt for prompt, _ in items}

    async def one(name: str) -> list[Judgement]:
        try:
            return await break_ties(llm, prompts[name], answers[name], groups[name])
        except BackendError as error:
            words_of(error)
            return groups[name]

    return [each for group in context.each(stage, one, list(groups)) for each in group]


def _judged(
    context: AlignmentContext, round_: Round, items: list[tuple[Prompt, Candidate]], stage: str
) -> tuple[list[Judgement], int]:
    """(judgements of what could be asked, how many could not)."""
    settings = context.config.judging
    judges = _judges_of(context, round_, stage)
    quorum = settings.quorum or len(judges) // 2 + 1
    question = question_of(context.config)

    async def one(item: tuple[Prompt, Candidate]) -> Judgement | None:
        prompt, candidate = item
        try:
            found = await gather(
                [
                    judge(
                        llm,
                        prompt,
                        candidate,
                        question=question,
                        samples=settings.samples,
                        min_valid=settings.min_valid,
                        logprobs=settings.expectation,
                        parse_retries=settings.parse_retries,
                        reference=prompt.reference if settings.reference_guided else None,
                    )
                    for llm in judges
                ],
                instant=all(llm.instant for llm in judges),
            )
        except BackendError as error:
            words_of(error)
            return None
        return found[0] if len(found) == 1 else panel(found, min_judges=quorum)

    found = context.each(stage, one, items)
    judgements = [each for each in found if each is not None]
    return judgements, len(found) - len(judgements)
