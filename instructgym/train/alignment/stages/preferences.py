"""Stages `pairs` and `dpo` of a round."""

from __future__ import annotations

import json
from typing import Any

from instructgym.errors import ConfigError
from instructgym.llm_backends.answering import answer_messages
from instructgym.train.alignment.context import AlignmentContext, Round
from instructgym.train.alignment.meta_judge import most_judge_pairs
from instructgym.train.alignment.pairs import PairReport, demo_pairs, make_pairs
from instructgym.train.alignment.records import Candidate, Judgement, Pair, Prompt
from instructgym.train.alignment.replay import replayed
from instructgym.train.alignment.stages.answers import CANDIDATES, DEMONSTRATIONS
from instructgym.train.alignment.stages.judging import JUDGEMENTS
from instructgym.train.alignment.stages.meta_judging import JUDGE_PAIRS
from instructgym.train.alignment.stages.prompts import PROMPTS
from instructgym.train.stage import StageOutput
from instructgym.train.tuning.examples import PreferenceExample
from instructgym.types import Message

__all__ = ["PAIRS", "run_dpo", "run_pairs"]

PAIRS, PAIRS_REPORT = "pairs.jsonl", "pairs.json"


def run_pairs(context: AlignmentContext, round_: Round) -> StageOutput:
    """Writes `pairs.jsonl` and `pairs.json` (what was dropped and why, scores, lengths). Raises `ConfigError` if none.

    A run whose pairs are all dropped ends here, and says by which filter.
    """
    report = _report(context, round_)
    context.write(round_.file(PAIRS), report.pairs)
    document = report.as_dict()
    context.folder.write_text(round_.file(PAIRS_REPORT), json.dumps(document, indent=2) + "\n")
    if not report.pairs:
        raise ConfigError(f"round {round_.model} has no pairs to learn from. {report.explain()}")
    return StageOutput((round_.file(PAIRS), round_.file(PAIRS_REPORT)), document)


def _report(context: AlignmentContext, round_: Round) -> PairReport:
    settings = context.config.pairs
    prompts = context.read(Prompt, round_.file(PROMPTS))
    own = context.read(Candidate, round_.file(CANDIDATES))
    if round_.pipeline.chosen == "best":
        return make_pairs(prompts, own, context.read(Judgement, round_.file(JUDGEMENTS)), settings)
    demonstrations = None
    if round_.pipeline.chosen == "teacher":
        demonstrations = context.read(Candidate, round_.file(DEMONSTRATIONS))
    return demo_pairs(prompts, own, demonstrations, settings)


def run_dpo(context: AlignmentContext, round_: Round) -> StageOutput:
    """Trains the round's model by DPO from the one before, which is its reference."""
    from instructgym.train.tuning.dpo import train_dpo

    stage = f"{round_.model}.dpo"
    context.progress.started(stage, None)
    pairs = context.read(Pair, round_.file(PAIRS))
    examples = [
        PreferenceExample(tuple(answer_messages(pair.as_instruction)), pair.chosen, pair.rejected, pair.weight)
        for pair in pairs
    ]
    judging = _judge_pairs(context, round_, len(examples))
    share = context.config.rounds.eft_replay
    replay = replayed(context, round_, int(share / (1 - share) * len(examples))) if share else []
    context.free_device()
    config = context.config
    result = train_dpo(
        context.models.place(round_.before),
        [*examples, *judging, *replay],
        config.dpo,
        context.folder.path / round_.model,
        chat_template=config.student.chat_template,
        seed=config.run.seed + round_.number,
        device=config.student.device,
        trust_remote_code=config.student.trust_remote_code,
    )
    context.models.add(round_.model, result.model)
    facts: dict[str, Any] = {
        "pairs": len(examples),
        "judge_pairs": len(judging),
        "replayed": len(replay),
        "steps": result.steps,
        "train_loss": result.train_loss,
        "eval_loss": result.eval_loss,
        "counts": dict(result.counts),
    }
    return StageOutput((round_.file("model"), round_.file("log.jsonl")), facts)


def _judge_pairs(context: AlignmentContext, round_: Round, others: int) -> list[PreferenceExample]:
    """What the meta-judge made, no more than its share of the batch."""
    if f"{round_.model}.meta_judge" not in context.manifests:
        return []
    rows = context.folder.read_lines(round_.file(JUDGE_PAIRS))
    most = most_judge_pairs(others, context.config.meta_judge.share)
    return [
        PreferenceExample(
            tuple(Message(each["role"], each["content"]) for each in row["messages"]), row["chosen"], row["rejected"]
        )
        for row in rows[:most]
    ]
