"""First come, first served: where calls wait for leave to send."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from instructgym.llm_backends.clock import waiting_for_leave

__all__ = ["Later", "WaitingLine"]

Leave = TypeVar("Leave")
_SHORTEST_DELAY_S = 1e-3  # so that a delay which rounding keeps from ending does not spin


class Later(NamedTuple):
    """Not yet: worth asking again in `delay_s` seconds, or (infinite) only when something has changed."""

    delay_s: float = math.inf


class WaitingLine(Generic[Leave]):
    """Each who comes asks for leave in turn: at once, at the time that he was told, and whenever `serve` is called.

    `take_back` gets the leave of one that was cancelled at the moment he got it. A call's clock stands still meanwhile.
    """

    def __init__(self, take_back: Callable[[Leave], None]) -> None:
        self._take_back = take_back
        self._waiting: deque[tuple[asyncio.Future[Leave], Callable[[], Leave | Later]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return sum(not turn.done() for turn, _ in self._waiting)

    async def leave(self, ask: Callable[[], Leave | Later]) -> Leave:
        """What `ask` answers once it is this one's turn and not `Later`."""
        if not self._waiting:
            answer = ask()
            if not isinstance(answer, Later):
                return answer
        turn: asyncio.Future[Leave] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, ask))
        if len(self._waiting) == 1:
            self.serve()
        with waiting_for_leave():
            try:
                return await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._take_back(turn.result())
                self.serve()  # he may have been the one that the others waited for
                raise

    def serve(self) -> None:
        """Let through, in order, who may go now. To be called whenever something has changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            turn, ask = self._waiting[0]
            if not turn.done():
                answer = ask()
                if isinstance(answer, Later):
                    if answer.delay_s < math.inf:
                        self._timer = turn.get_loop().call_later(max(answer.delay_s, _SHORTEST_DELAY_S), self.serve)
                    return
                turn.set_result(answer)
            self._waiting.popleft()
