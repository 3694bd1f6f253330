"""Leave to send: how many requests are out at once, and how many requests and tokens go out a minute."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from instructgym.errors import ConfigError
from instructgym.llm_backends.base import LLMBackend, is_instant
from instructgym.llm_backends.pricing import tokens_at_most
from instructgym.llm_backends.waiting_line import Later, WaitingLine
from instructgym.types import Completion, Request

__all__ = ["Limited", "Limits", "Rate", "Taken"]

_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """`concurrency` requests in flight; at most so many requests and tokens in any minute (None: no limit).

    With `adaptive` each endpoint has besides a limit that finds itself, at most `concurrency` and beginning there; if
    False, `concurrency` is all that counts and has to be given.
    """

    concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    adaptive: bool = True

    def __post_init__(self) -> None:
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"limits.{name} is {value}; expected a positive whole number, or none at all")
        if not self.adaptive and self.concurrency is None:
            raise ConfigError(
                "limits.adaptive is false and there is no limits.concurrency; "
                "say how many requests may be in flight, or leave the limit adaptive"
            )


@dataclass(slots=True)
class Taken:
    """What was taken of a `Rate`, and when."""

    at_s: float
    amount: int


class Rate:
    """At most `per_minute` units in any 60 seconds, and evenly: a bucket of one second's worth, filled at that rate.

    An amount larger than the bucket passes when the bucket is full, which then goes into debt; one larger than a
    minute's worth passes alone. What turns out unused stops to count.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._per_s = per_minute / _WINDOW_S
        self._bucket = max(1.0, self._per_s)
        self._level = self._bucket
        self._clock = clock
        self._level_at_s = clock()
        self._minute: deque[Taken] = deque()  # the last, oldest first
        self._in_minute = 0

    def delay_s(self, amount: int) -> float:
        """Seconds until `amount` may be worth another try; 0 if it may be taken now."""
        now = self._clock()
        self._level = min(self._bucket, self._level + (now - self._level_at_s) * self._per_s)
        self._level_at_s = now
        while self._minute and self._minute[0].at_s + _WINDOW_S <= now:
            self._in_minute -= self._minute[0].amount
            self._minute.popleft().amount = 0
        delay_s = max(0.0, (min(amount, self._bucket) - self._level) / self._per_s)
        if self._in_minute and self._in_minute + amount > self._per_minute:
            delay_s = max(delay_s, self._minute[0].at_s + _WINDOW_S - now)
        return delay_s

    def take(self, amount: int) -> Taken:
        """Take `amount`, for which `delay_s` has just been 0."""
        taken = Taken(self._level_at_s, amount)
        self._minute.append(taken)
        self._in_minute += amount
        self._level -= amount
        return taken

    def settle(self, taken: Taken, used: int) -> None:
        """Only `used` of `taken` was used."""
        unused = taken.amount - used
        if unused > 0:
            taken.amount = used
            self._in_minute -= unused
            self._level = min(self._bucket, self._level + unused)


class _Leave(NamedTuple):
    request: Taken | None = None
    tokens: Taken | None = None


_FREE_LEAVE = _Leave()


class Limited:
    """Sends through `inner` within `limits`, in order of arrival. `in_flight` counts from leave to send to the answer.

    The tokens of a call are at first those that it can take at most, and then those that its usage block says.
    """

    def __init__(self, inner: LLMBackend, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = inner.name
        self._inner = inner
        self._concurrency = limits.concurrency
        self._requests = Rate(limits.requests_per_minute, clock) if limits.requests_per_minute else None
        self._tokens = Rate(limits.tokens_per_minute, clock) if limits.tokens_per_minute else None
        self._line: WaitingLine[_Leave] = WaitingLine(self._unsent)
        self.in_flight = 0
        self.instant = limits.requests_per_minute is None and limits.tokens_per_minute is None and is_instant(inner)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def complete(self, request: Request) -> Completion:
        if self.instant:
            return await self._inner.complete(request)
        at_most = tokens_at_most(request).total if self._tokens else 0
        leave = await self._line.leave(lambda: self._admit(at_most))
        try:
            completion = await self._inner.complete(request)
            if self._tokens and leave.tokens and completion.usage is not None:
                self._tokens.settle(leave.tokens, completion.usage.prompt_tokens + completion.usage.completion_tokens)
            return completion
        finally:
            self._release()

    def _admit(self, at_most: int) -> _Leave | Later:
        if self._concurrency is not None and self.in_flight >= self._concurrency:
            return Later()
        requests, tokens = self._requests, self._tokens
        if requests is None and tokens is None:
            self.in_flight += 1
            return _FREE_LEAVE
        delay_s = max(requests.delay_s(1) if requests else 0.0, tokens.delay_s(at_most) if tokens else 0.0)
        if delay_s > 0.0:
            return Later(delay_s)
        self.in_flight += 1
        return _Leave(requests.take(1) if requests else None, tokens.take(at_most) if tokens else None)

    def _unsent(self, leave: _Leave) -> None:
        """Nothing was sent with this leave."""
        if self._requests and leave.request:
            self._requests.settle(leave.request, 0)
        if self._tokens and leave.tokens:
            self._tokens.settle(leave.tokens, 0)
        self._release()

    def _release(self) -> None:
        self.in_flight -= 1
        self._line.serve()
