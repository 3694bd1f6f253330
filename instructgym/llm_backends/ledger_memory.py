"""A ledger's rows in memory, for when no run folder is wanted."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

from instructgym.llm_backends.ledger_rows import (
    AttemptRow,
    CallRow,
    Failure,
    LedgerRow,
    Tally,
    TallyKey,
    request_from_canonical,
)
from instructgym.types import Completion

__all__ = ["MemoryStore"]


class MemoryStore:
    """Keeps the `max_rows` calls that were used last; an older one is forgotten, and paid again if asked again."""

    path = None
    instant = True

    def __init__(self, max_rows: int = 200_000) -> None:
        self._max_rows = max_rows
        self._calls: OrderedDict[bytes, CallRow] = OrderedDict()
        self._tallies: dict[TallyKey, Tally] = {}

    def get(self, key: bytes) -> Completion | Failure | None:
        call = self._calls.get(key)
        if call is None:
            return None
        self._calls.move_to_end(key)
        return call.outcome

    async def put(self, call: CallRow | None, attempts: Sequence[AttemptRow]) -> None:
        for attempt in attempts:
            self.put_soon(attempt)
        if call is None:
            return
        replaced = self._calls.pop(call.key, None)
        if replaced is not None:
            self._tally(replaced).failed -= isinstance(replaced.outcome, Failure)
        self._calls[call.key] = call
        self._tally(call).add_call(call)
        if len(self._calls) > self._max_rows:
            self._calls.popitem(last=False)

    def put_soon(self, attempt: AttemptRow) -> None:
        self._tally(attempt).add_attempt(attempt)

    def tallies(self) -> Mapping[TallyKey, Tally]:
        return self._tallies

    def rows(self) -> Iterator[LedgerRow]:
        for call in list(self._calls.values()):
            yield LedgerRow(call.key.hex(), request_from_canonical(json.loads(call.request), call.stage), call.outcome)

    def close(self) -> None:
        """Nothing is open; what was answered stays."""

    def _tally(self, row: AttemptRow | CallRow) -> Tally:
        return self._tallies.setdefault((row.role, row.stage, row.model), Tally())
