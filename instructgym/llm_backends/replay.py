"""Answers from a recording alone: a published run is repeated without a key, or fails clearly."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

from instructgym.errors import ReplayMiss
from instructgym.llm_backends.ledger_rows import Failure, request_key
from instructgym.llm_backends.ledger_store import SqliteStore
from instructgym.llm_backends.ledger_transfer import recording
from instructgym.types import Completion, Request

__all__ = ["ReplayBackend"]


class ReplayBackend:
    """Answers from the recording at `path`: a run's folder, a ledger file, or an exported one (``.jsonl``, ``.gz``).

    Recorded failures are raised again, and a miss is `ReplayMiss`. An exported file is unpacked into a temporary
    ledger at the first request. Raises `RunFolderError` if nothing is there, or if it is no recording.
    """

    name = "replay"

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._held = ExitStack()
        self._opening: asyncio.Future[SqliteStore] | None = None

    async def complete(self, request: Request) -> Completion:
        if self._opening is None:
            self._opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        store = await asyncio.shield(self._opening)  # all wait for the one opening, and none can cancel it
        known = store.get(request_key(request)[0])
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
        if self._opening is not None:
            await asyncio.wait([self._opening])
            self._opening = None
            self._held.close()

    def _open(self) -> SqliteStore:
        with ExitStack() as held:
            store = SqliteStore(held.enter_context(recording(self._path)), read_only=True)
            held.callback(store.close)
            self._held = held.pop_all()
            return store
