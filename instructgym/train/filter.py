"""Stage `filter`: which answered instructions go into the dataset; the others are kept with their reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructgym.metrics import has_only_stop_words, leaks_template, normalise, refuses, template_markers
from instructgym.train.respond import ANSWERS
from instructgym.train.run_folder import canonical_json
from instructgym.train.stage import StageContext, StageOutput

__all__ = ["FILTERED", "REJECTED", "RULES", "filter_rows", "run_filter"]

FILTERED = "stages/filtered.jsonl"
REJECTED = "dataset/rejected.jsonl"
NO_ANSWER = "no_answer"

_NEVER_IN_AN_ANSWER = frozenset({"chat token", "fence", "our rules"})

Row = Mapping[str, Any]


def _cut(row: Row) -> bool:
    return bool(row["finish_reason"] == "length")


def _leaked(row: Row) -> bool:
    # An answer may well have a heading "### Instructions:"; in an instruction that is the template's.
    return leaks_template(row["instruction"]) or bool(_NEVER_IN_AN_ANSWER & template_markers(row["output"]))


def _same_as_instruction(row: Row) -> bool:
    answer = normalise(row["output"])
    return answer in (normalise(row["instruction"]), normalise(f"{row['instruction']}\n\n{row['input']}"))


RULES: dict[str, Callable[[Row], bool]] = {
    "refused": lambda row: refuses(row["output"]),
    "stop_words": lambda row: has_only_stop_words(row["output"]),
    "leaked": _leaked,
    "cut": _cut,
    "same_as_instruction": _same_as_instruction,
}
"""True if the row is to be rejected; `duplicate` needs the rows before it and stands in `filter_rows`."""


def filter_rows(rows: Sequence[Row], rules: Sequence[str]) -> tuple[list[Row], list[dict[str, Any]]]:
    """``(kept, rejected)``, both in the order of `rows`; a rejected row carries the first rule that met it.

    Of exact duplicates (instruction and input) the first that is kept stays.
    """
    kept: list[Row] = []
    rejected: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    for row in rows:
        content = (row["instruction"], row["input"])
        if row["failure"]:
            reason = NO_ANSWER
        else:
            reason = next((name for name in rules if name in RULES and RULES[name](row)), "")
            if not reason and "duplicate" in rules and content in seen:
                reason = "duplicate"
        if reason:
            rejected.append({**row, "reason": reason})
        else:
            seen.add(content)
            kept.append(row)
    return kept, rejected


def run_filter(context: StageContext) -> StageOutput:
    """Reads the answers, writes `stages/filtered.jsonl` and `dataset/rejected.jsonl`."""
    rows = context.folder.read_lines(ANSWERS)
    context.progress.started("filter", len(rows))
    kept, rejected = filter_rows(rows, context.config.filter.rules)
    context.folder.write_lines(FILTERED, [canonical_json(row) for row in kept])
    context.folder.write_lines(REJECTED, [canonical_json(row) for row in rejected])
    context.progress.advance("filter", len(rows))
    reasons: dict[str, int] = {}
    for row in rejected:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    result = {"kept": len(kept), "rejected": len(rejected), "reasons": dict(sorted(reasons.items()))}
    return StageOutput((FILTERED, REJECTED), result)
