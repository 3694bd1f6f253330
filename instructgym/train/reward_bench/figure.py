"""The reward cards, and the hacking matrix, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructgym.plugins import require
from instructgym.train.reward_bench.bench import RewardBench
from instructgym.train.reward_bench.card import RewardCard
from instructgym.train.reward_bench.hacking import RANDOM
from instructgym.train.reward_bench.probes import BAD

__all__ = ["draw_bench"]

_ROW_INCHES = 0.32


def draw_bench(bench: RewardBench, path: Path) -> None:
    """Write the figure to `path`; the suffix says the format (png, svg, pdf).

    Left: for each reward how often good rewrites beat each bad kind on the held-out half (1 is right, 0.5 a coin,
    below it the bad kind is paid more). Right: the hacking matrix, where there is one. Raises `MissingDependencyError`
    without matplotlib.
    """
    require("matplotlib", extra="plots")
    from matplotlib.figure import Figure

    panels = 1 if bench.hacking is None else 2
    rows = max(len(bench.cards), 4)
    figure = Figure(figsize=(9.5 * panels, 2.6 + _ROW_INCHES * rows), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _cards(axes[0], bench.cards)
    if bench.hacking is not None:
        _hacking(axes[1], bench.hacking.lifts)
    simulated = bench.facts["simulated"]
    figure.suptitle(
        "Reward cards" + (f" ({' and '.join(simulated)} SIMULATED: no language model was asked)" if simulated else "")
    )
    figure.savefig(path, dpi=130)


def _cards(axes: Any, cards: Sequence[RewardCard]) -> None:
    kinds = [kind for kind in BAD if any(kind in card.halves["held_out"].auc_by_kind for card in cards)]
    columns = ["all", *kinds]
    values = np.full((len(cards), len(columns)), np.nan)
    for row, card in enumerate(cards):
        half = card.halves["held_out"]
        for column, found in enumerate([half.auc, *(half.auc_by_kind.get(kind) for kind in kinds)]):
            if found is not None:
                values[row, column] = found
    _heat(axes, values, [card.reward for card in cards], columns, "RdYlGn", 0.0, 1.0, "{:.2f}")
    axes.set_title("P(good rewrite scores above this kind), held-out half", fontsize=10)


def _hacking(axes: Any, lifts: Mapping[str, Mapping[str, float]]) -> None:
    rows = list(lifts)
    columns = list(next(iter(lifts.values()))) if lifts else []
    values = np.array([[lifts[row][column] for column in columns] for row in rows])
    bound = max(1.0, float(np.abs(values).max(initial=0.0)))
    _heat(axes, values, rows, columns, "PuOr", -bound, bound, "{:+.1f}")
    axes.set_title(f"trained on (row), measured by (column): sd above {RANDOM}", fontsize=10)


def _heat(
    axes: Any,
    values: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    colours: str,
    low: float,
    high: float,
    form: str,
) -> None:
    image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            if np.isfinite(values[row, column]):
                red, green, blue, _ = image.cmap(image.norm(values[row, column]))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.45
                text = form.format(values[row, column])
                text = text if float(text) else form.format(0.0)  # no "-0.0"
                colour = "white" if dark else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
