"""Stages `compare` and `check`: a model head to head with the one before it, and checked answers in the testbed."""

from __future__ import annotations

import json
from typing import Any

from instructgym.errors import BackendError
from instructgym.metrics.proportion import wilson_interval
from instructgym.rewards.judging.preference import Preference, ask_preference
from instructgym.train.alignment.context import AlignmentContext, Round, words_of
from instructgym.train.alignment.records import Candidate, Prompt
from instructgym.train.alignment.stages.answers import answers_of
from instructgym.train.alignment.stages.prompts import PROMPTS
from instructgym.train.stage import StageOutput
from instructgym.types import Sampling

__all__ = ["CHECK", "COMPARISON", "run_check", "run_compare"]

COMPARISON, CHECK = "comparison.json", "check.json"


def run_compare(context: AlignmentContext, round_: Round) -> StageOutput:
    """Writes `comparison.json`: wins, ties and losses of the round's model against the one before, in both orders.

    The prompts are the round's first ones: what M(t) was trained on it has not seen answered by its own kind here, and
    both models get the same.
    """
    rounds, section = context.config.rounds, context.config.candidates
    stage = f"{round_.model}.compare"
    prompts = context.read(Prompt, round_.file(PROMPTS))[: rounds.compare_prompts]
    sampling = Sampling(section.temperature, section.top_p, section.max_tokens)
    # One model after the other: they share a device.
    answers = {
        name: answers_of(context, prompts, context.ask_student(name, stage, sampling), 1, stage)
        for name in (round_.model, round_.before)
    }
    if rounds.compare_judge == "student":
        judging = context.config.judging
        judge = context.ask_student(
            round_.before, stage, Sampling(judging.temperature, judging.top_p, judging.max_tokens)
        )
    else:
        judge = context.ask_guide("judge", stage)
    items = [
        (prompt, new, old)
        for prompt, new, old in zip(prompts, answers[round_.model], answers[round_.before], strict=True)
        if new.text and old.text
    ]

    async def compare(item: tuple[Prompt, Candidate, Candidate]) -> Preference | None:
        prompt, new, old = item
        try:
            return await ask_preference(judge, prompt.as_instruction, new.text, old.text)
        except BackendError as error:
            words_of(error)
            return None

    found = [each for each in context.each(stage, compare, items) if each is not None and each.value is not None]
    wins = sum(each.value == 1.0 for each in found)
    losses = sum(each.value == 0.0 for each in found)
    decided = wins + losses
    document: dict[str, Any] = {
        "model": round_.model,
        "against": round_.before,
        "prompts": len(prompts),
        "wins": wins,
        "ties": len(found) - decided,
        "losses": losses,
        "unread": len(prompts) - len(found),
        "win_rate": wins / decided if decided else None,
        "interval": wilson_interval(wins, decided),
    }
    context.folder.write_text(round_.file(COMPARISON), json.dumps(document, indent=2) + "\n")
    return StageOutput((round_.file(COMPARISON),), {**document, "accounting": context.connection.accounting(stage)})


def run_check(context: AlignmentContext, model: str) -> StageOutput:
    """Writes `check.json`: how often a model is right on held-out tasks of the testbed, greedily, by family."""
    from instructgym.train.alignment.in_testbed import held_out
    from instructgym.train.testbed.tasks import check

    stage = f"{model}.check"
    tasks = held_out(context.config)
    prompts = [Prompt(task.id, task.prompt) for task in tasks]
    student = context.ask_student(model, stage, Sampling(0.0, 1.0, context.config.candidates.max_tokens))
    answers = answers_of(context, prompts, student, 1, stage)
    right = [check(task, answer.text) for task, answer in zip(tasks, answers, strict=True)]
    document: dict[str, Any] = {"model": model, "tasks": len(tasks), **_share(right)}
    for name, key in (("splits", "split"), ("families", "family")):
        groups = sorted({getattr(task, key) for task in tasks})
        document[name] = {
            group: _share([ok for ok, task in zip(right, tasks, strict=True) if getattr(task, key) == group])
            for group in groups
        }
    name = f"{model}/{CHECK}"
    context.folder.write_text(name, json.dumps(document, indent=2) + "\n")
    return StageOutput((name,), document)


def _share(right: list[bool]) -> dict[str, Any]:
    return {
        "accuracy": sum(right) / len(right) if right else None,
        "interval": wilson_interval(sum(right), len(right)),
        "n": len(right),
    }
