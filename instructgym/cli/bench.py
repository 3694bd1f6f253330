"""`bench`: what the parts of a run are worth, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instructgym.cli.faults import say
from instructgym.cli.options import (
    BackendOption,
    BaseUrlOption,
    ConcurrencyOption,
    ModelOption,
    RetryFailedOption,
    SeedsOption,
    SetOption,
    resolve,
)
from instructgym.errors import ConfigError

if TYPE_CHECKING:
    from instructgym.train.policy_bench import PolicyBench
    from instructgym.train.reward_bench import HackingMatrix, RewardBench

__all__ = ["register"]

_HACKING_STEPS = 2048
_FIGURES = (".png", ".svg", ".pdf")


def rewards(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A named config, a TOML file, or a run's folder: LLMs, encoder, rules."),
    ] = "quickstart",
    rewards: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Rewards by name with commas between, FILE.py:NAME for your own; all-offline: all of the package; "
            "config: the config's.",
        ),
    ] = "all-offline",
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder of label sets (docs/rewards.md), to compare with people."),
    ] = None,
    data_limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most N records of each label set.")
    ] = None,
    hacking: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            min=0,
            help="Train on each reward for so many steps and measure by all others; 0: leave it out. "
            f"[default: {_HACKING_STEPS} where every LLM is simulated, else 0]",
        ),
    ] = None,
    seeds: SeedsOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there.")] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw them there (png, svg or pdf; needs matplotlib).")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the LLMs' answers there, so that none is paid for twice.")
    ] = None,
    given: SetOption = None,
    backend: BackendOption = None,
    base_url: BaseUrlOption = None,
    model: ModelOption = None,
    concurrency: ConcurrencyOption = None,
) -> None:
    """See what each reward rewards in truth.

    Probes: transitions of which it is known whether anything was gained. For each reward how often a gain scores above
    what is none, how it follows length, and what fools it; labels of people; what an instructor does that is trained on
    it; and what it costs. With no option nothing leaves this machine: LLMs are simulated, and called so.
    """
    from instructgym.train.config import ROLES
    from instructgym.train.pipeline import seeds_of
    from instructgym.train.reward_bench import bench_rewards
    from instructgym.train.runtime import Runtime

    resolved = resolve(
        config,
        seeds=seeds,
        backend=backend,
        base_url=base_url,
        model=model,
        concurrency=concurrency,
        given=given,
    )
    if figure is not None:
        from instructgym.plugins import require

        require("matplotlib", extra="plots")
        if figure.suffix.lower() not in _FIGURES:
            raise ConfigError(f"--figure is '{figure}'; expected a name that ends with {', '.join(_FIGURES)}.")
    for option, path in (("--json", json_file), ("--figure", figure)):
        if path is not None:
            _make_folder_of(path, option)
    runtime = Runtime(resolved)
    simulated = set(runtime.simulated_roles) == set(ROLES)  # one real role, and training would cost calls
    steps = (_HACKING_STEPS if simulated else 0) if hacking is None else hacking
    runtime.connect(ledger)
    try:
        runtime.check_endpoints()
        bench = bench_rewards(
            [name.strip() for name in rewards.split(",") if name.strip()],
            runtime,
            seeds_of(resolved),
            data=data,
            data_limit=data_limit,
            hacking_steps=steps,
            progress=say,
        )
    finally:
        runtime.close()
    _print(bench)
    if json_file is not None:
        json_file.write_text(json.dumps(bench.as_json(), indent=2, ensure_ascii=False) + "\n", "utf-8")
        typer.echo(f"wrote {json_file}")
    if figure is not None:
        from instructgym.train.reward_bench.figure import draw_bench

        draw_bench(bench, figure)
        typer.echo(f"wrote {figure}")


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
) -> None:
    """Compare policies at equal numbers of expert calls.

    Every policy that learns is trained with the same number of calls, and all are evaluated on held-out seeds with the
    same draws of the expert. Every pair of a reward and an action set is a task. Arguments of one policy:
    --set agents.NAME.key=value. The same command goes on where it was stopped; DIR then holds leaderboard.md, .csv,
    results.json, figures, and a run's folder for each cell.
    """
    from instructgym.train.policy_bench import bench_policies

    resolved = resolve(config, backend=backend, base_url=base_url, model=model, concurrency=concurrency, given=given)
    bench = bench_policies(
        resolved,
        out,
        policies=_names(policies),
        rewards=_names(rewards),
        action_sets=_names(action_sets),
        budget_calls=budget_calls,
        runs=seeds,
        jobs=jobs,
        optimum_seeds=optimum,
        retry_failed=retry_failed,
        progress=say,
    )
    _print_policies(bench)
    if bench.exit_code:
        raise typer.Exit(bench.exit_code)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


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
        ["policy", "calls", "accepted", "distinct", "Vendi", "distance", "calls to match\nrandom's Vendi"],
        [
            [
                row["policy"],
                number(row["calls"], ",.0f"),
                number(row["accepted"], ",.0f"),
                number(row["distinct"], ",.0f"),
                number(row["vendi"], ".1f"),
                number(row["mean_pairwise_distance"], ".3f"),
                number(row["calls_to_match_vendi"], ",.0f") or "never",
            ]
            for row in bench.document["diversity"]
        ],
        title="The set that each makes with equal numbers of expert calls",
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


def _make_folder_of(path: Path, option: str) -> None:
    """So that a path that cannot be is told before anything is measured."""
    if path.is_dir():
        raise ConfigError(f"{option} is '{path}', which is a folder; expected a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} is '{path}', whose folder cannot be made: {error}.") from error


def _print(bench: RewardBench) -> None:
    from instructgym.cli.tables import print_table, print_text

    simulated = bench.facts["simulated"]
    note = f" SIMULATED: {', '.join(simulated)}; their numbers say nothing of a language model." if simulated else ""
    rows = []
    for card in sorted(bench.cards, key=lambda card: -(card.halves["held_out"].auc or 0.0)):
        tuned, held_out, cost = card.halves["tuned"], card.halves["held_out"], bench.costs[card.reward]
        rows.append(
            [
                card.reward + (" (simulated)" if _asks_simulated(bench, card.reward) else ""),
                ", ".join(card.fooled_by[:4]) + (f" (+{len(card.fooled_by) - 4})" if len(card.fooled_by) > 4 else ""),
                _number(tuned.auc),
                _number(held_out.auc),
                _number(card.length_correlation, "+.2f"),
                tuned.missing + held_out.missing or "",
                f"{cost.calls:.1f}",
                f"{cost.prompt_tokens + cost.completion_tokens:.0f}",
                f"{cost.milliseconds:.2f}",
            ]
        )
    print_table(
        ["reward", "fooled by", "AUC\ntuned", "AUC\nheld-out", "follows\nlength", "missing", "calls", "tokens", "ms"],
        rows,
        title=f"Reward cards: {bench.facts['probes']} transitions with known truth, encoder {bench.facts['encoder']}",
        caption="AUC: how often a gain scores above what is none (0.5 is a coin), each bad kind counting the same. "
        f"Fooled by: kinds that a gain beats in fewer than 60%. Calls, tokens, ms: a transition.{note}",
        left=2,
    )
    for name, reason in bench.skipped.items():
        print_text(f"skipped {name}: {reason}")
    if bench.labels:
        _print_labels(bench)
    if bench.hacking is not None:
        _print_hacking(bench.hacking)


def _asks_simulated(bench: RewardBench, name: str) -> bool:
    return bool(set(bench.asks.get(name, ())) & set(bench.facts["simulated"]))


def _number(value: float | None, form: str = ".3f") -> str:
    if value is None:
        return ""
    text = f"{value:{form}}"
    return text if float(text) else f"{0.0:{form}}"  # no "-0.00"


def _print_hacking(matrix: HackingMatrix) -> None:
    from instructgym.cli.tables import print_table

    reference = matrix.totals["random"]
    rows = []
    for name, lifts in matrix.lifts.items():
        others = {column: lift for column, lift in lifts.items() if column in matrix.lifts and column != name}
        falls = [column for column in others if round(others[column], 1) < 0]
        worst = sorted(falls, key=lambda column: others[column])[:2]
        rows.append(
            [
                name,
                ", ".join(f"{column} {others[column]:+.1f}" for column in worst),
                _number(lifts[name], "+.2f"),
                _number(lifts.get("true_gain"), "+.2f"),
                _number(matrix.totals[name].get("true_gain"), ".2f"),
                f"{matrix.totals[name]['eliminated']:.2f}",
            ]
        )
    gain = f", random choice has {reference['true_gain']:.2f}" if "true_gain" in reference else ""
    print_table(
        ["trained on", "falls most", "own\nreward", "true gain\n(sd)", "true gains\na chain", "eliminated\na chain"],
        rows,
        title=f"Hacking: what {matrix.steps:,} steps of training on each reward do to the others",
        caption="In standard deviations above random choice, on the same held-out seeds and draws. True gains: "
        f"rewrites that did what the operation asks{gain}.",
        left=2,
    )


def _print_labels(bench: RewardBench) -> None:
    from instructgym.cli.tables import print_table, print_text
    from instructgym.train.reward_bench.label_rows import JUDGE

    judge = "reviewer" in bench.facts["simulated"]
    shown = [row for row in bench.labels if row.dataset]
    print_table(
        ["who", "labels", "measure", "value", "95% interval", "n", "missing"],
        [
            [
                row.who + (" (simulated)" if _asks_simulated(bench, row.who) or (judge and row.who == JUDGE) else ""),
                row.dataset,
                row.measure + (f" ({row.note})" if row.note else ""),
                _number(row.value),
                "" if row.low is None or row.high is None else f"{row.low:+.2f} {row.high:+.2f}",
                row.n,
                row.missing or "",
            ]
            for row in shown
        ],
        title="Against people and labels",
        left=3,
    )
    without = sorted(row.who for row in bench.labels if not row.dataset)
    if without:
        print_text(f"no labels for {', '.join(without)}: they score a rewrite against its parent")


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Measure what rewards and policies are worth.",
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=False,
    )
    group.command()(rewards)
    group.command()(policies)
    app.add_typer(group, name="bench")
