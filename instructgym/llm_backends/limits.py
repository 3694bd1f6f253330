"""Leave to send: how many requests are out at once, and how many requests and tokens go out a minute."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLMBackend
from instructgym.llm_backends.clock import waiting_for_leave
from instructgym.llm_backends.pricing import tokens_at_most
from instructgym.types import Completion, Request

__all__ = ["Limited", "Limits", "Rate", "Slots"]

_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """`concurrency` requests in flight; at most so many requests and tokens in any minute (None: no limit)."""

    concurrency: int = 32
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"limits.{name} is {value}; expected a positive whole number, or none at all")


class Slots:
    """A first-come, first-served semaphore whose `capacity` may change while it is in use."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.in_use = 0

    @property
    def capacity(self) -> int:
        return self._capacity

    @capacity.setter
    def capacity(self, value: int) -> None:
        self._capacity = max(1, value)
        self._wake()

    def try_acquire(self) -> bool:
        """Take a slot if one is free and nobody waits for it."""
        if self._waiters or self.in_use >= self._capacity:
            return False
        self.in_use += 1
        return True

    async def acquire(self) -> None:
        """Wait for a slot, behind all who already wait."""
        turn = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        self._wake()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the slot came together with the cancellation
                self.release()
            raise

    def release(self) -> None:
        self.in_use -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiters and (self._waiters[0].done() or self.in_use < self._capacity):
            turn = self._waiters.popleft()
            if not turn.done():
                self.in_use += 1
                turn.set_result(None)


class Rate:
    """At most `per_minute` units in any 60 seconds: a token bucket of one second's worth, in order of arrival.

    An amount larger than the bucket passes as soon as the bucket is full, and the bucket goes into debt.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = max(1.0, per_minute / _WINDOW_S)
        # The burst is part of the minute's allowance, so that burst + refill never exceed it.
        allowance = per_minute if self._burst == 1.0 else per_minute - self._burst
        self._refill_per_s = allowance / _WINDOW_S
        self._level = self._burst
        self._clock = clock
        self._at = clock()

    def take(self, amount: float) -> float:
        """Take `amount` units; returns the seconds to wait before using them."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._refill_per_s)
        self._at = now
        missing = min(amount, self._burst) - self._level
        self._level -= amount
        return max(0.0, missing / self._refill_per_s)

    def give_back(self, amount: float) -> None:
        """Return units that were taken and not used."""
        self._level = min(self._burst, self._level + amount)


class Limited:
    """Sends through `inner` within `limits`. A slot is held from leave to send until the answer."""

    def __init__(self, inner: LLMBackend, limits: Limits) -> None:
        self.name = inner.name
        self._inner = inner
        self.slots = Slots(limits.concurrency)
        self._requests = Rate(limits.requests_per_minute) if limits.requests_per_minute else None
        self._tokens = Rate(limits.tokens_per_minute) if limits.tokens_per_minute else None

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def complete(self, request: Request) -> Completion:
        if not self.slots.try_acquire():
            with waiting_for_leave():
                await self.slots.acquire()
        try:
            if self._requests is None and self._tokens is None:
                return await self._inner.complete(request)
            return await self._paced(request)
        finally:
            self.slots.release()

    async def _paced(self, request: Request) -> Completion:
        # After the slot, not before it: what counts is when a request is sent.
        delay_s = self._requests.take(1) if self._requests else 0.0
        at_most = 0
        if self._tokens:
            at_most = tokens_at_most(request).total
            delay_s = max(delay_s, self._tokens.take(at_most))
        if delay_s > 0.0:
            with waiting_for_leave():
                await asyncio.sleep(delay_s)
        completion = await self._inner.complete(request)
        if self._tokens and completion.usage is not None:
            used = completion.usage.prompt_tokens + completion.usage.completion_tokens
            self._tokens.give_back(max(0, at_most - used))
        return completion
