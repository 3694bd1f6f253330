"""The exhaustive optimum of a task on the simulator: the end of the scale.

From a held-out seed every sequence of operations is played with the draws of the evaluation's own chain. The best one
knows the draws beforehand, so it is an upper bound that no policy can count on reaching.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructgym import __version__
from instructgym.llm_backends.simulated import SIMULATOR_VERSION, SimulatedBackend
from instructgym.train.chains import DIGITS
from instructgym.train.config import ROLES, Config, build_config
from instructgym.train.pipeline import seeds_of
from instructgym.train.planning import MAX_NODES, Tree, grow_tree, tree_nodes
from instructgym.train.policy_bench.plan import Cell
from instructgym.train.run_folder import RunFolder
from instructgym.train.runtime import Runtime
from instructgym.types import Seed

__all__ = ["BareRuntime", "OracleJob", "no_oracle", "oracle_job", "read_oracle", "run_oracle"]


class BareRuntime(Runtime):
    """A run's parts on the bare simulator, without ledger or portal: a tree asks thousands of times, for nothing."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._simulator = SimulatedBackend(run_seed=config.run.seed)

    @property
    def counting(self) -> Any:
        """The simulator, in the place of what counts its calls."""
        return self._simulator

    def tree(self, seed: Seed, draw: int) -> Tree:
        """All sequences of operations from `seed`, with the expert's samples of chain draw `draw`."""
        dynamics = self.dynamics("oracle", self.reward_for("oracle"))
        return asyncio.run(grow_tree(dynamics, dynamics.start(seed, draw), draw))


def no_oracle(config: Config) -> str:
    """Why a task has no exhaustive optimum; empty if it has one."""
    runtime = Runtime(config)
    if set(runtime.simulated_roles) != set(ROLES) or any(
        runtime.settings(role).backend != "simulated" for role in ROLES
    ):
        return "an LLM is not simulated here"
    nodes = tree_nodes(len(runtime.action_set), config.env.horizon)
    if nodes > MAX_NODES:
        return f"{nodes:,} steps a seed are more than {MAX_NODES:,}"
    return ""


@dataclass(frozen=True)
class OracleJob:
    """The optimum of one task and seed, on `seeds` of the evaluation's chains; plain values."""

    name: str
    config: str
    folder: str
    file: str
    key: str
    seeds: int


def oracle_job(cell: Cell, out: Path, seeds: int) -> OracleJob:
    """`cell` is any of that task and seed: the optimum does not hang on the policy."""
    folder = Path(cell.folder).parents[1]
    name = f"optimum of {cell.task.name}, seed {cell.seed}"
    task = cell.config.model_copy(update={"agent": Config().agent, "train": Config().train, "agents": None})
    values = task.model_dump_json(exclude={"run": {"name"}, "evaluate": {"policies"}})
    key = hashlib.sha256(f"{__version__} {SIMULATOR_VERSION} {values}".encode("utf-8", "surrogatepass")).hexdigest()[
        :32
    ]
    file = f"optimum-seed-{cell.seed}.json"
    return OracleJob(name, cell.config.model_dump_json(), str(out / folder), file, key, seeds)


def run_oracle(job: OracleJob) -> None:
    """Grow the trees and write means over their seeds: of the optimum, of uniform choice and of fixed sequences."""
    config = build_config(json.loads(job.config), job.name)
    runtime = BareRuntime(config)
    held_out = seeds_of(config).for_evaluation[: config.evaluate.seeds]
    chosen = np.unique(np.linspace(0, len(held_out) - 1, min(job.seeds, len(held_out))).round().astype(int))
    trees = [runtime.tree(held_out[chain], int(chain)) for chain in chosen]
    best, uniform = np.array([tree.optimum for tree in trees]), np.array([tree.uniform for tree in trees])
    sequences = np.mean([tree.returns for tree in trees], axis=0)
    sequence = np.unravel_index(int(np.argmax(sequences)), sequences.shape)
    document = {
        "key": job.key,
        "trees": len(trees),
        "of": len(held_out),
        "optimum": round(float(best.mean()), DIGITS),
        "uniform": round(float(uniform.mean()), DIGITS),
        "span_se": round(float((best - uniform).std(ddof=1) / np.sqrt(len(trees))), DIGITS) if len(trees) > 1 else None,
        "best_sequence": round(float(sequences.max()), DIGITS),
        "sequence": [runtime.action_set.names[action] for action in sequence],
    }
    RunFolder(Path(job.folder)).write_json(job.file, document)


def read_oracle(job: OracleJob) -> dict[str, Any] | None:
    """What `run_oracle` left for the same task, seed and number of trees, else None."""
    try:
        document: dict[str, Any] = json.loads((Path(job.folder) / job.file).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return document if document.get("key") == job.key and document["trees"] == min(job.seeds, document["of"]) else None
