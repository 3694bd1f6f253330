"""`summary.json`: what a run came to. No times, durations or counts of hits: a rerun writes the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgym.train.accounting import EVOL_INSTRUCT_CALLS
from instructgym.train.card import seeds_licence
from instructgym.train.run_folder import SCHEMA, Manifest
from instructgym.train.stage import StageContext

__all__ = ["accounting_table", "summarise"]

ASKING = ("train", "evaluate", "evolve", "respond")


def summarise(context: StageContext) -> dict[str, Any]:
    """The document, from the manifests of the finished stages. Keys of stages that are not finished are absent."""
    config, runtime, seeds = context.config, context.runtime, context.seeds
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "name": config.run.name,
        "run_seed": config.run.seed,
        "simulated": list(runtime.simulated_roles),
        "models": runtime.models(config.evolve.policy),
        "encoder": runtime.encoder.name,
        "action_set": {
            "name": runtime.action_set.name,
            "hash": runtime.action_set.hash,
            "operations": list(runtime.action_set.names),
        },
        "reward": {"terms": config.reward.terms, "gate": config.reward.gate},
        "horizon": config.env.horizon,
        "seeds": {
            "count": len(seeds.all),
            "train": len(seeds.train),
            "held_out": len(seeds.held_out),
            "format": seeds.format,
            "licence": seeds_licence(config.seeds),
        },
    }
    for stage, manifest in context.manifests.items():
        own = {name: value for name, value in manifest.result.items() if name != "accounting"}
        document["evaluation" if stage == "evaluate" else stage] = own
    document["queries"] = accounting_table(context.manifests)
    return document


def accounting_table(manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """Logical calls by stage and role, each also as a share of Evol-Instruct's published 624,000.

    ``dataset`` sums what made the data (evolve, respond), ``total`` everything, training and evaluation included.
    """
    rows = [
        {**row, "share_of_evol_instruct": _share(row["calls"])}
        for stage in ASKING
        if stage in manifests
        for row in manifests[stage].result["accounting"]
    ]
    made = sum(row["calls"] for row in rows if row["stage"] in ("evolve", "respond"))
    total = sum(row["calls"] for row in rows)
    return {
        "evol_instruct_calls": EVOL_INSTRUCT_CALLS,
        "rows": rows,
        "dataset": {"calls": made, "share_of_evol_instruct": _share(made)},
        "total": {"calls": total, "share_of_evol_instruct": _share(total)},
    }


def _share(calls: int) -> float:
    return round(calls / EVOL_INSTRUCT_CALLS, 6)
