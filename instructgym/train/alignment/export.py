"""Stage `export`: the pairs of all rounds as a preference dataset with its card, and the lineage of each."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from instructgym.train.alignment.context import AlignmentContext, Round
from instructgym.train.alignment.records import Pair, Prompt
from instructgym.train.alignment.stages.judging import JUDGEMENTS
from instructgym.train.alignment.stages.preferences import PAIRS
from instructgym.train.alignment.stages.prompts import PROMPTS
from instructgym.train.run_folder import canonical_json
from instructgym.train.stage import StageOutput

__all__ = ["COLUMNS", "run_export"]

JSONL, PARQUET, CARD, LINEAGE = (
    "preferences/pairs.jsonl",
    "preferences/pairs.parquet",
    "preferences/README.md",
    "lineage.jsonl",
)
COLUMNS = (
    "id",
    "prompt",
    "chosen",
    "rejected",
    "instruction",
    "input",
    "chosen_score",
    "rejected_score",
    "weight",
    "round",
    "pipeline",
    "chosen_from",
    "rejected_from",
    "judge",
    "prompt_source",
)
_CARD = """\
---
task_categories:
- text-generation
tags:
- preference
- dpo
- instructgym{tag}
---
# Preference pairs of an alignment

{note}{rows} pairs of {rounds} rounds. The student is `{student}`; `chosen` and `rejected` answer the same prompt.

| model | pipeline | pairs | chosen by |
|---|---|---|---|
{table}

## Files
`pairs.jsonl` and `pairs.parquet` hold the same rows; `prompt`, `chosen`, `rejected` are what trl.DPOTrainer reads.

| column | meaning |
|---|---|
| prompt | the instruction, and its input after a blank line |
| chosen, rejected | the answers |
| chosen_score, rejected_score | the judge's mean points; null where nobody judged |
| weight | the pair's weight in training |
| round, pipeline | the model that was trained on the pair, and how it was made |
| chosen_from, rejected_from | the answers: MODEL/INDEX, teacher/0 or human |
| judge, prompt_source | who judged, and where the prompt is from |

`lineage.jsonl` of the run leads from each pair to its prompt, the answers' judgements and the models' digests.
"""


def run_export(context: AlignmentContext, rounds: Sequence[Round]) -> StageOutput:
    """Writes `preferences/` (JSON lines, Parquet, card) and `lineage.jsonl`, of the rounds that have pairs."""
    done = [each for each in rounds if f"{each.model}.pairs" in context.manifests]
    rows, lineage = [], []
    for round_ in done:
        prompts = {prompt.id: prompt for prompt in context.read(Prompt, round_.file(PROMPTS))}
        judged = context.folder.read_lines(round_.file(JUDGEMENTS)) if round_.pipeline.judged else []
        points: dict[str, list[dict[str, Any]]] = {}
        for row in judged:
            points.setdefault(row["prompt"], []).append(row)
        for number, pair in enumerate(context.read(Pair, round_.file(PAIRS))):
            judgements = points.get(pair.prompt, [])
            row = _row(f"{round_.model}-{number}", pair, prompts[pair.prompt], round_, judgements)
            rows.append(row)
            lineage.append(_lineage(context, row, prompts[pair.prompt], round_, judgements))
    folder = context.folder
    folder.write_lines(JSONL, [json.dumps(row, ensure_ascii=False) for row in rows])
    folder.write_bytes(PARQUET, _parquet(rows))
    folder.write_text(CARD, _card(context, rows, done))
    folder.write_lines(LINEAGE, [canonical_json(row) for row in lineage])
    return StageOutput((JSONL, PARQUET, CARD, LINEAGE), {"pairs": len(rows), "rounds": len(done)})


def _row(name: str, pair: Pair, prompt: Prompt, round_: Round, judgements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = {
        "id": name,
        "prompt": pair.as_instruction.render(),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "instruction": pair.instruction,
        "input": pair.input,
        "chosen_score": pair.chosen_score,
        "rejected_score": pair.rejected_score,
        "weight": pair.weight,
        "round": round_.model,
        "pipeline": round_.pipeline.name,
        "chosen_from": pair.chosen_from,
        "rejected_from": pair.rejected_from,
        "judge": judgements[0]["judge"] if judgements else None,
        "prompt_source": prompt.source,
    }
    return {column: values[column] for column in COLUMNS}


def _lineage(
    context: AlignmentContext,
    row: dict[str, Any],
    prompt: Prompt,
    round_: Round,
    judgements: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "pair": row["id"],
        "prompt": prompt.id,
        "prompt_source": prompt.source,
        "prompt_parents": list(prompt.parents),
        "chosen_from": row["chosen_from"],
        "rejected_from": row["rejected_from"],
        "judgements": [{key: each[key] for key in ("candidate", "judge", "score", "samples")} for each in judgements],
        "trained_from": context.models.id(round_.before),
        "led_to": context.models.id(round_.model) if f"{round_.model}.dpo" in context.manifests else None,
    }


def _card(context: AlignmentContext, rows: Sequence[dict[str, Any]], done: Sequence[Round]) -> str:
    config = context.config
    notes = []
    if config.in_testbed:
        notes.append(
            "> **TESTBED.** Tasks, answers and judgements come from a world of small checkable tasks made for testing."
        )
    if any(config.llm.for_role(role).backend == "simulated" for role in config.guides):
        notes.append("> **SIMULATED.** A guide was InstructGym's simulated backend, a stand-in for a language model.")
    table = [
        f"| {each.model} | {each.pipeline.name} | {sum(row['round'] == each.model for row in rows)} | "
        f"{next((row['judge'] for row in rows if row['round'] == each.model and row['judge']), 'nobody')} |"
        for each in done
    ]
    return _CARD.format(
        tag="\n- testbed" if config.in_testbed else "",
        note="".join(f"{note}\n\n" for note in notes),
        rows=len(rows),
        rounds=len(done),
        student=config.student.model.replace("|", "\\|"),
        table="\n".join(table),
    )


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """The rows as Parquet; equal rows give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = {"chosen_score", "rejected_score", "weight"}
    schema = pa.schema([(column, pa.float64() if column in numbers else pa.string()) for column in COLUMNS])
    sink = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=schema)
    pq.write_table(table, sink, compression="snappy", version="2.6", row_group_size=65_536)
    return sink.getvalue()
