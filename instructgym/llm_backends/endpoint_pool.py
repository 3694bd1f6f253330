"""One or more endpoints that serve the same: each call goes to the one with the most room."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from instructgym.errors import BackendError, ConfigError, EndpointUnreachable
from instructgym.llm_backends.adaptive import AdaptiveLimit, Sent
from instructgym.llm_backends.base import LLMBackend
from instructgym.llm_backends.endpoint import Endpoint
from instructgym.llm_backends.limits import Limits
from instructgym.llm_backends.waiting_line import Later, WaitingLine
from instructgym.types import Completion, Request

__all__ = ["EndpointPool", "EndpointStats"]

_log = logging.getLogger(__name__)
_Leave = tuple[Endpoint, Sent]


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """An endpoint now: its limit and what is in flight; for how long no call goes to it; overloads since the start."""

    name: str
    limit: int
    in_flight: int
    paused_s: float
    overloads: int


class EndpointPool:
    """An `LLMBackend` over endpoints that serve the same, each with an adaptive limit (see `AdaptiveLimit`).

    A call waits, in order of arrival, until an endpoint has room; where several have, it goes to the one with most. One
    that fails rests (see `Endpoint`) as long as another does not. A call that reached nobody is sent to the next
    endpoint; `EndpointUnreachable` is raised when all have been tried. All other errors are raised as they are.
    `limits` gives each endpoint its ceiling; what holds for the run as a whole is not looked at here (see `Limited`).
    """

    def __init__(
        self,
        transports: Sequence[LLMBackend],
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not transports:
            raise ConfigError("a pool of no endpoints; expected at least one")
        limits = limits or Limits()
        self.name = "+".join(dict.fromkeys(transport.name for transport in transports))
        self._endpoints = [Endpoint(transport, _limit(limits), clock) for transport in transports]
        self._clock = clock
        self._line: WaitingLine[_Leave] = WaitingLine(self._unsent)
        self._turn = -1
        self._told_of: set[Endpoint] = set()

    @property
    def in_flight(self) -> int:
        """Calls that are out, over all endpoints."""
        return sum(endpoint.limit.in_flight for endpoint in self._endpoints)

    @property
    def waiting(self) -> int:
        """Calls that wait for room."""
        return len(self._line)

    def stats(self) -> list[EndpointStats]:
        """One row an endpoint, in the order they were given."""
        now = self._clock()
        return [
            EndpointStats(
                endpoint.name,
                endpoint.limit.limit,
                endpoint.limit.in_flight,
                max(endpoint.rest_s(now) if len(self._endpoints) > 1 else 0.0, endpoint.blocked_s(None, now)),
                endpoint.limit.events,
            )
            for endpoint in self._endpoints
        ]

    async def aclose(self) -> None:
        async with contextlib.AsyncExitStack() as stack:  # closes all of them, whatever one raises
            for endpoint in self._endpoints:
                stack.push_async_callback(endpoint.transport.aclose)

    async def complete(self, request: Request) -> Completion:
        refused: tuple[Endpoint, ...] = ()
        while True:
            endpoint, sent = await self._line.leave(partial(self._admit, request, refused))
            try:
                completion = await endpoint.transport.complete(request)
            except BackendError as error:
                endpoint.failed(sent, error, self._clock())
                self._tell_of_rest(endpoint, error)
                refused = (*refused, endpoint)
                if not isinstance(error, EndpointUnreachable) or len(refused) == len(self._endpoints):
                    raise
                _log.debug("trying the next endpoint: %s", error)
            except BaseException:
                endpoint.unsent()
                raise
            else:
                endpoint.answered(sent, self._clock())
                return completion
            finally:
                self._line.serve()

    def _tell_of_rest(self, endpoint: Endpoint, error: BackendError) -> None:
        if len(self._endpoints) > 1 and endpoint.rest_s(self._clock()) and endpoint not in self._told_of:
            self._told_of.add(endpoint)
            _log.warning("%s fails; its work goes to the others until it answers again: %s", endpoint.name, error)

    def _admit(self, request: Request, refused: tuple[Endpoint, ...]) -> _Leave | Later:
        """A slot at the endpoint with the most room, of those that have not refused and do not rest.

        Where all rest, none does: waiting for one would be no better than to ask.
        """
        now = self._clock()
        best: Endpoint | None = None
        room, delay_s = 0, math.inf
        endpoints = self._endpoints
        if len(endpoints) > 1:
            candidates = [endpoint for endpoint in self._in_turn() if endpoint not in refused]
            endpoints = [endpoint for endpoint in candidates if not endpoint.rest_s(now)]
            if endpoints:
                delay_s = min((rest for other in candidates if (rest := other.rest_s(now))), default=math.inf)
            else:
                endpoints = candidates
        for endpoint in endpoints:
            free = endpoint.limit.free
            if free <= room:
                continue
            blocked_s = endpoint.blocked_s(request, now)
            if blocked_s:
                delay_s = min(delay_s, blocked_s)
            else:
                best, room = endpoint, free
        if best is None:
            return Later(delay_s)
        return best, best.send(request, now)

    def _in_turn(self) -> list[Endpoint]:
        """The endpoints, each time another one first: that one gets the call where several have the same room."""
        self._turn = (self._turn + 1) % len(self._endpoints)
        return self._endpoints[self._turn :] + self._endpoints[: self._turn]

    def _unsent(self, leave: _Leave) -> None:
        leave[0].unsent()


def _limit(limits: Limits) -> AdaptiveLimit:
    if limits.concurrency is None:
        return AdaptiveLimit()
    floor = 1 if limits.adaptive else limits.concurrency
    return AdaptiveLimit(start=limits.concurrency, ceiling=limits.concurrency, floor=floor)
