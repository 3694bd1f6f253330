"""The leaderboard, the learning curves, the performance profiles and the sets as pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.plugins import require
from instructgym.train.run_folder import RunFolder

__all__ = ["FIGURES", "draw_figures"]

FIGURES = ("leaderboard", "learning_curves", "profiles", "sets")
_FORMATS = ("png", "svg")
_MARKERS = "osD^vP*X<>"


def draw_figures(document: Mapping[str, Any], folder: RunFolder) -> None:
    """Write `FIGURES` of a benchmark's document, each as PNG and SVG. Raises `MissingDependencyError`."""
    require("matplotlib", extra="plots")
    import matplotlib

    colours = _colours([row["policy"] for row in document["leaderboard"]])
    drawn = {
        "leaderboard": _leaderboard(document, colours),
        "learning_curves": _curves(document, colours),
        "profiles": _profiles(document, colours),
        "sets": _sets(document, colours),
    }
    for name, figure in drawn.items():
        for form in _FORMATS:
            stream = io.BytesIO()
            # Without a date and with fixed ids, so that equal results are equal files.
            with matplotlib.rc_context({"svg.hashsalt": "instructgym"}):
                figure.savefig(stream, format=form, dpi=130, metadata={"Date": None} if form == "svg" else None)
            folder.write_bytes(f"{name}.{form}", stream.getvalue())


def _figure(width: float, height: float, title: str, document: Mapping[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    simulated = document["facts"]["simulated"]
    note = f"\n{' and '.join(simulated)} SIMULATED: no language model was asked" if simulated else ""
    figure.suptitle(f"{title}{note}", fontsize=11)
    return figure


def _colours(names: Sequence[str]) -> dict[str, Any]:
    """A colour and a marker a policy, the same in every figure."""
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    return {name: (palette[i % len(palette)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(names)}


def _leaderboard(document: Mapping[str, Any], colours: Mapping[str, Any]) -> Any:
    rows = [row for row in document["leaderboard"] if row["iqm"] is not None][::-1]
    facts = document["facts"]
    title = f"Policies after {facts['budget_calls']:,} expert calls; runs a task: {len(facts['seeds'])}"
    figure = _figure(8.0, 1.9 + 0.38 * max(len(rows), 3), title, document)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour, marker = colours[row["policy"]]
        low, high = row["iqm_interval_95"] or (row["iqm"], row["iqm"])
        axes.plot([low, high], [place, place], color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt")
        axes.plot([row["iqm"]], [place], color=colour, marker=marker, markersize=7)
    axes.set_yticks(range(len(rows)), [row["policy"] for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    references = [(0.0, "random")]
    optima = [scale["optimum"] for scale in document["scale"].values() if scale is not None]
    if optima and all(optimum is not None for optimum in optima):
        references.append((1.0, "optimum"))
        best = [optimum["best_sequence_score"] for optimum in optima if optimum["best_sequence_score"] is not None]
        if best:
            references.append((float(np.mean(best)), "best fixed sequence, in hindsight"))
    elif optima:
        references.append((1.0, "best policy"))
    for line, (value, word) in enumerate(references):
        axes.axvline(value, color="0.4", linewidth=1, linestyle=":")
        above = (0, 15 if line == 2 else 3)  # the third may stand close to the second
        at = {"xycoords": ("data", "axes fraction"), "xytext": above, "textcoords": "offset points"}
        axes.annotate(word, (value, 1.0), ha="center", va="bottom", fontsize=8, color="0.3", **at)
    axes.set_xlabel("score: interquartile mean over cells, with its 95% interval")
    axes.grid(axis="x", alpha=0.3)
    return figure


def _curves(document: Mapping[str, Any], colours: Mapping[str, Any]) -> Any:
    tasks = document["facts"]["tasks"]
    columns = min(len(tasks), 3)
    lines = -(-len(tasks) // columns)
    figure = _figure(
        6.4 * columns + 1.8, 3.9 * lines + 0.6, "Learning curves: training reward against expert calls", document
    )
    grid = figure.subplots(lines, columns, squeeze=False)
    shown: dict[str, Any] = {}
    for number, task in enumerate(tasks):
        axes = grid[number // columns][number % columns]
        cells = [cell for cell in document["cells"] if cell["task"] == task and cell["state"] == "finished"]
        for name, (colour, marker) in colours.items():
            own = [cell for cell in cells if cell["policy"] == name]
            curves = [np.array(cell["train"]["curve"]) for cell in own if cell["train"] and cell["train"]["curve"]]
            if curves:
                calls, values = _on_one_grid(curves)
                mean = values.mean(axis=0)
                (line,) = axes.plot(
                    calls, mean, color=colour, marker=marker, markersize=4, markevery=(0, 7), label=name
                )
                axes.fill_between(calls, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15)
            elif own:
                level = float(np.mean([cell["evaluation"]["mean_episode_reward"] for cell in own]))
                line = axes.axhline(level, color=colour, linestyle="--", linewidth=1.2, label=name)
            else:
                continue
            shown.setdefault(name, line)
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("expert calls of training")
        axes.set_ylabel("mean reward of the last 100 episodes")
        axes.grid(alpha=0.3)
    for spare in range(len(tasks), lines * columns):
        grid[spare // columns][spare % columns].set_axis_off()
    if shown:
        figure.legend(
            list(shown.values()), list(shown), loc="outside right upper", fontsize=8,
            title="band: lowest to highest seed\ndashed: held-out mean of\nwhat does not train", title_fontsize=7,
        )  # fmt: skip
    return figure


def _on_one_grid(curves: Sequence[NDArray[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Curves (P, 2) of (calls, value) on common calls: (G,), (curves, G); only where all of them are known."""
    first, last = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    if first >= last:
        return np.array([last]), np.array([[curve[-1, 1]] for curve in curves])
    calls = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    calls = calls[(calls >= first) & (calls <= last)]
    return calls, np.array([np.interp(calls, curve[:, 0], curve[:, 1]) for curve in curves])


def _profiles(document: Mapping[str, Any], colours: Mapping[str, Any]) -> Any:
    figure = _figure(8.4, 4.2, "Performance profiles: share of cells above a score", document)
    axes = figure.subplots()
    thresholds = document["profiles"]["thresholds"]
    for offset, (name, shares) in enumerate(document["profiles"]["policies"].items()):
        colour, marker = colours[name]
        axes.step(
            thresholds,
            shares,
            where="post",
            color=colour,
            marker=marker,
            markersize=4,
            markevery=(offset, 6),
            label=name,
        )
    if document["profiles"]["policies"]:
        shares = np.array(list(document["profiles"]["policies"].values()))
        moving = np.flatnonzero((shares < 1.0).any(axis=0) & (shares > 0.0).any(axis=0))
        inner = [thresholds[place] for place in moving] + [0.0]
        axes.set_xlim(min(inner) - 0.1, max(inner) + 0.1)
    axes.set_xlabel("score")
    axes.set_ylabel("share of cells above it")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(alpha=0.3)
    if document["profiles"]["policies"]:
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _sets(document: Mapping[str, Any], colours: Mapping[str, Any]) -> Any:
    """How large and how diverse the set is after so many calls, the mean over cells."""
    figure = _figure(9.6, 4.2, "The set that each makes, against the expert calls that make it", document)
    shown: dict[str, Any] = {}
    measures = (("distinct", "different texts"), ("vendi", "Vendi score: effectively different texts"))
    for axes, (measure, words) in zip(figure.subplots(1, 2), measures, strict=True):
        for name, (colour, marker) in colours.items():
            sets = [
                cell["sets"] for cell in document["cells"] if cell["state"] == "finished" and cell["policy"] == name
            ]
            # Cells of one benchmark have the same points: what a task and a seed hold out is as large in all.
            curves = np.array([[point[measure] or 0.0 for point in points] for points in sets], np.float64)
            if len(curves):
                calls = [point["calls"] for point in sets[0]]
                style = {"marker": marker, "markersize": 4, "markevery": 4}
                (line,) = axes.plot(calls, curves.mean(axis=0), color=colour, label=name, **style)
                axes.fill_between(calls, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.12)
                shown.setdefault(name, line)
        axes.set_xlabel("expert calls, without those of training")
        axes.set_ylabel(words)
        axes.grid(alpha=0.3)
    if shown:
        figure.legend(list(shown.values()), list(shown), loc="outside right upper", fontsize=8)
    return figure
