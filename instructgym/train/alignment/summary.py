"""`summary.json` of an alignment: each model, what it was made of, and what was measured of it. No times, no hits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructgym.train.alignment.config import AlignmentConfig
from instructgym.train.alignment.context import FIRST
from instructgym.train.run_folder import SCHEMA, Manifest

__all__ = ["summarise"]


def summarise(config: AlignmentConfig, manifests: Mapping[str, Manifest], halted: str) -> dict[str, Any]:
    """The document, from the manifests of the finished stages; what is not finished is absent."""
    models = []
    if "student" in manifests or "M0.check" in manifests:
        models.append(_model("M0", "base model", {}, manifests))
    if "sft" in manifests:
        facts = {"examples": manifests["ift"].result["examples"], "judge_examples": manifests["eft"].result["examples"]}
        models.append(_model(FIRST, "sft", {**facts, **_of(manifests, "sft")}, manifests))
    for number, pipeline in enumerate(config.rounds.pipelines, start=2):
        name = f"M{number}"
        if f"{name}.prompts" not in manifests:
            break
        facts = {
            stage: _of(manifests, f"{name}.{stage}")
            for stage in ("prompts", "candidates", "demonstrations", "judge", "gate", "pairs", "dpo", "compare")
            if f"{name}.{stage}" in manifests
        }
        models.append(_model(name, pipeline.name, facts, manifests))
    return {
        "schema": SCHEMA,
        "name": config.run.name,
        "run_seed": config.run.seed,
        "student": config.student.model,
        "testbed": config.in_testbed,
        "simulated": [role for role in config.guides if config.llm.for_role(role).backend == "simulated"],
        "guides": {
            role: config.llm.for_role(role).model or config.llm.for_role(role).backend for role in config.guides
        },
        "pipelines": [pipeline.name for pipeline in config.rounds.pipelines],
        "halted": halted,
        "models": models,
        "queries": _queries(manifests),
    }


def _model(name: str, made_by: str, facts: Mapping[str, Any], manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    trained = {"M0": "student", FIRST: "sft"}.get(name, f"{name}.dpo")
    row: dict[str, Any] = {"model": name, "made_by": made_by, "trained": trained in manifests, **facts}
    if f"{name}.check" in manifests:
        row["check"] = _of(manifests, f"{name}.check")
    return row


def _of(manifests: Mapping[str, Manifest], stage: str) -> dict[str, Any]:
    return {key: value for key, value in manifests[stage].result.items() if key != "accounting"}


def _queries(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """Logical calls by stage and role."""
    return [row for manifest in manifests.values() for row in manifest.result.get("accounting", ())]
