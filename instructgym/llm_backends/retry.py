"""Attempts: typed errors decide which failure is worth another, and when."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NamedTuple

from instructgym.errors import (
    BackendError,
    BudgetExhausted,
    CallTimeout,
    ConfigError,
    EndpointUnreachable,
    RateLimited,
    TransientError,
)
from instructgym.llm_backends.base import LLMBackend, is_instant
from instructgym.llm_backends.clock import CallClock, Deadlines, current_clock
from instructgym.types import Completion, Request, Usage

__all__ = ["CANCELLED", "OK", "Attempt", "OnAttempt", "Retry", "turned_away"]

OK = "ok"
CANCELLED = "Cancelled"
_OVERLOADED = frozenset({503, 529})
_log = logging.getLogger(__name__)


class Attempt(NamedTuple):
    """How one attempt ended. `status` is ``ok``, ``Cancelled`` or the error's class name; `usage` None = unknown."""

    status: str
    usage: Usage | None = None


OnAttempt = Callable[[Request, Attempt], None]


def turned_away(error: BackendError) -> bool:
    """True if the endpoint had no room for the call (429, 503, 529)."""
    return isinstance(error, RateLimited) or error.status in _OVERLOADED


class Retry:
    """Asks `inner` again after a `TransientError`, with capped exponential backoff and full jitter.

    A server's Retry-After is obeyed. `deadline_s` covers attempts and backoff, never the wait for a slot or for
    budget; a backoff holds no slot. `on_attempt` hears of every attempt that was sent.

    `max_attempts` bounds the attempts that an endpoint took on and failed. One that had no room for the call
    (`turned_away`), or that nobody answered, says nothing of the call: a busy endpoint is no reason to lose it, so
    such attempts are bounded by the deadline alone; by `max_attempts` too if there is none, or if it is 1: then a call
    is asked once. An `EndpointUnreachable` is final until the role's first success, for then the address is wrong, and
    transient after.
    """

    def __init__(
        self,
        inner: LLMBackend,
        *,
        max_attempts: int = 5,
        deadline_s: float | None = 600.0,
        backoff_s: float = 0.5,
        backoff_cap_s: float = 30.0,
        jitter_seed: int = 0,
        on_attempt: OnAttempt | None = None,
    ) -> None:
        if max_attempts < 1:
            raise ConfigError(f"max_attempts is {max_attempts}; expected at least 1")
        if deadline_s is not None and deadline_s <= 0:
            raise ConfigError(f"deadline_s is {deadline_s}; expected a positive number of seconds, or none at all")
        if backoff_s < 0 or backoff_cap_s < 0:
            raise ConfigError(f"backoff_s is {backoff_s}, backoff_cap_s {backoff_cap_s}; expected seconds, 0 or more")
        self.name = inner.name
        self._inner = inner
        self._max_attempts = max_attempts
        self._deadline_s = deadline_s
        self._backoff_s = backoff_s
        self._backoff_cap_s = backoff_cap_s
        self._rng = random.Random(jitter_seed)
        self.on_attempt = on_attempt
        self._answered_roles: set[str] = set()
        self._deadlines = Deadlines()
        self.instant = is_instant(inner)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def complete(self, request: Request) -> Completion:
        if self.instant:
            return await self._once(request)
        clock = self._deadlines.clock(self._deadline_s)
        token = current_clock.set(clock)
        try:
            with clock:
                return await self._attempts(request, clock)
        except TimeoutError:
            if not clock.expired:
                raise
            raise CallTimeout(f"no answer within the deadline of {self._deadline_s:g} s for the whole call") from None
        finally:
            current_clock.reset(token)

    async def _once(self, request: Request) -> Completion:
        """Ask what neither waits nor fails in passing."""
        try:
            completion = await self._inner.complete(request)
        except BudgetExhausted:
            raise
        except BackendError as error:
            self._note(request, Attempt(type(error).__name__))
            raise
        self._note(request, Attempt(OK, completion.usage))
        return completion

    async def _attempts(self, request: Request, clock: CallClock) -> Completion:
        attempts = failures = 0
        while True:
            attempts += 1
            clock.sent = True
            try:
                completion = await self._inner.complete(request)
            except asyncio.CancelledError:
                if clock.sent:
                    self._note(request, Attempt(CallTimeout.__name__ if clock.expired else CANCELLED))
                raise
            except BudgetExhausted:
                raise  # it stopped the attempt from being made
            except BackendError as error:
                reached = not isinstance(error, EndpointUnreachable)
                if reached:
                    self._note(request, Attempt(type(error).__name__))
                if not self._worth_another(request, error):
                    raise
                failures += self._max_attempts == 1 or self._deadline_s is None or (reached and not turned_away(error))
                delay_s = self._delay_s(attempts, error)
                if failures == self._max_attempts:
                    raise _gave_up(error, attempts) from error
                if delay_s >= clock.remaining_s:
                    raise _gave_up(error, attempts, self._why_too_late(error)) from error
                _log.debug("attempt %d failed, again in %.2f s: %s", attempts, delay_s, error)
            else:
                self._answered_roles.add(request.role)
                self._note(request, Attempt(OK, completion.usage))
                return completion
            await asyncio.sleep(delay_s)

    def _note(self, request: Request, attempt: Attempt) -> None:
        if self.on_attempt is not None:
            self.on_attempt(request, attempt)

    def _worth_another(self, request: Request, error: BackendError) -> bool:
        if isinstance(error, EndpointUnreachable):
            return request.role in self._answered_roles
        return isinstance(error, TransientError)

    def _why_too_late(self, error: BackendError) -> str:
        asked_s = error.retry_after_s if isinstance(error, TransientError) else None
        what = "the next would begin" if asked_s is None else f"the endpoint asks to wait {asked_s:g} s, which is"
        return f"; {what} after the deadline of {self._deadline_s:g} s for the whole call"

    def _delay_s(self, attempt: int, error: BackendError) -> float:
        ceiling = min(self._backoff_cap_s, self._backoff_s * 2.0 ** min(attempt - 1, 60))
        asked_s = error.retry_after_s if isinstance(error, TransientError) else None
        if asked_s is None:
            return self._rng.uniform(0.0, ceiling)
        # Never before the asked time, and not all at once at it.
        return asked_s + self._rng.uniform(0.0, min(self._backoff_s, ceiling))


def _gave_up(error: BackendError, attempts: int, why: str = "") -> BackendError:
    message = f"{error} (gave up after {attempts} attempt{'s' if attempts > 1 else ''}{why})"
    if isinstance(error, TransientError):
        return type(error)(message, status=error.status, retry_after_s=error.retry_after_s)
    return type(error)(message, status=error.status)
