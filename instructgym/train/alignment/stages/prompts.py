"""Stage `prompts` of a round: new prompts, which no earlier round had."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructgym.errors import BackendError, ConfigError
from instructgym.train.alignment.config import PromptsSection
from instructgym.train.alignment.context import FIRST, AlignmentContext, Round, words_of
from instructgym.train.alignment.prompt_filters import PromptFilter
from instructgym.train.alignment.prompt_writing import (
    PROMPT_WRITING_VERSION,
    read_written,
    shots_for,
    writing_messages,
)
from instructgym.train.alignment.records import Prompt
from instructgym.train.alignment.stages.first_model import IFT
from instructgym.train.seed_files import read_seeds
from instructgym.train.stage import StageOutput
from instructgym.types import Sampling

__all__ = ["PROMPTS", "evolved_prompts", "run_prompts"]

PROMPTS, DROPPED = "prompts.jsonl", "prompts_dropped.jsonl"
_BATCH = 64


def run_prompts(context: AlignmentContext, round_: Round) -> StageOutput:
    """Writes `prompts.jsonl` of the round, and `prompts_dropped.jsonl` with reasons where a model wrote them."""
    section = context.config.prompts
    dropped: list[dict[str, Any]] = []
    lost = 0
    if section.source == "generated":
        prompts, dropped, lost = _generated(context, round_)
    else:
        prompts = _share(_all(context), round_, section, context.config.run.seed)
    if not prompts:
        counts = _counts(dropped)
        raise ConfigError(
            f"round {round_.model} has no prompts: {counts or 'its source holds too few for so many rounds'}. Change "
            "section 'prompts' of the config."
        )
    context.write(round_.file(PROMPTS), prompts)
    files = [round_.file(PROMPTS)]
    if section.source == "generated":
        context.write_rows(round_.file(DROPPED), dropped)
        files.append(round_.file(DROPPED))
    result: dict[str, Any] = {"prompts": len(prompts), "wanted": section.count, "dropped": _tally(dropped)}
    if context.connection.connected:
        result["accounting"] = context.connection.accounting(f"{round_.model}.prompts")
    return StageOutput(tuple(files), result, lost=lost)


def _all(context: AlignmentContext) -> list[Prompt]:
    """Every prompt of a source that is there before the rounds, in its order."""
    section = context.config.prompts
    if section.source == "ift":
        return context.read(Prompt, IFT)
    if section.source == "testbed":
        from instructgym.train.alignment.in_testbed import round_prompts

        return round_prompts(context.config)
    if section.source == "evolved":
        return evolved_prompts(Path(section.path))
    seeds = read_seeds(section.path).seeds
    return [
        Prompt(seed.id, seed.instruction.text, seed.instruction.input, source="file", reference=seed.output)
        for seed in seeds
    ]


def evolved_prompts(folder: Path) -> list[Prompt]:
    """The dataset that `instructgym run` exported. Raises `ConfigError`."""
    path = folder / "dataset" / "sft_alpaca.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except OSError as error:
        raise ConfigError(
            f"prompts.path '{folder}' holds no dataset of a run ({path} cannot be read: {error.strerror}); expected "
            "the folder of a finished `instructgym run`."
        ) from error
    return [
        Prompt(row["id"], row["instruction"], row["input"], source="evolved", parents=(row["seed_id"],)) for row in rows
    ]


def _share(prompts: Sequence[Prompt], round_: Round, section: PromptsSection, run_seed: int) -> list[Prompt]:
    """The round's part of a list that all rounds share, in an order that the run's seed draws."""
    order = sorted(range(len(prompts)), key=lambda index: _rank(run_seed, prompts[index].id))
    start = round_.index * section.count
    return [prompts[index] for index in order[start : start + section.count]]


def _rank(run_seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{run_seed}\x1f{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _generated(context: AlignmentContext, round_: Round) -> tuple[list[Prompt], list[dict[str, Any]], int]:
    """Prompts that a model writes after examples, until there are enough; (kept, dropped with reasons, failed calls).

    Requests go out in batches, and what a batch wrote is looked at in its order: the result does not hang on which
    answer came first.
    """
    section, run_seed = context.config.prompts, context.config.run.seed
    stage = f"{round_.model}.prompts"
    seeds = context.read(Prompt, IFT)
    earlier = [prompt for number in range(2, round_.number) for prompt in context.read(Prompt, f"M{number}/{PROMPTS}")]
    filter_ = PromptFilter(
        [prompt.as_instruction.render() for prompt in [*seeds, *earlier]],
        max_rouge=section.max_rouge,
        min_words=section.min_words,
        max_words=section.max_words,
        decontaminate=_evaluation_texts(section.decontaminate),
    )
    sampling = Sampling(section.temperature, section.top_p, section.max_tokens)
    if section.writer == "teacher":
        writer = context.ask_guide("teacher", stage, sampling)
    else:
        writer = context.ask_student(FIRST if section.writer == "M1" else round_.before, stage, sampling)
    kept: list[Prompt] = []
    dropped: list[dict[str, Any]] = []
    asked = lost = 0
    most = int(section.max_attempts * section.count)
    context.progress.started(stage, section.count)
    while len(kept) < section.count and asked < most:
        numbers = range(asked, min(asked + _BATCH, most))
        asked = numbers.stop
        shots = {
            number: shots_for(
                number,
                seeds,
                kept,
                np.random.default_rng([run_seed, round_.number, number]),
                from_seeds=section.shots_from_ift,
                from_generated=section.shots_generated,
            )
            for number in numbers
        }

        async def write(number: int, shots: dict[int, tuple[Prompt, ...]] = shots) -> list[str] | None:
            try:
                completion = await writer.ask(
                    writing_messages(shots[number]),
                    prompt_version=PROMPT_WRITING_VERSION,
                    sample=(round_.number, number),
                )
            except BackendError as error:
                words_of(error)
                return None
            return read_written(completion, shots[number])

        written = context.each(stage, write, list(numbers))
        lost += sum(texts is None for texts in written)
        for number, texts in zip(numbers, written, strict=True):
            parents = tuple(shot.id for shot in shots[number])
            for index, text in enumerate(texts or ()):
                reason = filter_.check(text)
                if reason is not None:
                    dropped.append({"reason": reason, "text": text, "parents": list(parents)})
                elif len(kept) < section.count:
                    filter_.accept(text)
                    name = f"{round_.model}-{number}-{index}"
                    kept.append(Prompt(name, text, source="generated", parents=parents))
    return kept, dropped, lost


def _evaluation_texts(paths: Iterable[str]) -> list[str]:
    return [seed.instruction.render() for path in paths for seed in read_seeds(path).seeds]


def _tally(dropped: Sequence[dict[str, Any]]) -> dict[str, int]:
    tally: dict[str, int] = {}
    for row in dropped:
        tally[row["reason"]] = tally.get(row["reason"], 0) + 1
    return dict(sorted(tally.items()))


def _counts(dropped: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{count} dropped as '{reason}'" for reason, count in _tally(dropped).items())
