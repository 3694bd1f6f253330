"""The EFT set of a run: judge examples that agree with people, and anchor pairs that were kept apart from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from instructgym.errors import BackendError, ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.train.alignment.context import AlignmentContext, words_of
from instructgym.train.alignment.eft import (
    EFTOutcome,
    JudgeExample,
    examples_from_ranks,
    examples_from_score,
    on_scale,
    rebalance,
    split_anchors,
)
from instructgym.train.alignment.eft_files import RankedAnswers, ScoredAnswer, read_eft
from instructgym.train.alignment.questions import question_of
from instructgym.types import Sampling

__all__ = ["BASELINE", "judge_examples"]

BASELINE = "baseline"
"""The model that writes judge examples: fine-tuned on IFT alone."""


def judge_examples(context: AlignmentContext) -> tuple[list[JudgeExample], list[dict[str, str]], dict[str, Any]]:
    """(examples, anchor pairs, counts). None of either without `eft.path`.

    Raises `ConfigError` if a file is given and nothing of it can be used.
    """
    config = context.config
    if not config.eft.path:
        return [], [], {}
    if config.eft.path == "testbed":
        from instructgym.train.alignment.in_testbed import anchors, judge_rows

        examples = judge_rows(config)
        return examples, anchors(config), {"rows": len(examples)}
    rng = np.random.default_rng([config.run.seed, 1])
    found = read_eft(config.eft.path, skip_bad=config.eft.skip_bad, limit=config.eft.limit)
    question = question_of(config)
    scaled = on_scale(found.rows, config.eft.label_scale, question.scale)
    rows, held_out = split_anchors(scaled, config.eft.anchors, rng)
    writer = _writer(context)

    async def written(row: RankedAnswers | ScoredAnswer) -> EFTOutcome:
        own = config.eft
        try:
            if isinstance(row, RankedAnswers):
                return await examples_from_ranks(writer, row, question=question, draws=own.draws, order=own.order)
            return await examples_from_score(writer, row, question=question, draws=own.draws)
        except BackendError as error:
            words_of(error)
            return EFTOutcome(dropped="failed")

    outcomes = context.each("eft", written, rows)
    examples = [example for outcome in outcomes for example in outcome.examples]
    counts: dict[str, Any] = {"rows": len(rows)}
    for outcome in outcomes:
        if outcome.dropped is not None:
            counts[outcome.dropped] = counts.get(outcome.dropped, 0) + 1
    if not examples:
        raise ConfigError(
            f"none of the {len(rows)} rows of '{config.eft.path}' gave a judge example: "
            f"{', '.join(f'{count} {reason}' for reason, count in counts.items() if reason != 'rows')}. The writer "
            f"({config.eft.writer}) has to judge as people do in at least some; take the teacher, more draws, or "
            "order = 'weak'."
        )
    if config.eft.rebalance is not None:
        examples, counts["rebalanced_away"] = rebalance(examples, rng, most=config.eft.rebalance)
    return examples, held_out, counts


def _writer(context: AlignmentContext) -> LLM:
    own = context.config.eft
    sampling = Sampling(own.temperature, own.top_p, own.max_tokens)
    if own.writer == "teacher":
        return context.ask_guide("teacher", "eft", sampling)
    return context.ask_student(BASELINE, "eft", sampling)
