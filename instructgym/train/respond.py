"""Stage `respond`: the expert answers the evolved instructions, never the seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from instructgym.errors import BackendError
from instructgym.llm_backends.answering import ANSWER_VERSION, answer_messages
from instructgym.llm_backends.base import LLM
from instructgym.train.bounded import ENDS_THE_RUN, map_bounded
from instructgym.train.config import Config
from instructgym.train.evolve import EVOLVED
from instructgym.train.run_folder import canonical_json
from instructgym.train.stage import StageContext, StageOutput
from instructgym.types import Instruction, Sampling

__all__ = ["ANSWERS", "run_respond"]

ANSWERS = "stages/answers.jsonl"
PARTIAL_ANSWERS = "stages/answers.partial.jsonl"


def run_respond(context: StageContext) -> StageOutput:
    """Writes `stages/answers.jsonl`: the evolved rows with `output`, `finish_reason` and `failure`.

    Answers go to `stages/answers.partial.jsonl` as they come; it stays where the stage is cut off.
    """
    config, runtime = context.config, context.runtime
    rows = context.folder.read_lines(EVOLVED)
    context.progress.started("respond", len(rows))
    expert = runtime.llm("expert", "respond")
    sampling = answer_sampling(config, expert.sampling)
    log = context.folder.log(PARTIAL_ANSWERS)
    done = 0

    async def answer(item: tuple[int, dict[str, Any]]) -> dict[str, Any]:
        return await _answered(item[1], item[0], expert, sampling)

    def on_done(_index: int, row: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        log.append([canonical_json(row)])
        context.progress.advance("respond", done)

    try:
        answered = runtime.call(
            lambda: map_bounded(answer, list(enumerate(rows)), width=config.limits.width, on_done=on_done)
        )
    finally:
        log.close()
    context.folder.write_lines(ANSWERS, [canonical_json(row) for row in answered])
    log.discard()
    lost = sum(row["failure"] is not None for row in answered)
    result = {"answers": len(answered) - lost, "failed": lost, "accounting": runtime.accounting("respond")}
    return StageOutput((ANSWERS,), result, lost=lost)


def answer_sampling(config: Config, of_expert: Sampling) -> Sampling:
    """The expert's sampling with what section `respond` says otherwise."""
    return replace(of_expert, **config.respond.model_dump(exclude_none=True))


async def _answered(row: dict[str, Any], number: int, expert: LLM, sampling: Sampling) -> dict[str, Any]:
    prompt = answer_messages(Instruction(row["instruction"], row["input"]))
    result = {**row, "output": "", "finish_reason": "", "answered_by": "", "failure": None}
    try:
        completion = await expert.ask(prompt, prompt_version=ANSWER_VERSION, sample=(number, 0), sampling=sampling)
    except ENDS_THE_RUN:
        raise
    except BackendError as error:
        return {**result, "failure": f"{type(error).__name__}: {error}"}
    return {
        **result,
        "output": completion.text.strip(),
        "finish_reason": completion.finish_reason,
        "answered_by": completion.model or expert.model,
        "prompt_versions": sorted({*row["prompt_versions"], ANSWER_VERSION}),
    }
