"""How a run is shown while it goes on: one bar a stage in a terminal, one line a stage elsewhere. All on stderr."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

from instructgym.cli.faults import say

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["LineProgress", "RunProgress", "TerminalProgress", "open_progress"]


class RunProgress(Protocol):
    """What the pipeline calls (`instructgym.train.progress.Progress`), as a context manager."""

    def __enter__(self) -> RunProgress: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def say(self, text: str) -> None: ...
    def started(self, stage: str, total: int | None) -> None: ...
    def advance(self, stage: str, done: int, note: str = "") -> None: ...
    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None: ...


def open_progress() -> RunProgress:
    """Bars if stderr is a terminal, else lines."""
    return TerminalProgress() if sys.stderr.isatty() else LineProgress()


class LineProgress:
    """A line for each finished stage, and one every `every_s` seconds while it goes on: nothing that fills a log."""

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s = every_s
        self._said_at = 0.0
        self._started_at: dict[str, float] = {}
        self._total: dict[str, int | None] = {}
        self._done: dict[str, tuple[int, str]] = {}

    def __enter__(self) -> LineProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stage in self._started_at:  # what was cut off says how far it came
            say(f"{stage}: stopped at {self._count(stage)}")

    def say(self, text: str) -> None:
        say(text)

    def started(self, stage: str, total: int | None) -> None:
        self._started_at[stage] = self._said_at = time.monotonic()
        self._total[stage] = total
        self._done[stage] = (0, "")

    def advance(self, stage: str, done: int, note: str = "") -> None:
        self._done[stage] = (done, note)
        now = time.monotonic()
        if now - self._said_at >= self._every_s:
            self._said_at = now
            left = _left(now - self._started_at[stage], done, self._total[stage])
            say(_joined(f"{stage}: {self._count(stage)}", note, left))

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None:
        began = self._started_at.pop(stage, None)
        if skipped or began is None:
            say(_joined(f"{stage}: {'already done' if skipped else 'done'}", note))
            return
        seconds = time.monotonic() - began
        done, last = self._done[stage]
        rate = f" ({done / seconds:.0f}/s)" if done and seconds >= 0.05 else ""
        say(_joined(f"{stage}: {self._count(stage)} in {seconds:.1f} s{rate}", note or last))

    def _count(self, stage: str) -> str:
        done, total = self._done[stage][0], self._total[stage]
        return f"{done:,}" if total is None else f"{done:,} of {total:,}"


class TerminalProgress:
    """One bar a stage with its rate, what is left, and the stage's own note (calls, hits)."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", justify="right"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        self._bars: Bars = Progress(*columns, console=console or Console(stderr=True), refresh_per_second=8)
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)

    def started(self, stage: str, total: int | None) -> None:
        self._began[stage] = time.monotonic()
        if stage in self._tasks:
            self._bars.reset(self._tasks[stage], total=total, note="", rate="")
        else:
            self._tasks[stage] = self._bars.add_task(stage, total=total, note="", rate="")

    def advance(self, stage: str, done: int, note: str = "") -> None:
        seconds = time.monotonic() - self._began[stage]
        total = next((known.total for known in self._bars.tasks if known.id == self._tasks[stage]), None)
        rate = f"{done / seconds:,.0f}/s" if seconds > 0.5 else ""
        left = _left(seconds, done, None if total is None else int(total))
        self._bars.update(self._tasks[stage], completed=done, rate=_joined(rate, left))
        if note:
            self._bars.update(self._tasks[stage], note=note)

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None:
        if stage not in self._tasks:
            self.started(stage, 1)
        task = self._tasks[stage]
        total = next((known.total for known in self._bars.tasks if known.id == task), None)
        if skipped:
            self._bars.update(task, total=total or 1, completed=total or 1, note=_joined("already done", note), rate="")
            return
        if total is None:
            completed = next((known.completed for known in self._bars.tasks if known.id == task), 0)
            self._bars.update(task, total=max(1, completed), completed=max(1, completed))
        if note:
            self._bars.update(task, note=note)
        self._bars.stop_task(task)


def _left(seconds: float, done: int, total: int | None) -> str:
    """How long it will still take at the speed so far; nothing where that cannot be said."""
    if not done or total is None or done >= total or seconds < 0.5:
        return ""
    left = round(seconds / done * (total - done))
    hours, minutes = left // 3600, left // 60 % 60
    if hours:
        return f"{hours} h {minutes} min left"
    return f"{minutes} min left" if minutes else f"{left} s left"


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
