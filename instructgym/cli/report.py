"""What a run folder says of itself, as tables: the policies compared, the dataset, the calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructgym.cli.tables import print_table, print_text
from instructgym.errors import RunFolderError

__all__ = ["chosen_policies", "interval", "print_policies", "read_json", "read_lines"]

_POLICY_COLUMNS = (
    "policy",
    "mean episode\nreward",
    "eliminated",
    "diversity",
    "mean\nwords",
    "expert\ncalls",
    "reviewer\ncalls",
)


def read_json(folder: Path, name: str) -> Any:
    """A JSON file of a run, or None if the run has not come to it. Raises `RunFolderError` if it is broken."""
    path = folder / name
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"'{path}' cannot be read as a run's file: {error}.") from error


def read_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The objects of a JSON lines file of a run; none if there is no such file."""
    path = folder / name
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", errors="surrogatepass") as stream:
            return [json.loads(line) for line in stream]
    except ValueError as error:
        raise RunFolderError(f"'{path}' cannot be read as a run's file: {error}.") from error


def chosen_policies(evaluation: Mapping[str, Any]) -> list[str]:
    """The policies for a short table: all that were named, and of the fixed operations the best."""
    best = evaluation.get("best_fixed")
    return [name for name in evaluation["policies"] if not name.startswith("fixed:") or name == best]


def print_policies(evaluation: Mapping[str, Any], names: Sequence[str], *, title: str, simulated: bool) -> None:
    """The table of policies; its caption says what was measured, and that simulated text is simulated.

    A line instead where nothing was compared.
    """
    if not names:
        print_text("Policies: none was compared (evaluate.policies is empty).")
        return
    best = evaluation.get("best_fixed")
    rows = []
    for name in names:
        row = evaluation["policies"][name]
        shown = f"{name.removeprefix('fixed:')} (best fixed)" if name == best else name
        rows.append((shown, *_cells(row)))
    seeds = "held-out seeds" if evaluation.get("held_out", True) else "the seeds it was trained on"
    count = f"{evaluation['seeds']} {seeds}" if "seeds" in evaluation else seeds
    caption = (
        f"{count}; +- is half of the 95% interval (bootstrap over seeds); diversity is the mean pairwise distance."
    )
    if simulated:
        caption += "\nSIMULATED backend: the numbers compare policies, and say nothing of any language model's quality."
    print_table(_POLICY_COLUMNS, rows, title=title, caption=caption)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    transitions = row.get("transitions") or 0
    eliminated = sum(row.get("eliminated", {}).values())
    return (
        f"{_number(row.get('mean_episode_reward'), 3)} {interval(row)}".strip(),
        f"{100 * eliminated / transitions:.1f}%" if transitions else "",
        _number(row.get("mean_pairwise_distance"), 3),
        _number(row.get("mean_words"), 1),
        _number(row.get("expert_calls"), 0),
        _number(row.get("reviewer_calls"), 0),
    )


def interval(row: Mapping[str, Any]) -> str:
    """``+- half width`` of a row's 95% interval."""
    bounds = row.get("interval_95")
    return "" if not bounds else f"+- {(bounds[1] - bounds[0]) / 2:.3f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
