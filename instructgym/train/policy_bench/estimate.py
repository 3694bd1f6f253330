"""What a comparison will ask for, before its first call: the dry run of `bench policies`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from instructgym.train.config import Config
from instructgym.train.estimate import Estimate, EstimateRow, estimate, over_budget
from instructgym.train.pipeline import seeds_of
from instructgym.train.planning import Greedy, Planner, Search, planner_named, tree_nodes
from instructgym.train.policies import PROMPTED
from instructgym.train.policy_bench.cell import evaluation_calls, read_cell
from instructgym.train.policy_bench.oracle import no_oracle, oracle_job, read_oracle
from instructgym.train.policy_bench.plan import Cell, Plan, Policy, Task, make_plan
from instructgym.train.runtime import Runtime

__all__ = ["BenchEstimate", "PlannedCells", "estimate_policies"]


@dataclass(frozen=True, slots=True)
class PlannedCells:
    """The cells of one policy on one task: how many there are, how many are finished, and what one of them asks."""

    policy: Policy
    task: Task
    cells: int
    finished: int
    one: Estimate
    over_budget: tuple[str, ...] = ()

    def calls(self, role: str, stage: str = "") -> int:
        """Of the cells that are not finished, to `role`, in one stage or in all."""
        rows = [row for row in self.one.rows if row.role == role and stage in ("", row.stage)]
        return self.to_run * sum(row.calls for row in rows)

    @property
    def to_run(self) -> int:
        return self.cells - self.finished

    @property
    def tokens(self) -> int:
        return self.to_run * self.one.tokens

    @property
    def cost_usd(self) -> float | None:
        """None unless the price of every model is known."""
        return None if self.one.cost_usd is None else self.to_run * self.one.cost_usd


@dataclass(frozen=True, slots=True)
class BenchEstimate:
    """A row a policy and task, those that are only measured by among them. `optima` are searched without a call."""

    rows: tuple[PlannedCells, ...]
    seeds: tuple[int, ...]
    optima: int
    sampled: int
    unpriced: tuple[str, ...]

    @property
    def cost_usd(self) -> float | None:
        costs = [row.cost_usd for row in self.rows]
        return None if None in costs else sum(cost for cost in costs if cost is not None)


def estimate_policies(
    config: Config,
    out: Path,
    *,
    policies: Sequence[str],
    rewards: Sequence[str] = ("config",),
    action_sets: Sequence[str] = ("config",),
    budget_calls: int = 5000,
    runs: int = 5,
    optimum_seeds: int = 8,
    retry_failed: bool = False,
) -> BenchEstimate:
    """What `bench_policies` would ask with the same arguments; asks nobody, and writes nothing.

    Calls of the expert are those of the budget; the others, and all tokens, come from a few chains of a random policy
    on the simulated backend, walked once a task. What planners try is counted by the size of their trees. A cell that
    was cut off counts whole.

    Raises as `bench_policies` does for what it would refuse.
    """
    plan = make_plan(config, policies, rewards, action_sets, budget_calls=budget_calls, runs=runs)
    walked: dict[tuple[Task, str], Estimate] = {}
    rows = []
    for policy, task, cells in _groups(plan):
        first = cells[0]
        like = (task, policy.agent if policy.agent.startswith(PROMPTED) else "")
        if like not in walked:
            walked[like] = estimate(first.config, seeds_of(first.config), ("evaluate",))
        one = _of_cell(walked[like], first, budget_calls)
        finished = sum(_is_finished(cell, out, retry_failed) for cell in cells)
        rows.append(PlannedCells(policy, task, len(cells), finished, one, tuple(over_budget(one, first.config))))
    optima = [
        oracle_job(cell, out, optimum_seeds)
        for cell in {(cell.task, cell.seed): cell for cell in plan.cells}.values()
        if optimum_seeds and not no_oracle(cell.config)
    ]
    return BenchEstimate(
        tuple(rows),
        plan.seeds,
        sum(read_oracle(job) is None for job in optima),
        max(found.sampled for found in walked.values()),
        tuple(sorted({row.model for found in walked.values() for row in found.rows if row.cost_usd is None})),
    )


def _groups(plan: Plan) -> list[tuple[Policy, Task, list[Cell]]]:
    """The cells by policy and task, in the order of the plan."""
    groups: dict[tuple[str, Task], list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault((cell.policy.name, cell.task), []).append(cell)
    return [(cells[0].policy, task, cells) for (_, task), cells in groups.items()]


def _is_finished(cell: Cell, out: Path, retry_failed: bool) -> bool:
    found = read_cell(cell, out)
    return found is not None and not (retry_failed and found[0]["lost"])


def _of_cell(walked: Estimate, cell: Cell, budget_calls: int) -> Estimate:
    """The walked chains, times as many as the cell's expert calls need in each of its stages."""
    expert = max(1, sum(row.calls for row in walked.rows if row.role == "expert"))
    needed = {"train": budget_calls, "evaluate": evaluation_calls(cell.config) * _tries(cell)}
    rows = [replace(_times(row, needed[stage] / expert), stage=stage) for stage in cell.stages for row in walked.rows]
    return Estimate(tuple(rows), walked.sampled)


def _tries(cell: Cell) -> float:
    """Rewrites that are asked for at a step, on average: one, but for planners."""
    action_set, horizon = Runtime(cell.config).action_set, cell.config.env.horizon
    planner: Planner | None = planner_named(cell.policy.agent, action_set, horizon)
    rewrites = sum(not operation.stops for operation in action_set.operations)
    if isinstance(planner, Greedy):
        return float(rewrites)
    if isinstance(planner, Search):
        trees = sum(tree_nodes(rewrites, left) for left in range(1, horizon + 1))
        return 1.0 + planner.samples * trees / horizon
    return 1.0


def _times(row: EstimateRow, factor: float) -> EstimateRow:
    return replace(
        row,
        calls=round(row.calls * factor),
        prompt_tokens=round(row.prompt_tokens * factor),
        completion_tokens=round(row.completion_tokens * factor),
        tokens_at_most=round(row.tokens_at_most * factor),
        cost_usd=None if row.cost_usd is None else row.cost_usd * factor,
        cost_usd_at_most=None if row.cost_usd_at_most is None else row.cost_usd_at_most * factor,
    )
