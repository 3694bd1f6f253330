"""`bench`: what the parts of a run are worth, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instructgym.cli.bench_policies import policies
from instructgym.cli.faults import say
from instructgym.cli.options import (
    BackendOption,
    BaseUrlOption,
    ConcurrencyOption,
    ModelOption,
    SeedsOption,
    SetOption,
    resolve,
)
from instructgym.errors import ConfigError

if TYPE_CHECKING:
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
