"""Answers from a recording alone: a published run is repeated without a key, or fails clearly."""

from __future__ import annotations

from pathlib import Path

from instructgym.errors import ReplayMiss
from instructgym.llm_backends.ledger_rows import Failure, request_key
from instructgym.llm_backends.ledger_store import SqliteStore
from instructgym.types import Completion, Request

__all__ = ["ReplayBackend"]


class ReplayBackend:
    """Answers from the ledger file at `path`; recorded failures are raised again, and a miss is `ReplayMiss`."""

    name = "replay"

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._store: SqliteStore | None = None

    async def complete(self, request: Request) -> Completion:
        if self._store is None:
            self._store = SqliteStore(self._path, read_only=True)
        known = self._store.get(request_key(request)[0])
        if known is None:
            raise ReplayMiss(
                f"the recording {self._path} holds no answer to this request of role '{request.role}' to model "
                f"'{request.model}' (prompt {request.prompt_version}, sample {request.sample}); "
                "repeat the run with the config, seeds and version that made the recording"
            )
        if isinstance(known, Failure):
            raise known.to_error()
        return known

    async def aclose(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
