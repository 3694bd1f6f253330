"""The thread that owns a scorer's model: it joins what callers want to know into few passes."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future

from instructgym.errors import BadRequest, UsageError
from instructgym.llm_backends.local_transformers.failures import (
    close_at_exit,
    free_memory,
    is_out_of_memory,
    typed_error,
)
from instructgym.llm_backends.local_transformers.loading import LoadedModel
from instructgym.llm_backends.local_transformers.scoring_rows import (
    ScoredRow,
    TextLoss,
    Unscored,
    chosen_passes,
    losses_of,
    row_of,
)

__all__ = ["LossCache", "Pair", "ScoringWorker"]

_log = logging.getLogger(__name__)

Pair = tuple[str, str]
Loss = TextLoss | Unscored
_Job = tuple[Sequence[Pair], "Future[list[Loss]]"]
_JOINED_PAIRS = 256


class LossCache:
    """The losses that were asked for most recently, by (prefix, text); safe between threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._losses: OrderedDict[Pair, Loss] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, pairs: Iterable[Pair]) -> dict[Pair, Loss]:
        """Those of `pairs` that are known."""
        found: dict[Pair, Loss] = {}
        with self._lock:
            for pair in pairs:
                if pair in self._losses:
                    self._losses.move_to_end(pair)
                    found[pair] = self._losses[pair]
        return found

    def put(self, losses: Mapping[Pair, Loss]) -> None:
        with self._lock:
            self._losses.update(losses)
            while len(self._losses) > self._size:
                self._losses.popitem(last=False)


class ScoringWorker:
    """Loads the model in a daemon thread at the first job and serves jobs until `close`.

    It takes whatever waits, up to 256 pairs at once. `max_batch` None is one row a pass where the model is `steady`
    (see `LoadedModel`), else 32.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        *,
        max_batch: int | None,
        batch_tokens: int,
        cache: LossCache,
        name: str,
    ) -> None:
        self._load = load
        self._max_batch = max_batch
        self._batch_tokens = batch_tokens
        self._cache = cache
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None: close
        self._closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name=f"scorer {name}", daemon=True)
        self.thread.start()
        close_at_exit(self)

    def submit(self, pairs: Sequence[Pair]) -> Future[list[Loss]]:
        """The losses of `pairs`, in order."""
        future: Future[list[Loss]] = Future()
        self._jobs.put((pairs, future))
        return future

    def close(self) -> None:
        """End the thread after the pass that runs. What still waits fails with `UsageError`."""
        self._closing.set()
        self._jobs.put(None)

    # Everything below runs in the thread.

    def _run(self) -> None:
        loaded: LoadedModel | None = None
        while not self._closing.is_set():
            jobs = self._take()
            if not jobs:
                continue
            if loaded is None:
                loaded = self._open(jobs)
            if loaded is not None:
                self._answer(jobs, loaded)
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None and job[1].set_running_or_notify_cancel():
                    job[1].set_exception(self._closed())
        if loaded is not None:
            device, loaded = loaded.device, None
            free_memory(device)

    def _take(self) -> list[_Job]:
        """The jobs that wait, at least one; none if the worker was closed meanwhile."""
        jobs: list[_Job] = []
        following = self._jobs.get()
        with contextlib.suppress(queue.Empty):
            while following is not None:
                if following[1].set_running_or_notify_cancel():
                    jobs.append(following)
                if sum(len(pairs) for pairs, _ in jobs) >= _JOINED_PAIRS:
                    break
                following = self._jobs.get_nowait()
        return jobs

    def _open(self, jobs: Sequence[_Job]) -> LoadedModel | None:
        try:
            return self._load()
        except Exception as error:
            for _, future in jobs:
                future.set_exception(typed_error(error, f"the model '{self._name}' could not be loaded"))
            return None

    def _answer(self, jobs: Sequence[_Job], loaded: LoadedModel) -> None:
        wanted = dict.fromkeys(pair for pairs, _ in jobs for pair in pairs)
        known: dict[Pair, Loss | Exception] = {**self._cache.get(wanted)}
        rows: dict[Pair, ScoredRow] = {}
        for pair in wanted:
            if pair in known:
                continue
            try:
                row = row_of(*pair, loaded)
            except Exception as error:
                known[pair] = typed_error(error, f"a prompt for '{self._name}' could not be written")
            else:
                if isinstance(row, Unscored):
                    known[pair] = row
                else:
                    rows[pair] = row
        known |= self._scored(rows, loaded)
        self._cache.put({pair: loss for pair, loss in known.items() if not isinstance(loss, Exception)})
        for pairs, future in jobs:
            losses: list[Loss] = []
            for pair in pairs:
                loss = known[pair]
                if isinstance(loss, Exception):
                    future.set_exception(loss)
                    break
                losses.append(loss)
            else:
                future.set_result(losses)

    def _scored(self, rows: Mapping[Pair, ScoredRow], loaded: LoadedModel) -> dict[Pair, TextLoss | Exception]:
        pairs = list(rows)
        most = self._max_batch or (1 if loaded.steady else 32)
        passes = chosen_passes(list(rows.values()), max_rows=most, max_tokens=self._batch_tokens)
        scored: dict[Pair, TextLoss | Exception] = {}
        for chosen in passes:
            group = [pairs[index] for index in chosen]
            outcomes = self._one_pass([rows[pair] for pair in group], loaded)
            scored |= dict(zip(group, outcomes, strict=True))
        return scored

    def _one_pass(self, rows: Sequence[ScoredRow], loaded: LoadedModel) -> list[TextLoss | Exception]:
        """The outcomes of `rows`; in halves where they do not fit into memory together."""
        if self._closing.is_set():
            return [self._closed() for _ in rows]
        failure: Exception
        try:
            losses = losses_of(rows, loaded)
        except Exception as error:
            failure = error.with_traceback(None)  # its frames hold the pass's tensors
        else:
            return [loss if math.isfinite(loss.mean_nats) else self._not_numbers(loss, loaded) for loss in losses]
        if not is_out_of_memory(failure):
            _log.error("a pass of %d rows on '%s' failed: %r", len(rows), self._name, failure)
            return [typed_error(failure, f"a pass on '{self._name}' failed")] * len(rows)
        free_memory(loaded.device)
        if len(rows) == 1:
            return [
                BadRequest(
                    f"{loaded.device} has too little memory for one text of {len(rows[0].ids)} tokens, prefix "
                    f"included, on '{self._name}'; choose a smaller dtype or model, or another device"
                )
            ]
        half = len(rows) // 2
        _log.warning("%s ran out of memory on a pass of %d rows; it goes on in halves", loaded.device, len(rows))
        return [*self._one_pass(rows[:half], loaded), *self._one_pass(rows[half:], loaded)]

    def _not_numbers(self, loss: TextLoss, loaded: LoadedModel) -> Exception:
        return BadRequest(
            f"'{self._name}' failed on a text of {loss.tokens} tokens: its log-probabilities are not finite "
            f"({loaded.model.dtype}); float16 overflows in some models: set dtype = 'bfloat16' or 'float32'"
        )

    def _closed(self) -> Exception:
        return UsageError(f"the model '{self._name}' was closed before it answered")
