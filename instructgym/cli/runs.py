"""`show` and `compare`: what is in run folders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instructgym.cli.options import FolderArgument
from instructgym.cli.report import chosen_policies, interval, print_policies, read_json, read_lines
from instructgym.cli.tables import print_table, print_text
from instructgym.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    from instructgym.train.config import Config

__all__ = ["register"]

STAGES = ("train", "evaluate", "evolve", "respond", "filter", "export")


def show(
    folder: FolderArgument,
    chain: Annotated[
        str | None, typer.Option(metavar="ID", help="A chain by its number, or a row of the dataset by its id.")
    ] = None,
) -> None:
    """Show a run, or one chain of it.

    How far the run came, the policies, the dataset; of a chain its operations, verdicts, rewards, calls and answer.
    """
    _need_run(folder)
    if chain is None:
        _show_run(folder)
    else:
        _show_chain(folder, chain)


def compare(
    first: Annotated[Path, typer.Argument(metavar="DIR1", help="The folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="DIR2", help="The folder of another.")],
) -> None:
    """Lay two runs side by side.

    The values in which their configs differ, their policies, and the sizes of their datasets.
    """
    for folder in (first, second):
        _need_run(folder)
    names = _short_names(first, second)
    _compare_configs((first, second), names)
    _compare_policies((first, second), names)
    _compare_sizes((first, second), names)


def register(app: typer.Typer) -> None:
    app.command()(show)
    app.command()(compare)


def _need_run(folder: Path) -> None:
    if not (folder / "config.toml").is_file():
        what = "is no run's folder (it holds no config.toml)" if folder.is_dir() else "is not there"
        raise RunFolderError(f"'{folder}' {what}; expected what --out of `instructgym run` named.")


def _config(folder: Path) -> Config:
    import logging

    from instructgym.train.config_text import load_config

    logging.disable(logging.WARNING)  # what was odd about it was said when it ran
    try:
        return load_config(folder / "config.toml")
    finally:
        logging.disable(logging.NOTSET)


def _simulated(config: Config) -> bool:
    return any(config.llm.for_role(role).backend == "simulated" for role in ("expert", "reviewer"))


def _states(folder: Path) -> list[tuple[str, str]]:
    states = []
    for stage in STAGES:
        manifest = read_json(folder, f"stages/{stage}.json")
        states.append((stage, "not begun" if manifest is None else str(manifest["state"])))
    return states


def _show_run(folder: Path) -> None:
    config = _config(folder)
    print_text(f"{folder}: {config.run.name}, seed {config.run.seed}", style="bold")
    print_text(", ".join(f"{stage} {state}" for stage, state in _states(folder)))
    evaluation = read_json(folder, "stages/evaluation.json")
    if evaluation is not None:
        print_policies(evaluation, list(evaluation["policies"]), title="Policies", simulated=_simulated(config))
    rows = read_lines(folder, "lineage.jsonl")
    if rows:
        _show_lineage(rows)
    sizes = _sizes(folder)
    if sizes:
        print_table(("dataset", "rows"), sizes.items())


def _show_lineage(rows: list[dict[str, Any]]) -> None:
    table: dict[str, list[int]] = {}
    for row in rows:
        counts = table.setdefault(row["operation"], [0, 0, 0, 0])
        counts[0] += 1
        if row["failure"]:
            counts[3] += 1
        elif row["accepted"] or row["eliminated"]:
            counts[1 if row["accepted"] else 2] += 1
    columns = ("operation", "tried", "accepted", "eliminated", "failed")
    chains = len({row["chain"] for row in rows})
    print_table(columns, [(name, *counts) for name, counts in sorted(table.items())], title=f"{chains} chains")
    reasons = Counter(row["eliminated"] for row in rows if row["eliminated"])
    if reasons:
        print_table(("eliminated for", "times"), reasons.most_common())


def _show_chain(folder: Path, wanted: str) -> None:
    rows = read_lines(folder, "lineage.jsonl")
    if not rows:
        raise RunFolderError(f"'{folder}' holds no chains yet: stage 'evolve' has not finished there.")
    digits = wanted.removeprefix("chain-").partition("-")[0]
    steps = [row for row in rows if digits.isdecimal() and row["chain"] == int(digits)]
    if not steps:
        raise ConfigError(
            f"no chain '{wanted}' in '{folder}'; expected a number from {rows[0]['chain']} to {rows[-1]['chain']}."
        )
    print_text(f"chain {steps[0]['chain']}, seed {steps[0]['seed_id']}", style="bold")
    _print_instruction(steps[0]["parent"])
    for row in steps:
        _show_step(row)
    for answer in read_lines(folder, "stages/answers.jsonl"):
        if answer["chain"] == steps[0]["chain"]:
            _show_answer(folder, answer)


def _show_step(row: dict[str, Any]) -> None:
    if row["failure"]:
        verdict, style = f"failed: {row['failure']}", "red"
    elif row["accepted"]:
        verdict, style = "accepted", "green"
    elif row["eliminated"]:
        detail = f" ({row['detail']})" if row["detail"] else ""
        verdict, style = f"eliminated: {row['eliminated']}{detail}", "yellow"
    else:
        verdict, style = "ends the chain", "green"
    print_text()
    print_text(f"step {row['step']}: {row['operation']}: {verdict}", style=style)
    reward = "missing" if row["reward"] is None else f"{row['reward']:+.3f}"
    terms = ", ".join(f"{name} {value:.3f}" for name, value in row["terms"].items() if "/" not in name)
    calls = ", ".join(f"{role} {count}" for role, count in row["calls"].items())
    tokens = f"{row['tokens']['prompt']} + {row['tokens']['completion']}"
    shown = f"reward {reward}{f' ({terms})' if terms else ''}; calls: {calls}; tokens: {tokens}"
    print_text(shown, style="dim", indent=2)
    if row["child"] is not None:
        _print_instruction(row["child"])
    elif row.get("reply"):
        print_text("the expert's reply:", style="dim", indent=2)
        print_text(row["reply"], indent=2)


def _show_answer(folder: Path, answer: dict[str, Any]) -> None:
    print_text()
    print_text(f"answer to {answer['id']}", style="bold")
    print_text(answer["failure"] or answer["output"], indent=2)
    for row in read_lines(folder, "dataset/rejected.jsonl"):
        if row["id"] == answer["id"]:
            print_text(f"rejected: {row['reason']}", style="yellow", indent=2)


def _print_instruction(instruction: dict[str, str]) -> None:
    print_text(instruction["instruction"], indent=2)
    if instruction["input"]:
        print_text("input:", style="dim", indent=2)
        print_text(instruction["input"], indent=4)


def _sizes(folder: Path) -> dict[str, int]:
    """Rows by file, of those that are there; rejected rows by their reason too."""
    sizes = {}
    for name in ("sft_alpaca.jsonl", "sft_messages.jsonl", "rejected.jsonl"):
        if (folder / "dataset" / name).is_file():
            sizes[name] = len(read_lines(folder, f"dataset/{name}"))
    for row in read_lines(folder, "dataset/rejected.jsonl"):
        reason = f"  rejected: {row['reason']}"
        sizes[reason] = sizes.get(reason, 0) + 1
    return sizes


def _short_names(first: Path, second: Path) -> tuple[str, str]:
    names = (first.resolve().name, second.resolve().name)
    return names if names[0] != names[1] else (str(first), str(second))


def _compare_configs(folders: tuple[Path, Path], names: tuple[str, str]) -> None:
    from instructgym.train.config import flatten

    one, two = (flatten(_config(folder)) for folder in folders)
    rows = [
        (key, _shown(one.get(key)), _shown(two.get(key)))
        for key in dict.fromkeys([*one, *two])
        if one.get(key) != two.get(key)
    ]
    if rows:
        print_table(("config", *names), rows, left=3)
    else:
        print_text("The configs are equal.")


def _shown(value: Any) -> str:
    import json

    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _compare_policies(folders: tuple[Path, Path], names: tuple[str, str]) -> None:
    evaluations = [read_json(folder, "stages/evaluation.json") for folder in folders]
    missing = [name for name, evaluation in zip(names, evaluations, strict=True) if evaluation is None]
    if missing:
        print_text(f"No policies to compare: {' and '.join(missing)} did not come to stage 'evaluate'.")
        return
    order = list(dict.fromkeys(name for evaluation in evaluations for name in chosen_policies(evaluation)))
    if not order:
        print_text("No policies to compare: evaluate.policies is empty in both.")
        return
    rows = []
    for policy in order:
        cells = [policy]
        for evaluation in evaluations:
            row = evaluation["policies"].get(policy)
            reward = None if row is None else row["mean_episode_reward"]
            cells += ["", "", ""] if row is None or reward is None else [f"{reward:.3f} {interval(row)}", *_sides(row)]
        rows.append(cells)
    columns = [f"{name}: {what}" for name in names for what in ("reward", "diversity", "expert calls")]
    simulated = any(_simulated(_config(folder)) for folder in folders)
    caption = "Mean episode reward with the half of its 95% interval." + (" SIMULATED backend." if simulated else "")
    print_table(("policy", *columns), rows, caption=caption)


def _sides(row: dict[str, Any]) -> list[str]:
    distance = row["mean_pairwise_distance"]
    return ["" if distance is None else f"{distance:.3f}", f"{row['expert_calls']:,}"]


def _compare_sizes(folders: tuple[Path, Path], names: tuple[str, str]) -> None:
    one, two = (_sizes(folder) for folder in folders)
    rows = [(key, one.get(key, 0), two.get(key, 0)) for key in dict.fromkeys([*one, *two])]
    if rows:
        print_table(("dataset rows", *names), rows)
