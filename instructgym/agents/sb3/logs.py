"""What SB3 logs, as dicts of floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter

from instructgym.agents.base import Progress

__all__ = ["Recorder"]

_WALL_CLOCK = ("time/fps", "time/time_elapsed")


class Recorder(KVWriter):
    """Keeps every scalar of SB3's log in `rows`, and tells `progress`.

    Wall-clock values go to `progress` alone: equal runs have equal histories. What is no number (texts, figures,
    histograms of a user's callback) needs SB3's own writer: `tensorboard_log`.
    """

    def __init__(self, progress: Progress | None) -> None:
        self.rows: list[dict[str, float]] = []
        self.progress = progress

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        shown = {name: number for name, value in sorted(key_values.items()) if (number := _scalar(value)) is not None}
        row = {name: value for name, value in shown.items() if name not in _WALL_CLOCK}
        if not row:
            return
        self.rows.append(row)
        if self.progress is not None:
            self.progress(step, shown)

    def close(self) -> None:
        pass


def _scalar(value: Any) -> float | None:
    """The number that `value` is; a 0-d array and a tensor of one element are one."""
    if isinstance(value, (int, float, np.number)):
        return float(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        inner = value.item()
        return float(inner) if isinstance(inner, (int, float)) else None
    return None
