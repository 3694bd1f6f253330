"""Stage `export`: the kept rows as an SFT dataset in three forms, with its card."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from instructgym.train.filter import FILTERED
from instructgym.train.stage import StageContext, StageOutput

__all__ = ["COLUMNS", "dataset_rows", "run_export"]

COLUMNS = (
    "id",
    "instruction",
    "input",
    "output",
    "seed_id",
    "chain",
    "operations",
    "rewards",
    "models",
    "prompt_versions",
    "incomplete",
)
MODEL_ROLES = ("instructor", "expert", "reviewer")
ALPACA, MESSAGES, PARQUET, CARD = (
    f"dataset/{name}" for name in ("sft_alpaca.jsonl", "sft_messages.jsonl", "sft.parquet", "README.md")
)


def run_export(context: StageContext) -> StageOutput:
    """Writes `dataset/`: `sft_alpaca.jsonl`, `sft_messages.jsonl`, `sft.parquet` and the card `README.md`."""
    from instructgym.train.card import dataset_card

    config, folder = context.config, context.folder
    models = context.runtime.models(config.evolve.policy)
    rows = dataset_rows(folder.read_lines(FILTERED), models)
    context.progress.started("export", len(rows))
    files = []
    if "alpaca" in config.export.formats:
        folder.write_lines(ALPACA, [json.dumps(row, ensure_ascii=False) for row in rows])
        files.append(ALPACA)
    if "messages" in config.export.formats:
        folder.write_lines(MESSAGES, [json.dumps(_as_messages(row), ensure_ascii=False) for row in rows])
        files.append(MESSAGES)
    if "parquet" in config.export.formats:
        folder.write_bytes(PARQUET, _parquet(rows))
        files.append(PARQUET)
    folder.write_text(CARD, dataset_card(rows, context, models))
    context.progress.advance("export", len(rows))
    result = {"rows": len(rows), "incomplete": sum(row["incomplete"] for row in rows), "models": dict(models)}
    return StageOutput((*files, CARD), result)


def dataset_rows(kept: Sequence[Mapping[str, Any]], models: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows with exactly `COLUMNS`, in that order. `models` names who chose, wrote and reviewed."""
    rows = []
    for row in kept:
        own = {**models, "expert": row["answered_by"] or models["expert"]}
        values = {**row, "models": {role: own[role] for role in MODEL_ROLES}}
        rows.append({column: values[column] for column in COLUMNS})
    return rows


def _as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
    rest = {column: row[column] for column in COLUMNS if column not in ("id", "instruction", "input", "output")}
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["output"]}]
    return {"id": row["id"], "messages": messages, **rest}


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The rows as Parquet. Options are fixed and the metadata holds no time, so equal rows give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    schema = pa.schema(
        [
            ("id", text),
            ("instruction", text),
            ("input", text),
            ("output", text),
            ("seed_id", text),
            ("chain", pa.int64()),
            ("operations", pa.list_(text)),
            ("rewards", pa.list_(pa.float64())),
            ("models", pa.struct([(role, text) for role in MODEL_ROLES])),
            ("prompt_versions", pa.list_(text)),
            ("incomplete", pa.bool_()),
        ]
    )
    sink = io.BytesIO()
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    pq.write_table(table, sink, compression="snappy", version="2.6", row_group_size=65_536)
    return sink.getvalue()
