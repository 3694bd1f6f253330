"""The dataset card: who wrote the text, from which seeds, and what is simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgym.train.config import SeedsSection
from instructgym.train.stage import StageContext

__all__ = ["dataset_card", "seeds_licence"]

OWN_SEEDS_LICENCE = "Apache-2.0"

_CARD = """\
---
language_creators:
- machine-generated
task_categories:
- text-generation
source_datasets:
- {source}
size_categories:
- {size}
license: {licence_tag}
tags:
- instruction-evolution
- instructgym{tag}
---
# Evolved instructions with answers{simulated_title}

{simulated}{rows} rows. Each is an instruction that was evolved from a seed by a policy's choice of rewrite operations,
and the answer of an LLM to the evolved instruction.

| what | value |
|---|---|
| instructions and answers written by | {expert} |
| rewrites reviewed by | {reviewer} |
| operations chosen by | {instructor} |
| action set | {action_set} ({operations}) |
| seeds | {seeds} of {source}, licence: {licence} |
| rows of chains that a failed call cut short (`incomplete`) | {incomplete} |
| rejected by the filter (`rejected.jsonl`, with reasons) | {rejected} |

## Files
`sft_alpaca.jsonl` (Alpaca form), `sft_messages.jsonl` (chat messages) and `sft.parquet` hold the same rows.

| column | meaning |
|---|---|
| id | unique in this dataset |
| instruction, input, output | the evolved instruction, the data it works on (may be empty), the answer |
| seed_id, chain | the seed that it comes from, and the chain in `lineage.jsonl` of the run |
| operations, rewards | the accepted rewrites in order, and the reward of each |
| models | who chose (`instructor`), wrote and answered (`expert`), and reviewed (`reviewer`) |
| prompt_versions | the versions of the prompts that were used |
| incomplete | true if a failed call ended the chain early |

## Licence
The seeds' licence is {licence}. The texts are a model's output: the terms of the models named above apply to them too.
"""

_SIMULATED = """\
> **SIMULATED.** {who} written by InstructGym's simulated backend (version {version}),
> a seeded stand-in for a language model. It is for trying out and testing the pipeline, and says nothing of any
> language model's quality. Train nothing on it that is meant to be used.

"""


def seeds_licence(seeds: SeedsSection) -> str:
    """The licence that the card names: the package's for its own seeds, unless the config says one."""
    return OWN_SEEDS_LICENCE if seeds.path == "default" and seeds.license == "unknown" else seeds.license


def dataset_card(rows: Sequence[Mapping[str, Any]], context: StageContext, models: Mapping[str, str]) -> str:
    """The text of `dataset/README.md`."""
    from instructgym.llm_backends.simulated import SIMULATOR_VERSION

    config = context.config
    simulated = context.runtime.simulated_roles
    licence = seeds_licence(config.seeds)
    source = "InstructGym's own seeds" if config.seeds.path == "default" else "the user's seeds"
    note = ""
    if simulated:
        who = "The text in this dataset was" if "expert" in simulated else "The reviewer's replies were"
        note = _SIMULATED.format(who=who, version=SIMULATOR_VERSION)
    action_set = context.runtime.action_set
    writers = sorted({row["models"]["expert"] for row in rows} or {models["expert"]})
    return _CARD.format(
        source=source,
        size=_size(len(rows)),
        licence_tag=licence.lower() if licence == OWN_SEEDS_LICENCE else "other",
        tag="\n- simulated" if simulated else "",
        simulated_title=" (SIMULATED)" if simulated else "",
        simulated=note,
        rows=len(rows),
        expert=_cell(", ".join(writers)),
        reviewer=_cell(models["reviewer"]),
        instructor=_cell(models["instructor"]),
        action_set=_cell(action_set.name),
        operations=", ".join(action_set.names),
        seeds=len(context.seeds.all),
        licence=_cell(licence),
        incomplete=sum(row["incomplete"] for row in rows),
        rejected=context.manifests["filter"].result["rejected"],
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _size(rows: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if rows < bound), "1M<n<10M")
