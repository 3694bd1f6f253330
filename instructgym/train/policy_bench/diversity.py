"""How large and how diverse a set of instructions a policy makes with a number of expert calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgym.metrics import distinct_2, mean_pairwise_distance, vendi_score
from instructgym.rewards.encoders.base import Encoder
from instructgym.train.chains import DIGITS
from instructgym.types import Instruction

__all__ = ["MEASURES", "calls_to_overtake", "calls_to_reach", "set_by_calls"]

MEASURES = ("accepted", "distinct", "vendi", "mean_pairwise_distance", "distinct_2")
"""Accepted rewrites, different texts among them, and three measures of those texts."""
_POINTS = 24


def set_by_calls(lineage: Sequence[Mapping[str, Any]], budget: int, encoder: Encoder) -> list[dict[str, Any]]:
    """The set of accepted rewrites after so many expert calls, at `_POINTS` points up to `budget`.

    `lineage` are rows of transitions in the order of chains and steps; what a planner asked for counts with its step.
    A row whose calls go beyond a point is not in its set.
    """
    used = np.cumsum([row["calls"]["expert"] for row in lineage])
    texts = [_text(row) for row in lineage]
    points = sorted({max(1, round(budget * number / _POINTS)) for number in range(1, _POINTS + 1)})
    vectors = encoder.encode_sync([text for text in texts if text is not None] or [""])
    places = np.cumsum([text is not None for text in texts]) - 1
    found = []
    for point in points:
        end = int(np.searchsorted(used, point, side="right"))
        first: dict[str, int] = {}
        accepted = 0
        for row in range(end):
            text = texts[row]
            if text is not None:
                accepted += 1
                first.setdefault(text, int(places[row]))
        rows = vectors[list(first.values())]
        found.append(
            {
                "calls": point,
                "accepted": accepted,
                "distinct": len(first),
                "vendi": _rounded(vendi_score(rows)) if len(first) else None,
                "mean_pairwise_distance": _rounded(mean_pairwise_distance(rows)) if len(first) else None,
                "distinct_2": _rounded(distinct_2(list(first))) if first else None,
            }
        )
    return found


def calls_to_reach(points: Sequence[Mapping[str, Any]], measure: str, target: float) -> float | None:
    """The calls after which `measure` first reaches `target`; None if it never does.

    Between two points by a straight line.
    """
    before_calls, before = 0.0, 0.0
    for point in points:
        value = point[measure]
        if value is None:
            continue
        if value >= target:
            share = 1.0 if value == before else (target - before) / (value - before)
            return float(before_calls + max(0.0, share) * (point["calls"] - before_calls))
        before_calls, before = point["calls"], value
    return None


def calls_to_overtake(
    points: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], measure: str, spent: float
) -> float | None:
    """The calls in all from which on `measure` is above that of `reference` at as many calls; None if it is not.

    `spent` calls came before the first of `points`: those of training. The two are compared for as long as `reference`
    lasts, which is read off by straight lines between its points; whoever falls behind again has not overtaken.
    """
    known = [(0.0, 0.0), *((point["calls"], point[measure]) for point in reference if point[measure] is not None)]
    calls, values = np.array(known, np.float64).T
    found: float | None = None
    for point in points:
        total = spent + point["calls"]
        if point[measure] is None or total > calls[-1]:
            continue
        ahead = point[measure] > float(np.interp(total, calls, values))
        found = (total if found is None else found) if ahead else None
    return found


def _text(row: Mapping[str, Any]) -> str | None:
    """What was accepted, as one text; None for a step that left nothing."""
    if not row["accepted"] or row["child"] is None:
        return None
    return Instruction(row["child"]["instruction"], row["child"]["input"]).render()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
