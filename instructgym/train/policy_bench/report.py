"""The leaderboard as Markdown and CSV, all numbers as JSON, and the figures."""

from __future__ import annotations

import csv
import importlib.util
import io
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from instructgym.train.run_folder import RunFolder

if TYPE_CHECKING:
    from instructgym.train.policy_bench.bench import PolicyBench

__all__ = ["FILES", "interval_text", "number", "repeat_command", "simulated_note", "write_report"]

FILES = ("leaderboard.md", "leaderboard.csv", "results.json", "seconds.json")
_CSV = (
    "policy",
    "cells",
    "iqm",
    "iqm_low",
    "iqm_high",
    "mean",
    "optimality_gap",
    "beats_random",
    "train_calls",
    "train_reviewer_calls",
    "train_tokens",
    "calls_a_chain",
    "reviewer_calls_a_chain",
    "tokens_a_chain",
    "train_seconds",
    "evaluate_seconds",
    "simulated",
    "command",
)


def write_report(bench: PolicyBench, folder: RunFolder) -> None:
    """Write `FILES`, and the figures where matplotlib is installed."""
    folder.write_json("results.json", bench.document)
    folder.write_json("seconds.json", bench.seconds)
    folder.write_text("leaderboard.csv", _as_csv(bench))
    folder.write_text("leaderboard.md", _as_markdown(bench))
    if importlib.util.find_spec("matplotlib") is not None:
        from instructgym.train.policy_bench.figure import draw_figures

        draw_figures(bench.document, folder)


def repeat_command(bench: PolicyBench, policy: str) -> str:
    """The command that measures one policy again, in a folder of its own."""
    facts = bench.document["facts"]
    words = ["instructgym", "bench", "policies", str(bench.out / "config.toml"), "--policies", bench.given[policy]]
    words += ["--rewards", ",".join(facts["rewards"]), "--action-sets", ",".join(facts["action_sets"])]
    words += ["--budget-calls", str(facts["budget_calls"]), "--seeds", str(len(facts["seeds"]))]
    words += ["--optimum", str(facts["optimum_seeds"]), "--out", "NEW_FOLDER"]
    return shlex.join(words)


def simulated_note(bench: PolicyBench) -> str:
    """What must be said of the numbers where text is simulated; empty where none is."""
    roles = bench.document["facts"]["simulated"]
    return f"SIMULATED: {', '.join(roles)}; nothing here is said of a language model." if roles else ""


def number(value: float | None, form: str = ".2f") -> str:
    """A number for people, without "-0.00"; nothing for None."""
    if value is None:
        return ""
    text = f"{value:{form}}"
    return text if any(digit in text for digit in "123456789") else text.removeprefix("-")


def interval_text(interval: Sequence[float] | None, form: str = ".2f") -> str:
    return "" if interval is None else f"[{number(interval[0], form)}, {number(interval[1], form)}]"


def _as_csv(bench: PolicyBench) -> str:
    tasks = bench.document["facts"]["tasks"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*_CSV, *(f"mean_episode_reward: {task}" for task in tasks)], lineterminator="\n")
    writer.writeheader()
    for row in bench.document["leaderboard"]:
        low, high = row["iqm_interval_95"] or (None, None)
        seconds = bench.seconds.get(row["policy"], {})
        extra = {
            "iqm_low": low,
            "iqm_high": high,
            "train_seconds": seconds.get("train"),
            "evaluate_seconds": seconds.get("evaluate"),
            "simulated": " ".join(bench.document["facts"]["simulated"]),
            "command": repeat_command(bench, row["policy"]),
        }
        rewards = {f"mean_episode_reward: {task}": row["mean_episode_reward"].get(task) for task in tasks}
        writer.writerow({**{name: row[name] for name in _CSV if name in row}, **extra, **rewards})
    return stream.getvalue()


def _as_markdown(bench: PolicyBench) -> str:
    document, facts = bench.document, bench.document["facts"]
    note = simulated_note(bench)
    models = ", ".join(f"{role} {model}" for role, model in facts["models"].items())
    parts = [
        "# Policies at equal numbers of expert calls",
        *([f"**{note}**"] if note else []),
        f"{facts['budget_calls']:,} expert calls of training a cell, runs a policy and task: {len(facts['seeds'])} "
        f"(seeds {', '.join(map(str, facts['seeds']))}), horizon {facts['horizon']}. Evaluated on held-out seed "
        f"instructions with the same draws for every policy, {facts['evaluation_calls']:,} calls where nobody stops. "
        f"{models}; encoder {facts['encoder']}; instructgym {document['version']}.",
        "## Leaderboard",
        _leaderboard(bench),
        "IQM: interquartile mean of the scores of all cells, with its 95% interval by stratified bootstrap (runs "
        "within tasks; Agarwal et al. 2021). Gap: how far below 1 the scores are on average. P(beats random): the "
        "chance that a run of it is above a run of random. Calls, tokens and seconds are means a cell, seconds those "
        "of training and evaluation; a chain is one evolved instruction. Planners pay for all that they try.",
        "## The scale",
        _scales(document),
        "The optimum knows the draws beforehand: an upper bound. The best fixed sequence is picked on the very seeds "
        "that it is measured on, which flatters it, the more the fewer they are.",
        "## Mean episode reward, held out",
        _rewards(document),
        "## Probability that the row's policy is above the column's",
        _pairwise(document),
        "## The set that each makes with equal numbers of expert calls",
        _diversity(document),
        "Accepted rewrites of the evaluation, without training's calls, which stand beside them. Vendi: the effective "
        "number of different texts; distance: mean pairwise, both by the encoder. Calls to match: after how many calls "
        "the set is as large (distinct texts), or as diverse (Vendi), as random's after all of them. Ahead from: with "
        "the calls of training counted, from how many in all on the set is ahead of random's after as many. In "
        "brackets how many cells get there.",
    ]
    if bench.failed:
        parts += ["## Failed cells", "\n".join(f"- {name}: {reason}" for name, reason in bench.failed.items())]
    commands = "\n".join(repeat_command(bench, row["policy"]) for row in document["leaderboard"])
    parts += ["## To measure a row again", f"```\n{commands}\n```"]
    return "\n\n".join(parts) + "\n"


def _leaderboard(bench: PolicyBench) -> str:
    columns = ["", "policy", "IQM", "95%", "gap", "P(beats random)", "training calls", "reviewer", "tokens"]
    columns += ["calls a chain", "reviewer", "tokens", "seconds", "cells"]
    rows = []
    for place, row in enumerate(bench.document["leaderboard"], start=1):
        seconds = sum(bench.seconds.get(row["policy"], {}).values())
        beats = number(row["beats_random"]), interval_text(row["beats_random_interval_95"])
        rows.append(
            [
                place,
                row["policy"],
                number(row["iqm"]),
                interval_text(row["iqm_interval_95"]),
                number(row["optimality_gap"]),
                " ".join(beats).strip(),
                *([_whole(row[name]) for name in ("train_calls", "train_reviewer_calls", "train_tokens")]),
                number(row["calls_a_chain"], ".1f"),
                number(row["reviewer_calls_a_chain"], ".1f"),
                _whole(row["tokens_a_chain"]),
                number(seconds, ".1f"),
                row["cells"],
            ]
        )
    return _table(columns, rows, left=2)


def _scales(document: dict[str, Any]) -> str:
    rows = []
    for task, scale in document["scale"].items():
        if scale is None:
            rows.append([task, "", "", "no cell of random is finished", "", ""])
            continue
        optimum = scale["optimum"]
        trees = "" if optimum is None else f", searched on {optimum['trees']} of {optimum['of']} seeds"
        error = "" if optimum is None or optimum["span_se"] is None else f" (s.e. {number(optimum['span_se'])})"
        rows.append(
            [
                task,
                number(scale["zero"], ".3f"),
                f"{number(scale['zero'] + scale['span'], '.3f')}{error}",
                scale["one"] + trees + (f" ({scale['no_optimum']})" if scale["no_optimum"] else ""),
                "" if optimum is None else number(optimum["best_sequence_score"]),
                document["best_fixed"].get(task, ""),
            ]
        )
    columns = ["task", "0: random", "1", "which is", "best fixed sequence, in hindsight", "best fixed operation"]
    return _table(columns, rows, left=1)


def _rewards(document: dict[str, Any]) -> str:
    tasks = document["facts"]["tasks"]
    rows = [
        [row["policy"], *(number(row["mean_episode_reward"].get(task), ".3f") for task in tasks)]
        for row in document["leaderboard"]
    ]
    return _table(["policy", *tasks], rows, left=1)


def _pairwise(document: dict[str, Any]) -> str:
    names = list(document["pairwise"])
    rows = [[row, *(number(document["pairwise"][row].get(column)) for column in names)] for row in names]
    return _table(["", *names], rows, left=1)


def _diversity(document: dict[str, Any]) -> str:
    rows = [
        [
            row["policy"],
            _whole(row["train_calls"]),
            _whole(row["calls"]),
            _whole(row["accepted"]),
            _whole(row["distinct"]),
            f"{number(row['vendi'], '.1f')} {interval_text(row['vendi_interval_95'], '.1f')}".strip(),
            number(row["mean_pairwise_distance"], ".3f"),
            number(row["distinct_2"], ".3f"),
            *(_reached(row, "calls_to_match", "matched", measure) for measure in ("distinct", "vendi")),
            *(_reached(row, "calls_to_overtake", "overtook", measure) for measure in ("distinct", "vendi")),
        ]
        for row in document["diversity"]
    ]
    columns = ["policy", "training calls", "calls", "accepted", "distinct", "Vendi", "distance", "distinct-2"]
    columns += ["calls to match: distinct", "Vendi", "ahead from: distinct", "Vendi"]
    return _table(columns, rows, left=1)


def _reached(row: dict[str, Any], calls: str, count: str, measure: str) -> str:
    value, there = row[f"{calls}_{measure}"], row[f"{count}_{measure}"]
    if there == "0 of 0":
        return ""
    return f"never ({there})" if value is None else f"{value:,.0f} ({there})"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], left: int) -> str:
    """A Markdown table; the first `left` columns hold words."""
    rule = ["---" if place < left else "---:" for place in range(len(columns))]
    lines = [columns, rule, *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
