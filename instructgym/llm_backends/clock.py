"""Deadlines that share one timer, and the clock of a call that stands still while the call waits for leave to send.

`asyncio.timeout` keeps a timer a call; at a thousand calls a second, each with minutes to go, the event loop's heap of
timers would cost as much as a layer of the stack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType

__all__ = ["CallClock", "Deadlines", "current_clock", "waiting_for_leave"]

current_clock: ContextVar[CallClock | None] = ContextVar("instructgym_call_clock", default=None)
"""Set by the retry layer for the layers below it, within the task of one call."""


class Deadlines:
    """Watches over `CallClock`s, in one event loop at a time, with a timer for the earliest of them."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._running: set[CallClock] = set()

    def clock(self, deadline_s: float | None) -> CallClock:
        """A clock for ``with``: its body is cut with `TimeoutError` after `deadline_s` seconds (None: never)."""
        return CallClock(self, asyncio.get_running_loop(), deadline_s)

    def watch(self, clock: CallClock, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            self._loop, self._timer = loop, None
            self._running = {clock}
        else:
            self._running.add(clock)
        if self._timer is None or self._timer.when() > clock.due:
            self._set_timer(loop, clock.due)

    def forget(self, clock: CallClock) -> None:
        self._running.discard(clock)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(when, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for clock in [clock for clock in self._running if clock.due <= now]:
            self._running.discard(clock)
            clock.cut()
        if self._running:
            self._set_timer(loop, min(clock.due for clock in self._running))


class CallClock:
    """Cuts the body of its ``with`` with `TimeoutError` when its time is up; `pause` and `resume` hold it still.

    `sent` is False while an attempt still waits: such an attempt cost nothing, and is neither charged nor recorded.
    """

    __slots__ = ("_cancelling", "_deadlines", "_loop", "_remaining_s", "_task", "due", "expired", "sent")

    def __init__(self, deadlines: Deadlines, loop: asyncio.AbstractEventLoop, deadline_s: float | None) -> None:
        self._deadlines = deadlines
        self._loop = loop
        self._remaining_s = float("inf") if deadline_s is None else deadline_s
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self.due = float("inf")
        self.expired = False
        self.sent = True

    def __enter__(self) -> CallClock:
        task = asyncio.current_task(self._loop)
        if task is not None:
            self._task = task
            self._cancelling = task.cancelling()
        self.resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._deadlines.forget(self)
        if self.expired and self._task is not None:
            others = self._task.uncancel() > self._cancelling
            if not others and kind is not None and issubclass(kind, asyncio.CancelledError):
                raise TimeoutError from error

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; infinite without one."""
        return self.due - self._loop.time()

    def cut(self) -> None:
        """End the body now: its time is up."""
        if self._task is not None:
            self.expired = True
            self._task.cancel()

    def pause(self) -> None:
        self._remaining_s = self.remaining_s
        self._deadlines.forget(self)

    def resume(self) -> None:
        if self._remaining_s != float("inf"):
            self.due = self._loop.time() + self._remaining_s
            self._deadlines.watch(self, self._loop)


@contextmanager
def waiting_for_leave() -> Iterator[None]:
    """The body waits for leave to send; the call's clock stands still meanwhile."""
    clock = current_clock.get()
    if clock is None:
        yield
        return
    clock.sent = False
    clock.pause()
    try:
        yield
    finally:
        clock.resume()
    clock.sent = True  # not reached if the wait was cut: then nothing was sent
