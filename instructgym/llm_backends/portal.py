"""How synchronous callers reach the async core: one event loop a process, on a daemon thread of its own.

The thread is a daemon, and nothing of it sits in an executor that the interpreter joins at exit, so a script that
never closes what it opened still ends.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from instructgym.errors import UsageError

__all__ = ["Portal", "acquire_portal"]

T = TypeVar("T")
Closer = Callable[[], Awaitable[None]]

_INTERRUPT_GRACE_S = 0.5
_CLOSE_GRACE_S = 2.0
_log = logging.getLogger(__name__)


class Portal:
    """An event loop on its own daemon thread; `call` runs a coroutine there and blocks until it has ended.

    Most callers want the process's shared one: `acquire_portal`.
    """

    def __init__(self, name: str = "instructgym-portal") -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._closers: dict[object, Closer] = {}
        self._closed = False
        self._users = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
        """Await ``function(*args)`` on the portal's loop and return its result, or raise what it raises.

        A KeyboardInterrupt in the calling thread cancels the coroutine, gives it half a second to clean up, and
        propagates. Raises `UsageError` in another process than the portal's, on the portal's own thread, and once the
        portal is closed.
        """
        self._check_usable()
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            task = self._loop.create_task(function(*args))
            tasks.append(task)
            task.add_done_callback(finish)

        def finish(task: asyncio.Task[T]) -> None:
            if task.cancelled():
                done.cancel()
            elif (error := task.exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(task.result())

        try:
            self._loop.call_soon_threadsafe(start)
        except RuntimeError as error:
            raise UsageError("the portal is closed; open the env or the backend again") from error
        try:
            return done.result()
        except concurrent.futures.CancelledError:
            raise UsageError("the portal was closed while a call was running on it") from None
        except BaseException:
            # What the coroutine raised arrives here too; then it has ended, and there is nothing to cancel.
            if not done.done():
                self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
                with contextlib.suppress(concurrent.futures.CancelledError, concurrent.futures.TimeoutError, Exception):
                    done.result(_INTERRUPT_GRACE_S)
            raise

    def at_close(self, closer: Closer) -> Callable[[], None]:
        """Await `closer()` on the loop before the portal ends, also at interpreter exit. Returns what undoes this."""
        token = object()
        self._closers[token] = closer

        def undo() -> None:
            self._closers.pop(token, None)

        return undo

    def release(self) -> None:
        """Give back one `acquire_portal`; the last one closes the portal."""
        self._check_process()
        with _lock:
            if self._users == 0:
                raise UsageError("the portal was released more often than it was acquired")
            self._users -= 1
            if self._users:
                return
            _forget(self)
        self.close()

    def close(self) -> None:
        """Run the closers, cancel what still runs, and end the thread. Closing twice does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_GRACE_S + 1.0)

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                f"this object was opened in process {self._pid} and cannot be used in process {os.getpid()}; "
                "create the env inside the worker, and spawn workers instead of forking them"
            )

    def _check_usable(self) -> None:
        self._check_process()
        if self._closed:
            raise UsageError("the portal is closed; open the env or the backend again")
        if threading.current_thread() is self._thread:
            raise UsageError("a blocking call was made from the portal's own event loop; await the coroutine instead")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            try:
                self._loop.run_until_complete(self._end())
            finally:
                asyncio.set_event_loop(None)
                self._loop.close()

    async def _end(self) -> None:
        for closer in list(self._closers.values()):
            try:
                async with asyncio.timeout(_CLOSE_GRACE_S):
                    await closer()
            except Exception:
                _log.warning("closing at the portal's end failed", exc_info=True)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


_lock = threading.Lock()
_shared: Portal | None = None


def acquire_portal() -> Portal:
    """The process's portal, opened if there is none; pair each with one `Portal.release`."""
    global _shared
    with _lock:
        if _shared is None or _shared.closed:
            _shared = Portal()
        _shared._users += 1
        return _shared


def _forget(portal: Portal) -> None:
    global _shared
    if _shared is portal:
        _shared = None


def _after_fork_in_child() -> None:
    """A forked child has neither the thread nor, maybe, the lock: it starts without a portal of its own."""
    global _lock, _shared
    _lock = threading.Lock()
    _shared = None


@atexit.register
def _close_at_exit() -> None:
    if _shared is not None:
        _shared.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
