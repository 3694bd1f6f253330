"""What a pool knows of one endpoint: how much it takes at once, whether it is well, and whether it wants a pause."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from instructgym.errors import (
    BackendError,
    CallTimeout,
    ConnectionLost,
    EndpointUnreachable,
    ServerError,
    TransientError,
)
from instructgym.llm_backends.adaptive import AdaptiveLimit, Sent
from instructgym.llm_backends.base import LLMBackend
from instructgym.llm_backends.pricing import tokens_at_most
from instructgym.llm_backends.rate_headers import Allowance, requests_left, tokens_left
from instructgym.llm_backends.retry import turned_away
from instructgym.types import Request

__all__ = ["Endpoint"]

_FAILURES = 3  # in a row, with no success in between: then it rests
_REFUSALS = 3  # likewise: then its Retry-After holds for all
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LONGEST_WAIT_S = 120.0


class _Quota:
    """The last `Allowance` that an endpoint told, less what was sent since."""

    __slots__ = ("_left", "_limit", "_reset_at_s", "known")

    def __init__(self) -> None:
        self.known = False
        self._left = self._limit = self._reset_at_s = 0.0

    def told(self, allowance: Allowance, now_s: float) -> None:
        self.known = True
        self._left = allowance.left
        self._limit = math.inf if allowance.limit is None else max(allowance.left, allowance.limit)
        self._reset_at_s = now_s + min(allowance.reset_s, _LONGEST_WAIT_S)

    def delay_s(self, need: int, now_s: float) -> float:
        """Seconds until `need` fits; a need beyond the limit fits when all is left."""
        if now_s >= self._reset_at_s:
            self.known = False
        if not self.known or self._left >= min(need, self._limit):
            return 0.0
        return self._reset_at_s - now_s

    def use(self, need: int) -> None:
        self._left -= need


class Endpoint:
    """One transport, and what its replies have told. Times are those of `clock`, in seconds.

    It *rests* after `EndpointUnreachable`, or after three lost connections, timeouts or 5xx with no success between
    them: for 1 s, and twice as long (at most 60 s) each time that the one call that follows a rest fails too. It is
    *blocked* while its headers say that nothing is left, and, after three calls in a row that it turned away, until
    the latest Retry-After; for at most 120 s each.
    """

    def __init__(self, transport: LLMBackend, limit: AdaptiveLimit, clock: Callable[[], float]) -> None:
        self.transport = transport
        self.name = str(getattr(transport, "url", transport.name))
        self.limit = limit
        self._clock = clock
        self._requests, self._tokens = _Quota(), _Quota()
        self._failures = self._refusals = 0
        self._blocked_until_s = 0.0
        self._pause_s = 0.0
        self._rests_since_s = self._rests_until_s = -math.inf
        self._on_trial = False
        if hasattr(transport, "on_headers"):
            transport.on_headers = self._hear

    def rest_s(self, now_s: float) -> float:
        """Seconds that it still rests; infinite while the call that tries it again is out."""
        return math.inf if self._on_trial else max(0.0, self._rests_until_s - now_s)

    def blocked_s(self, request: Request | None, now_s: float) -> float:
        """Seconds until `request` (None: any) may be sent to it."""
        delay_s = self._blocked_until_s - now_s if self._refusals >= _REFUSALS else 0.0
        if self._requests.known:
            delay_s = max(delay_s, self._requests.delay_s(1, now_s))
        if self._tokens.known:
            need = 1 if request is None else tokens_at_most(request).total
            delay_s = max(delay_s, self._tokens.delay_s(need, now_s))
        return max(0.0, delay_s)

    def send(self, request: Request, now_s: float) -> Sent:
        if self._pause_s:
            self._on_trial = True
        if self._requests.known:
            self._requests.use(1)
        if self._tokens.known:
            self._tokens.use(tokens_at_most(request).total)
        return self.limit.send(now_s)

    def answered(self, sent: Sent, now_s: float) -> None:
        self.limit.answered(sent, now_s)
        self._refusals = 0
        self._is_well()

    def failed(self, sent: Sent, error: BackendError, now_s: float) -> None:
        no_room = turned_away(error)
        if no_room or isinstance(error, CallTimeout):
            self.limit.overloaded(sent)
        else:
            self.limit.dropped()
        if no_room:
            self._refusals += 1
            asked_s = error.retry_after_s if isinstance(error, TransientError) else None
            if asked_s is not None and asked_s <= _LONGEST_WAIT_S:
                self._blocked_until_s = max(self._blocked_until_s, now_s + asked_s)
        if isinstance(error, (CallTimeout, ConnectionLost, EndpointUnreachable, ServerError)):
            self._is_unwell(sent, now_s, at_once=isinstance(error, EndpointUnreachable))
        elif no_room or error.status is not None:
            self._is_well()  # it answers
        else:
            self._on_trial = False

    def unsent(self) -> None:
        """The call was cancelled, or ended in a way that says nothing of the endpoint."""
        self.limit.dropped()
        self._on_trial = False

    def _is_well(self) -> None:
        self._failures = 0
        self._pause_s = 0.0
        self._rests_until_s = -math.inf
        self._on_trial = False

    def _is_unwell(self, sent: Sent, now_s: float, *, at_once: bool) -> None:
        if sent.at_s < self._rests_since_s:
            return  # it was out before the rest began: nothing new
        self._failures += 1
        if at_once or self._pause_s or self._failures >= _FAILURES:
            self._pause_s = min(max(_PAUSE_S, 2.0 * self._pause_s), _LONGEST_PAUSE_S)
            self._rests_since_s = now_s
            self._rests_until_s = now_s + self._pause_s
            self._on_trial = False

    def _hear(self, headers: Mapping[str, str]) -> None:
        wall_s, now_s = time.time(), self._clock()
        requests, tokens = requests_left(headers, wall_s), tokens_left(headers, wall_s)
        if requests is not None:
            self._requests.told(requests, now_s)
        if tokens is not None:
            self._tokens.told(tokens, now_s)
