"""Stage `meta_judge` of a round: the student's judgements, judged by itself, as pairs of judge replies."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from instructgym.errors import BackendError
from instructgym.train.alignment.context import AlignmentContext, Round, words_of
from instructgym.train.alignment.judgements import judge
from instructgym.train.alignment.meta_judge import (
    Comparison,
    JudgePair,
    compare_judgements,
    elo_ratings,
    judge_pair,
    most_disputed,
    position_weights,
)
from instructgym.train.alignment.questions import question_of
from instructgym.train.alignment.records import Candidate, Judgement, Prompt
from instructgym.train.alignment.stages.answers import CANDIDATES
from instructgym.train.alignment.stages.judging import JUDGEMENTS, judge_of
from instructgym.train.alignment.stages.prompts import PROMPTS
from instructgym.train.stage import StageOutput

__all__ = ["JUDGE_PAIRS", "run_meta_judge"]

JUDGE_PAIRS = "judge_pairs.jsonl"


def run_meta_judge(context: AlignmentContext, round_: Round) -> StageOutput:
    """Writes `judge_pairs.jsonl`: for the most disputed answers the best reply of the judge against the worst."""
    stage = f"{round_.model}.meta_judge"
    settings, question = context.config.meta_judge, question_of(context.config)
    prompts = {prompt.id: prompt for prompt in context.read(Prompt, round_.file(PROMPTS))}
    answers = {(each.prompt, each.index): each for each in context.read(Candidate, round_.file(CANDIDATES))}
    chosen = most_disputed(context.read(Judgement, round_.file(JUDGEMENTS)), settings.answers)
    llm = judge_of(context, round_, stage)

    async def compare(each: Judgement) -> tuple[Judgement, list[Comparison]] | None:
        prompt, answer = prompts[each.prompt], answers[each.prompt, each.candidate]
        try:
            again = await judge(llm, prompt, answer, question=question, samples=settings.samples, min_valid=1)
            found = await compare_judgements(
                llm, prompt, answer, again, question=question, parse_retries=settings.parse_retries
            )
        except BackendError as error:
            words_of(error)
            return None
        return again, found

    compared = [found for found in context.each(stage, compare, chosen) if found is not None]
    weights = position_weights([comparison for _, found in compared for comparison in found])
    pairs: list[JudgePair] = []
    for judgement, found in compared:
        prompt, answer = prompts[judgement.prompt], answers[judgement.prompt, judgement.candidate]
        pair = judge_pair(question, prompt, answer, judgement, elo_ratings(found, weights))
        if pair is not None:
            pairs.append(pair)
    context.write_rows(round_.file(JUDGE_PAIRS), [asdict(pair) for pair in pairs])
    result: dict[str, Any] = {
        "answers": len(chosen),
        "pairs": len(pairs),
        "weight_of_first_place": weights[0],
        "failed": len(chosen) - len(compared),
        "accounting": context.connection.accounting(stage),
    }
    return StageOutput((round_.file(JUDGE_PAIRS),), result, lost=len(chosen) - len(compared))
