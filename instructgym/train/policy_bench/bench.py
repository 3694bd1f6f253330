"""The benchmark of policies: run the cells that are not finished, then say what all of them come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from instructgym import __version__
from instructgym.train.config import ROLES, Config, flatten
from instructgym.train.config_text import to_toml
from instructgym.train.policy_bench.cell import evaluation_calls, job_of, read_cell, run_cell
from instructgym.train.policy_bench.oracle import OracleJob, no_oracle, oracle_job, read_oracle, run_oracle
from instructgym.train.policy_bench.plan import BEST_FIXED, Cell, Plan, Policy, Task, make_plan
from instructgym.train.policy_bench.report import write_report
from instructgym.train.policy_bench.standings import (
    PROFILE_POINTS,
    Result,
    Scale,
    diversity_rows,
    leaderboard,
    pairwise,
    profiles,
    scales,
    seconds_of,
    with_best_fixed,
)
from instructgym.train.policy_bench.workers import Job, run_jobs
from instructgym.train.run_folder import RunFolder
from instructgym.train.runtime import Runtime

__all__ = ["PolicyBench", "bench_policies"]

SCHEMA = 1
_LOST_ITEMS = 4
_SECTIONS = ("seeds", "llm", "env", "reward", "train", "evaluate", "bench")
"""What must not change in a folder. Policies, tasks and seeds may be added to it."""


@dataclass(frozen=True)
class PolicyBench:
    """What was found. `document` repeats to the byte; `seconds` (policy -> stage -> wall seconds a cell) does not.

    `failed` says of each cell that came to nothing why. `given` is what each policy was called by whoever asked.
    """

    out: Path
    document: dict[str, Any]
    seconds: dict[str, dict[str, float]]
    failed: dict[str, str]
    given: dict[str, str]
    ran: int

    @property
    def exit_code(self) -> int:
        """0, or 4 where a cell failed or lost chains to failed calls."""
        lost = any(cell.get("lost") for cell in self.document["cells"])
        return _LOST_ITEMS if self.failed or lost else 0


def bench_policies(
    config: Config,
    out: Path,
    *,
    policies: Sequence[str],
    rewards: Sequence[str] = ("config",),
    action_sets: Sequence[str] = ("config",),
    budget_calls: int = 5000,
    runs: int = 5,
    jobs: int = 1,
    optimum_seeds: int = 8,
    retry_failed: bool = False,
    progress: Callable[[str], None] = lambda note: None,
) -> PolicyBench:
    """Train and evaluate every policy on every task with every seed, at equal numbers of expert calls.

    The same call goes on where an earlier one stopped; cells that are finished are read.

    Args:
        config: what all cells share: seeds, LLMs, horizon, encoder, number of envs, evaluation.
        out: the folder of the benchmark; one run folder a cell below it.
        policies: agents of the registry, planners, ``file.py:NAME``, folders of saved agents, names of ``agents``
            with a key ``agent``, ``fixed`` (a row an operation) and ``best_fixed``.
        rewards, action_sets: by name; ``config`` is the config's own. Every pair is a task.
        budget_calls: expert calls of training, a cell.
        runs: seeds a cell, counted up from ``run.seed``.
        jobs: processes.
        optimum_seeds: held-out seeds a task and seed for which the optimum is searched exhaustively, where the LLMs are
            simulated and the task is small enough; 0 leaves it out.
        retry_failed: ask again what failed for good before.
        progress: hears what is being done.

    Raises:
        ConfigError, ActionSetError, SeedError: the user's input.
        RunFolderError: `out` is in use, or holds another benchmark.
    """
    plan = make_plan(config, policies, rewards, action_sets, budget_calls=budget_calls, runs=runs)
    reasons = {task: no_oracle(_config_of(task, plan)) for task in plan.tasks}
    with RunFolder.hold(out) as folder:
        identity = {**flatten(config), "bench.budget_calls": budget_calls}
        folder.claim(identity, {"bench": _SECTIONS}, to_toml(config))
        folder.begin("bench", "")
        optima = {
            (cell.task, cell.seed): oracle_job(cell, out, optimum_seeds)
            for cell in plan.cells
            if optimum_seeds and not reasons[cell.task]
        }
        cells = [cell for cell in plan.cells if (retry_failed and _lost(cell, out)) or read_cell(cell, out) is None]
        missing = [job for job in optima.values() if read_oracle(job) is None]
        progress(_what_it_takes(plan, cells, missing, budget_calls))
        failed = _run(cells, missing, out, jobs, retry_failed, progress)
        bench = _conclude(
            plan, config, folder, optima, reasons, failed, budget_calls, optimum_seeds, len(cells) + len(missing)
        )
        write_report(bench, folder)
        return bench


def _run(
    cells: Sequence[Cell],
    optima: Sequence[OracleJob],
    out: Path,
    processes: int,
    retry_failed: bool,
    progress: Callable[[str], None],
) -> dict[str, str]:
    jobs = [Job(job.name, run_cell, job) for job in (job_of(cell, out, retry_failed) for cell in cells)]
    jobs += [Job(job.name, run_oracle, job) for job in optima]
    failed: dict[str, str] = {}
    done = 0

    def on_done(job: Job, reason: str) -> None:
        nonlocal done
        done += 1
        if reason:
            failed[job.name] = reason
        progress(f"[{done}/{len(jobs)}] {job.name}" + (f": FAILED: {reason}" if reason else ""))

    if jobs:
        run_jobs(jobs, processes, on_done)
    return failed


def _conclude(
    plan: Plan,
    config: Config,
    folder: RunFolder,
    optima: dict[tuple[Task, int], OracleJob],
    reasons: dict[Task, str],
    failed: dict[str, str],
    budget_calls: int,
    optimum_seeds: int,
    ran: int,
) -> PolicyBench:
    out = folder.path
    read = [(cell, read_cell(cell, out)) for cell in plan.cells]
    results = [Result(cell.policy.name, cell.task, cell.seed, *found) for cell, found in read if found is not None]
    trees = {at: tree for at, job in optima.items() if (tree := read_oracle(job)) is not None}
    results, best_fixed = with_best_fixed(plan, results)
    shown = [*plan.policies, *([Policy(BEST_FIXED, BEST_FIXED, given=BEST_FIXED)] if plan.best_fixed else [])]
    scale = scales(plan, results, trees)
    rows = leaderboard(shown, plan, results, scale)
    names = [row["policy"] for row in rows]
    runtime = Runtime(plan.cells[0].config)
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "facts": {
            "simulated": list(runtime.simulated_roles),
            "models": {role: runtime.model_name(role) for role in ROLES},
            "encoder": runtime.encoder.name,
            "budget_calls": budget_calls,
            "seeds": list(plan.seeds),
            "horizon": config.env.horizon,
            "evaluation_calls": evaluation_calls(plan.cells[0].config),
            "tasks": [task.name for task in plan.tasks],
            "rewards": list(dict.fromkeys(task.reward for task in plan.tasks)),
            "action_sets": list(dict.fromkeys(task.action_set for task in plan.tasks)),
            "optimum_seeds": optimum_seeds,
        },
        "scale": {task.name: _scale_row(scale.get(task), reasons[task]) for task in plan.tasks},
        "best_fixed": best_fixed,
        "leaderboard": rows,
        "pairwise": pairwise(names, plan, results, scale),
        "profiles": {"thresholds": PROFILE_POINTS.tolist(), "policies": profiles(names, plan, results, scale)},
        "diversity": diversity_rows(list(dict.fromkeys(["random", *names])), plan, results),
        "cells": [_cell_row(cell, found, scale.get(cell.task), failed) for cell, found in read],
    }
    return PolicyBench(
        out,
        document,
        {name: seconds_of(name, results) for name in names},
        failed,
        {policy.name: policy.given for policy in shown},
        ran,
    )


def _scale_row(scale: Scale | None, reason: str) -> dict[str, Any] | None:
    if scale is None:
        return None
    row = {name: value for name, value in asdict(scale).items() if name != "optimum"}
    return {**row, "optimum": scale.optimum, "no_optimum": reason or None}


def _cell_row(
    cell: Cell, found: tuple[dict[str, Any], dict[str, float]] | None, scale: Scale | None, failed: dict[str, str]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "policy": cell.policy.name,
        "task": cell.task.name,
        "seed": cell.seed,
        "folder": cell.folder,
        "state": "failed" if found is None else "finished",
    }
    if found is None:
        reason = failed.get(f"{cell.policy.name}, {cell.task.name}, seed {cell.seed}", "it was not run")
        return {**row, "reason": reason}
    document = {name: value for name, value in found[0].items() if name != "key"}
    reward = document["evaluation"]["mean_episode_reward"]
    return {**row, "score": None if scale is None else round(scale.score(reward), 6), **document}


def _lost(cell: Cell, out: Path) -> bool:
    found = read_cell(cell, out)
    return found is not None and bool(found[0]["lost"])


def _config_of(task: Task, plan: Plan) -> Config:
    return next(cell.config for cell in plan.cells if cell.task == task)


def _what_it_takes(plan: Plan, cells: Sequence[Cell], optima: Sequence[OracleJob], budget_calls: int) -> str:
    """What is about to be asked, for whoever pays for it."""
    if not cells and not optima:
        return f"all {len(plan.cells)} cells are finished"
    learners = sum(cell.policy.learns for cell in cells)
    asked = learners * budget_calls + sum(evaluation_calls(cell.config) for cell in cells)
    trees = f", and {len(optima)} exhaustive optima" if optima else ""
    return (
        f"{len(cells)} of {len(plan.cells)} cells to run, {learners} of them with training: about {asked:,} expert "
        f"calls (planners ask more){trees}"
    )
