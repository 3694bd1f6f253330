"""`bench policies`: policies side by side at equal numbers of expert calls, or the plan of such a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructgym.cli.faults import say
from instructgym.cli.options import (
    BackendOption,
    BaseUrlOption,
    ConcurrencyOption,
    DryRunOption,
    ModelOption,
    RetryFailedOption,
    SetOption,
    resolve,
)

if TYPE_CHECKING:
    from instructgym.train.policy_bench import PolicyBench
    from instructgym.train.policy_bench.estimate import BenchEstimate

__all__ = ["policies"]


def policies(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A named config, a TOML file, or a run's folder: what all cells share."),
    ] = "quickstart",
    policies: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Agents by name with commas between, greedy, search, fixed (a row an operation), best_fixed, "
            "FILE.py:NAME, the folder of a saved agent, or a name of [agents] in the config.",
        ),
    ] = "random,round_robin,best_fixed,ppo",
    rewards: Annotated[
        str, typer.Option(metavar="NAMES", help="Rewards by name, FILE.py:NAME; config: the config's.")
    ] = "config",
    action_sets: Annotated[
        str, typer.Option(metavar="NAMES", help="Action sets by name, FILE.py:NAME; config: the config's.")
    ] = "config",
    budget_calls: Annotated[
        int, typer.Option(metavar="N", min=1, help="Expert calls of training, the same for every policy that learns.")
    ] = 5000,
    seeds: Annotated[
        int, typer.Option(metavar="K", min=1, help="Runs of each policy and task, seeds counting up from run.seed.")
    ] = 5,
    jobs: Annotated[int, typer.Option(metavar="J", min=1, help="Processes, one thread each.")] = 1,
    optimum: Annotated[
        int,
        typer.Option(
            metavar="SEEDS",
            min=0,
            help="Held-out seeds on which all sequences are tried for the best score, where LLMs are simulated; "
            "0: none.",
        ),
    ] = 8,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the benchmark.")] = Path("runs/policies"),
    given: SetOption = None,
    backend: BackendOption = None,
    base_url: BaseUrlOption = None,
    model: ModelOption = None,
    concurrency: ConcurrencyOption = None,
    retry_failed: RetryFailedOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Compare policies at equal numbers of expert calls.

    Every policy that learns is trained with the same number of calls, and all are evaluated on held-out seeds with the
    same draws of the expert. Every pair of a reward and an action set is a task. Arguments of one policy:
    --set agents.NAME.key=value. The same command goes on where it was stopped; DIR then holds leaderboard.md, .csv,
    results.json, figures, and a run's folder for each cell.
    """
    from instructgym.train.policy_bench import bench_policies

    resolved = resolve(config, backend=backend, base_url=base_url, model=model, concurrency=concurrency, given=given)
    comparison: dict[str, Any] = {
        "policies": _names(policies),
        "rewards": _names(rewards),
        "action_sets": _names(action_sets),
        "budget_calls": budget_calls,
        "runs": seeds,
        "optimum_seeds": optimum,
    }
    if dry_run:
        from instructgym.train.policy_bench.estimate import estimate_policies

        _print_plan(estimate_policies(resolved, out, **comparison, retry_failed=retry_failed), out)
        return
    bench = bench_policies(resolved, out, **comparison, jobs=jobs, retry_failed=retry_failed, progress=say)
    _print_policies(bench)
    if bench.exit_code:
        raise typer.Exit(bench.exit_code)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print_plan(found: BenchEstimate, out: Path) -> None:
    """The dry run: a row a policy and task, what they ask together, and what the budget of a cell does not allow."""
    from instructgym.cli.tables import print_table

    several = len({row.task for row in found.rows}) > 1
    priced = found.cost_usd is not None
    sums = [0] * 5
    rows: list[list[object]] = []
    for row in found.rows:
        counts = [
            row.to_run,
            row.calls("expert", "train"),
            row.calls("expert", "evaluate"),
            sum(row.calls(role) for role in {each.role for each in row.one.rows} - {"expert"}),
            row.tokens,
        ]
        sums = [total + count for total, count in zip(sums, counts, strict=True)]
        cost = [] if row.cost_usd is None or not priced else [f"{row.cost_usd:,.2f}"]
        rows.append([row.policy.name, *([row.task.name] if several else []), *(f"{n:,}" for n in counts), *cost])
    total = [f"{found.cost_usd:,.2f}"] if found.cost_usd is not None else []
    rows.append(["total", *([""] if several else []), *(f"{n:,}" for n in sums), *total])
    columns = ["cells\nto run", "expert calls,\ntraining", "expert calls,\nevaluation", "other\ncalls", "tokens"]
    tasks = list(dict.fromkeys(row.task.name for row in found.rows))
    where = "" if several else f", on {tasks[0]}"
    optima = f" And {found.optima} exhaustive optima on the simulator, without a call." if found.optima else ""
    print_table(
        ["policy", *(["task"] if several else []), *columns, *(["US$"] if priced else [])],
        rows,
        left=2 if several else 1,
        title=f"Dry run{where}: nothing was asked, nothing was written",
        caption=f"Seeds {', '.join(map(str, found.seeds))}. From {found.sampled} chains of a random policy on the "
        "simulated backend; answers are as long as its own. Other calls: the reviewer's, and a choosing chat model's. "
        f"Hits and retries are not counted.{optima}",
    )
    finished = sum(row.finished for row in found.rows)
    if finished:
        say(f"{finished} of {sum(row.cells for row in found.rows)} cells are finished in {out}, and are not counted")
    if found.unpriced and not priced:
        say(
            f'no cost: set budget.prices."MODEL" = {{prompt = ..., completion = ...}} (US$ a million tokens) for '
            f"{', '.join(found.unpriced)}"
        )
    for row in found.rows:
        for line in row.over_budget:
            say(f"a cell of {row.policy.name}: {line}: it will stop there, and go on with a larger budget")


def _print_policies(bench: PolicyBench) -> None:
    from instructgym.cli.tables import print_table, print_text
    from instructgym.train.policy_bench.figure import FIGURES
    from instructgym.train.policy_bench.report import FILES, interval_text, number, simulated_note

    rows = []
    for row in bench.document["leaderboard"]:
        seconds = bench.seconds.get(row["policy"], {})
        rows.append(
            [
                row["policy"],
                number(row["iqm"]),
                interval_text(row["iqm_interval_95"]),
                number(row["optimality_gap"]),
                number(row["beats_random"]),
                number(row["train_calls"], ",.0f"),
                number(row["calls_a_chain"], ".1f"),
                number(row["reviewer_calls_a_chain"], ".1f"),
                number(row["tokens_a_chain"], ",.0f"),
                number(sum(seconds.values()), ".1f"),
                row["cells"],
            ]
        )
    ones = sorted({scale["one"] for scale in bench.document["scale"].values() if scale is not None})
    print_table(
        [
            "policy",
            "IQM",
            "95%",
            "gap",
            "P(beats\nrandom)",
            "training\ncalls",
            "calls",
            "reviewer",
            "tokens",
            "s",
            "cells",
        ],
        rows,
        title=f"Policies after {bench.document['facts']['budget_calls']:,} expert calls of training",
        caption=f"Scores: 0 is uniform random, 1 is {' or '.join(ones)}. IQM: interquartile mean over cells. Gap: how "
        f"far below 1. Calls, reviewer, tokens: a chain of the evaluation. s: a cell. {simulated_note(bench)}",
    )
    print_table(
        [
            *("policy", "training\ncalls", "calls", "accepted", "distinct", "Vendi", "distance"),
            *("calls to match\nrandom's Vendi", "in all, to be\nahead of it"),
        ],
        [
            [
                row["policy"],
                number(row["train_calls"], ",.0f"),
                number(row["calls"], ",.0f"),
                number(row["accepted"], ",.0f"),
                number(row["distinct"], ",.0f"),
                number(row["vendi"], ".1f"),
                number(row["mean_pairwise_distance"], ".3f"),
                number(row["calls_to_match_vendi"], ",.0f") or "never",
                "" if row["policy"] == "random" else number(row["calls_to_overtake_vendi"], ",.0f") or "never",
            ]
            for row in bench.document["diversity"]
        ],
        title="The set that each makes with equal numbers of expert calls",
        caption="Accepted rewrites of the evaluation. In all: the calls of training counted, against random's set "
        "after as many.",
    )
    for name, reason in bench.failed.items():
        print_text(f"failed: {name}: {reason}")
    if bench.failed:
        say("Cells failed; the others are finished. The same command tries those again.")
    for name in (*FILES, *(f"{figure}.png" for figure in FIGURES)):
        if (bench.out / name).is_file():
            typer.echo(f"wrote {bench.out / name}")
    if not (bench.out / f"{FIGURES[0]}.png").is_file():
        say("no figures: they need matplotlib, pip install 'instructgym[plots]'")
