"""Jobs in processes of their own: each may fail or die alone, and none outlives the one who started it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from instructgym.errors import InstructGymError

__all__ = ["Job", "run_jobs"]

_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LOOK_EVERY_S = 0.2
_PROCESSES = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Job:
    """``function(argument)``: a function of a module and a value, both of which can be pickled."""

    name: str
    function: Callable[[Any], None]
    argument: Any


def run_jobs(jobs: Sequence[Job], processes: int, on_done: Callable[[Job, str], None]) -> None:
    """Run `jobs`, `processes` at a time, one thread each; `on_done` hears of each as it ends, with what went wrong.

    A job that raises, or whose process dies, ends with its reason; the others go on. If this is interrupted, the
    processes are killed: what they had committed is kept, and nothing else is looked for.
    """
    waiting = list(reversed(jobs))
    workers = [_Worker() for _ in range(min(processes, len(jobs)))]
    try:
        with _one_thread_each():
            for worker in workers:
                worker.start()
                worker.give(waiting.pop())
            while busy := [worker for worker in workers if worker.job is not None]:
                ready = wait([worker.pipe for worker in busy])
                for worker in busy:
                    if worker.pipe not in ready:
                        continue
                    job, reason = worker.take()
                    on_done(job, reason)
                    if waiting:
                        worker.give(waiting.pop())
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    def __init__(self) -> None:
        self.job: Job | None = None
        self.pipe: Connection
        self._process: Any = None

    def start(self) -> None:
        self.pipe, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, job: Job) -> None:
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # it died at once; `take` says so
            self.pipe.send((job.function, job.argument))

    def take(self) -> tuple[Job, str]:
        """The job that ended, and its reason; a process that died is replaced."""
        job, self.job = self.job, None
        assert job is not None
        try:
            return job, str(self.pipe.recv())
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            self.kill()
            self.start()
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            return job, f"its process died ({how}); for want of memory, perhaps"

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.pipe.close()
            self._process = None


def _serve(pipe: Connection, parent: int) -> None:
    """The process: job after job, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, argument = pipe.recv()
            pipe.send(_reason(function, argument))


def _leave_with(parent: int) -> None:
    """End this process soon after its parent: a job that goes on alone would hold its folder's lock."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)


def _reason(function: Callable[[Any], None], argument: Any) -> str:
    """Run a job; what went wrong in words, empty if nothing did."""
    try:
        function(argument)
    except InstructGymError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:  # a job's own bug is a failed job, with the place where it happened
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}, line {place.lineno})"
    return ""


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Numerical libraries read these when they are loaded; several processes would take each other's cores."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
