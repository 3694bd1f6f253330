"""How fast a stage's calls go, for whoever watches the run."""

from __future__ import annotations

import time
from collections.abc import Callable

from instructgym.train.progress import Progress

__all__ = ["TrafficNotes"]

Traffic = Callable[[str], tuple[int, int]]
"""stage -> (calls, of these answered by the ledger), so far"""


class TrafficNotes:
    """Passes on what a run tells, and adds calls a second and ledger hits to the note of each `advance`."""

    def __init__(self, inner: Progress, traffic: Traffic) -> None:
        self._inner = inner
        self._traffic = traffic
        self._began = 0.0

    def say(self, text: str) -> None:
        self._inner.say(text)

    def started(self, stage: str, total: int | None) -> None:
        self._began = time.monotonic()
        self._inner.started(stage, total)

    def advance(self, stage: str, done: int, note: str = "") -> None:
        calls, hits = self._traffic(stage)
        if calls:
            rate = calls / max(time.monotonic() - self._began, 1e-3)
            note = f"{f'{note}, ' if note else ''}{rate:,.0f} calls/s, {hits:,} hits"
        self._inner.advance(stage, done, note)

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None:
        self._inner.finished(stage, skipped=skipped, note=note)
