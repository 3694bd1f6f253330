"""The ledger: every call once. The outermost wrapper, and the one that owns the calls in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from instructgym.errors import (
    AuthenticationFailed,
    BackendError,
    BudgetExhausted,
    EndpointUnreachable,
    ModelNotFound,
    ReplayMiss,
    UsageError,
)
from instructgym.llm_backends.base import LLMBackend, is_instant
from instructgym.llm_backends.ledger_rows import AttemptRow, CallRow, Failure, Store, request_key
from instructgym.llm_backends.pricing import charged_tokens
from instructgym.llm_backends.retry import OK, Attempt
from instructgym.types import Completion, Request

__all__ = ["CallStats", "Ledger"]

_NOT_THE_REQUESTS_FAULT = (AuthenticationFailed, BudgetExhausted, EndpointUnreachable, ModelNotFound, ReplayMiss)
"""They speak of the endpoint, the key or the purse as they are now; the same request may well succeed tomorrow."""


@dataclass(frozen=True, slots=True)
class CallStats:
    """Counts of a (role, stage). `hits` are this process's; the rest is all that the ledger holds.

    `calls` are paid answers, `failed` final failures, `attempts` what went to the endpoint; tokens as it reported.
    """

    hits: int = 0
    calls: int = 0
    failed: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class _OpenCall:
    """A call in flight, which the ledger owns."""

    key: bytes
    task: asyncio.Task[Completion] | None = None
    answered: list[AttemptRow] = field(default_factory=list)
    waiting: list[asyncio.Future[Completion]] = field(default_factory=list)


_open_call: ContextVar[_OpenCall | None] = ContextVar("instructgym_open_call", default=None)


class Ledger:
    """Answers from `store` what was asked before, and asks `inner` for the rest, each request once.

    An answer is handed out only after its commit. Equal requests in flight are one call, which the ledger owns:
    cancelling one that waits for it does not cancel it. Final failures are recorded and raised again without a call,
    unless `retry_failed`; those that say nothing of the request (no key, no such model, nobody there, budget spent)
    are not recorded.
    """

    def __init__(self, inner: LLMBackend, store: Store, *, retry_failed: bool = False) -> None:
        self.name = inner.name
        self._inner = inner
        self._store = store
        self._retry_failed = retry_failed
        self._in_flight: dict[bytes, _OpenCall] = {}
        self._hits: dict[tuple[str, str], int] = {}
        self.instant = is_instant(inner) and is_instant(store)

    @property
    def in_flight(self) -> int:
        """Calls that are being made now."""
        return len(self._in_flight)

    async def complete(self, request: Request) -> Completion:
        key, canonical = request_key(request)
        call = self._in_flight.get(key)
        if call is None:
            known = self._store.get(key)
            if isinstance(known, Completion):
                self._count_hit(request)
                return known
            if known is not None and not self._retry_failed:
                self._count_hit(request)
                raise known.to_error()
            if self.instant:  # it is over before anyone could ask again, or cancel it
                return await self._pay(_OpenCall(key), canonical, request, replaces=known is not None)
            call = self._start(key, canonical, request, replaces=known is not None)
        else:
            self._count_hit(request)
        # Each waits on a future of its own, so that cancelling one touches neither the call nor the others.
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        call.waiting.append(answer)
        return await answer

    async def aclose(self) -> None:
        """Cancel what is in flight and close what is below; the store stays open for its owner to close."""
        tasks = [call.task for call in self._in_flight.values() if call.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._inner.aclose()

    def note_attempt(self, request: Request, attempt: Attempt) -> None:
        """Record an attempt: the retry layer's `on_attempt`."""
        call = _open_call.get()
        row = AttemptRow(
            key=call.key if call is not None else request_key(request)[0],
            role=request.role,
            stage=request.stage,
            model=request.model,
            status=attempt.status,
            usage=attempt.usage,
            charged=charged_tokens(request, attempt.status, attempt.usage),
        )
        if call is not None and attempt.status == OK:
            call.answered.append(row)  # goes into the same commit as its answer, so that neither is there alone
        else:
            self._store.put_soon(row)

    @property
    def hits(self) -> Mapping[tuple[str, str], int]:
        """Calls by (role, stage) that were answered without one of our own, in this process."""
        return dict(self._hits)

    def stats(self) -> Mapping[tuple[str, str], CallStats]:
        """Counts by (role, stage)."""
        table: dict[tuple[str, str], list[int]] = {at: [hits, 0, 0, 0, 0, 0] for at, hits in self._hits.items()}
        for (role, stage, _), tally in list(self._store.tallies().items()):
            row = table.setdefault((role, stage), [0] * 6)
            counts = (tally.calls, tally.failed, tally.attempts, tally.prompt_tokens, tally.completion_tokens)
            for column, count in enumerate(counts, start=1):
                row[column] += count
        return {at: CallStats(*row) for at, row in sorted(table.items())}

    def _start(self, key: bytes, canonical: str, request: Request, *, replaces: bool) -> _OpenCall:
        call = self._in_flight[key] = _OpenCall(key)
        call.task = asyncio.get_running_loop().create_task(self._pay(call, canonical, request, replaces))
        call.task.add_done_callback(lambda task: self._land(call, task))
        return call

    async def _pay(self, call: _OpenCall, canonical: str, request: Request, replaces: bool) -> Completion:
        token = _open_call.set(call)
        try:
            completion = await self._inner.complete(request)
        except BackendError as error:
            if not isinstance(error, _NOT_THE_REQUESTS_FAULT):
                await self._write(call, canonical, request, Failure.of(error), replaces)
            raise
        finally:
            _open_call.reset(token)
        await self._write(call, canonical, request, completion, replaces)
        return completion

    async def _write(
        self, call: _OpenCall, canonical: str, request: Request, outcome: Completion | Failure, replaces: bool
    ) -> None:
        row = CallRow(call.key, request.role, request.stage, request.model, canonical, outcome, replaces)
        await self._store.put(row, call.answered)

    def _count_hit(self, request: Request) -> None:
        at = (request.role, request.stage)
        self._hits[at] = self._hits.get(at, 0) + 1

    def _land(self, call: _OpenCall, task: asyncio.Task[Completion]) -> None:
        """The call has ended, and what it wrote is committed: hand it to all who wait, if any are left."""
        del self._in_flight[call.key]
        error: BaseException | None
        if task.cancelled():
            error = UsageError("the backend was closed while this call was in flight")
        else:
            error = task.exception()
        for answer in call.waiting:
            if answer.done():
                continue
            if error is None:
                answer.set_result(task.result())
            else:
                answer.set_exception(error)
                answer.exception()  # read, so that asyncio does not complain if the one who waits is cancelled now
