"""The thread that owns the model: it takes what waits, runs a batch of it, and hands out the answers."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from instructgym.errors import BadRequest, UsageError
from instructgym.llm_backends.local_transformers.batching import batch_area, choose_batch
from instructgym.llm_backends.local_transformers.decoding import Generation
from instructgym.llm_backends.local_transformers.failures import (
    close_at_exit,
    free_memory,
    is_out_of_memory,
    typed_error,
)
from instructgym.llm_backends.local_transformers.loading import LoadedModel
from instructgym.llm_backends.local_transformers.rows import Row, answer, rows_of
from instructgym.types import Completion, Request

__all__ = ["Job", "Worker"]

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """A request and its answer to be. `started` is set when its first row is in a batch, or it failed before."""

    request: Request
    started: Future[None] = field(default_factory=Future)
    answered: Future[Completion] = field(default_factory=Future)
    rows: list[Row] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Answered, failed or cancelled."""
        return self.answered.done()

    def start(self) -> None:
        with contextlib.suppress(InvalidStateError):  # started before, or cancelled
            self.started.set_result(None)

    def succeed(self, completion: Completion) -> None:
        self.start()
        with contextlib.suppress(InvalidStateError):
            self.answered.set_result(completion)

    def fail(self, error: Exception) -> None:
        self.start()
        with contextlib.suppress(InvalidStateError):
            self.answered.set_exception(error)


class Worker:
    """Loads the model in a daemon thread of its own and serves jobs until `close`.

    A batch starts as soon as the model is idle and anything waits; `choose_batch` says of what. If the device runs out
    of memory, the batch's rows go back to the head of the queue and batches are half as large from then on.
    """

    def __init__(
        self, load: Callable[[], LoadedModel], *, batch_tokens: int, max_batch: int, run_seed: int, name: str
    ) -> None:
        self._load = load
        self._batch_tokens = batch_tokens
        self._max_batch = max_batch
        self._run_seed = run_seed
        self._name = name
        self._arrivals: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: close
        self._closing = threading.Event()
        self._waiting: deque[tuple[Row, Job]] = deque()
        self.ended: Future[None] = Future()
        self.thread = threading.Thread(target=self._run, name=f"model {name}", daemon=True)
        self.thread.start()
        close_at_exit(self)

    def submit(self, request: Request) -> Job:
        job = Job(request)
        self._arrivals.put(job)
        return job

    def close(self) -> None:
        """End the thread after the step that runs; `ended` says when. What still waits fails with `UsageError`."""
        self._closing.set()
        self._arrivals.put(None)

    # Everything below runs in the thread.

    def _run(self) -> None:
        loaded: LoadedModel | None = None
        try:
            while not self._closing.is_set():
                jobs = self._take()
                if loaded is None and jobs:
                    loaded = self._open(jobs)
                if loaded is not None:
                    self._admit(jobs, loaded)
                    self._run_batch(loaded)
        finally:
            self._closing.set()
            for job in [*self._take(), *(job for _, job in self._waiting)]:
                job.fail(UsageError(f"the model '{self._name}' was closed before it answered"))
            self._waiting.clear()
            if loaded is not None:
                device = loaded.device
                loaded = None
                free_memory(device)
            with contextlib.suppress(InvalidStateError):
                self.ended.set_result(None)

    def _take(self) -> list[Job]:
        """The jobs that have arrived; waits for one only if there is nothing else to do."""
        jobs: list[Job | None] = []
        if not self._waiting and not self._closing.is_set():
            jobs.append(self._arrivals.get())
        with contextlib.suppress(queue.Empty):
            while True:
                jobs.append(self._arrivals.get_nowait())
        return [job for job in jobs if job is not None and not job.over]

    def _open(self, jobs: Sequence[Job]) -> LoadedModel | None:
        try:
            return self._load()
        except Exception as error:
            for job in jobs:
                job.fail(typed_error(error, f"the model '{self._name}' could not be loaded"))
            return None

    def _admit(self, jobs: Sequence[Job], loaded: LoadedModel) -> None:
        for job in jobs:
            try:
                job.rows = rows_of(job.request, loaded, self._run_seed)
            except Exception as error:
                job.fail(typed_error(error, f"a prompt for '{self._name}' could not be written"))
            else:
                self._waiting.extend((row, job) for row in job.rows)

    def _run_batch(self, loaded: LoadedModel) -> None:
        """One batch, if anything waits."""
        waiting = [(row, job) for row, job in self._waiting if not job.over]
        sizes = [row.size for row, _ in waiting]
        chosen = choose_batch(sizes, batch_tokens=self._batch_tokens, max_rows=self._max_batch)
        batch = dict(waiting[index] for index in chosen)
        taken = set(chosen)
        self._waiting = deque(pair for index, pair in enumerate(waiting) if index not in taken)
        if not batch:
            return
        for job in batch.values():
            job.start()
        failure: Exception | None = None
        try:
            self._generate(batch, loaded)
        except Exception as error:
            failure = error.with_traceback(None)  # its frames hold the batch's tensors
        if failure is not None:
            self._recover(failure, batch, loaded)

    def _generate(self, batch: dict[Row, Job], loaded: LoadedModel) -> None:
        generation = Generation(loaded, list(batch))
        while generation.rows and not self._closing.is_set():
            for row in generation.step():
                self._finish(row, batch[row], loaded)
            generation.drop([row for row in generation.rows if batch[row].over])
        for row in generation.rows:
            batch[row].fail(UsageError(f"the model '{self._name}' was closed before it answered"))

    def _finish(self, row: Row, job: Job, loaded: LoadedModel) -> None:
        if row.failure:
            job.fail(
                BadRequest(
                    f"'{self._name}' failed on this request: {row.failure} ({loaded.model.dtype}); "
                    "float16 overflows in some models: set dtype = 'bfloat16' or 'float32'"
                )
            )
        elif all(other.finish_reason for other in job.rows):
            job.succeed(answer(job.rows, loaded))

    def _recover(self, failure: Exception, batch: dict[Row, Job], loaded: LoadedModel) -> None:
        unfinished = [(row, job) for row, job in batch.items() if not row.finish_reason and not job.over]
        if not is_out_of_memory(failure):
            _log.error("a batch of %d rows on '%s' failed: %r", len(batch), self._name, failure)
            for _, job in unfinished:
                job.fail(typed_error(failure, f"a batch on '{self._name}' failed"))
            return
        free_memory(loaded.device)
        if len(batch) == 1:
            ((row, job),) = batch.items()
            job.fail(
                BadRequest(
                    f"{loaded.device} has too little memory for one request of {row.size.prompt} prompt tokens and up "
                    f"to {row.size.new} new ones on '{self._name}'; lower max_tokens, choose a smaller dtype or model, "
                    "or another device"
                )
            )
            return
        self._batch_tokens = batch_area([row.size for row in batch]) // 2
        _log.warning(
            "%s ran out of memory on a batch of %d rows; batches hold at most %d tokens from now on "
            "(set batch_tokens to begin with that)",
            loaded.device,
            len(batch),
            self._batch_tokens,
        )
        for row, job in reversed(unfinished):
            row.start_again()
            self._waiting.appendleft((row, job))
