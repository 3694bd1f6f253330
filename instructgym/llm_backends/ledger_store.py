"""A ledger's rows in SQLite: one writer thread, answers read back from the file and never kept in memory."""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from instructgym.errors import RunFolderError, UsageError
from instructgym.llm_backends.ledger_file import (
    Write,
    check_schema,
    connect,
    create_private,
    guard,
    insert,
    load_outcome,
    load_tallies,
    transaction,
    trouble,
)
from instructgym.llm_backends.ledger_rows import AttemptRow, CallRow, Failure, LedgerRow, Tally, TallyKey
from instructgym.llm_backends.ledger_selection import Selection, count_calls, read_rows
from instructgym.types import Completion

__all__ = ["SqliteStore"]


class _Queued(NamedTuple):
    write: Write
    done: asyncio.Future[None] | None


class SqliteStore:
    """The ledger file at `path`, made with mode 0600 if there is none.

    WAL; a commit survives the death of the process, and with `fsync` the loss of power. One thread commits whatever
    is queued as soon as it is free. A full disk or a broken file raises `RunFolderError` from then on.
    `read_only` opens an existing file for `get`, `rows` and `tallies`.
    """

    def __init__(self, path: Path, *, fsync: bool = False, read_only: bool = False) -> None:
        self.path = path
        self._pid = os.getpid()
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._broken: RunFolderError | None = None
        self._closed = False
        self._writer: threading.Thread | None = None
        if read_only and not path.is_file():
            raise RunFolderError(f"there is no ledger at {path}; expected a file that a run has written")
        if not read_only:
            create_private(path)
        self._reader = guard(path, "open", lambda: connect(path, read_only=read_only))
        self._tallies: dict[TallyKey, Tally] = {}
        try:
            guard(path, "open", lambda: check_schema(self._reader, path, create=not read_only))
            self._tallies = guard(path, "read", lambda: load_tallies(self._reader))
        except BaseException:
            self._reader.close()
            raise
        if not read_only:
            connection = guard(path, "open", lambda: connect(path))
            guard(path, "open", lambda: connection.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}"))
            self._writer = threading.Thread(target=self._write_all, args=(connection,), name="ledger", daemon=True)
            self._writer.start()
            atexit.register(self.close)

    def get(self, key: bytes) -> Completion | Failure | None:
        return guard(self.path, "read", lambda: load_outcome(self._reader, key))

    async def put(self, call: CallRow | None, attempts: Sequence[AttemptRow]) -> None:
        done = asyncio.get_running_loop().create_future()
        self._enqueue(_Queued(Write.of(call, attempts), done))
        await done

    def put_soon(self, attempt: AttemptRow) -> None:
        self._enqueue(_Queued(Write.of(None, (attempt,)), None))

    def tallies(self) -> Mapping[TallyKey, Tally]:
        return self._tallies

    def rows(self, selection: Selection | None = None) -> Iterator[LedgerRow]:
        return read_rows(self.path, selection or Selection())

    def count(self, selection: Selection) -> int:
        """The number of selected calls."""
        return guard(self.path, "read", lambda: count_calls(self._reader, selection))

    def close(self) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        if self._writer is not None:
            atexit.unregister(self.close)
            self._queue.put(None)
            self._writer.join()
        self._reader.close()

    def _enqueue(self, queued: _Queued) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                f"the ledger {self.path} was opened in process {self._pid} and cannot be used in process "
                f"{os.getpid()}; create the env inside the worker, and spawn workers instead of forking them"
            )
        if self._broken is not None:
            raise self._broken
        if self._closed or self._writer is None:
            raise UsageError(f"the ledger {self.path} is {'closed' if self._closed else 'open for reading only'}")
        self._queue.put(queued)

    # ---- the writer thread -------------------------------------------------------------------------------------

    def _write_all(self, connection: sqlite3.Connection) -> None:
        going_on = True
        while going_on:
            batch: list[_Queued] = []
            queued = self._queue.get()
            while True:
                if queued is None:
                    going_on = False
                else:
                    batch.append(queued)
                try:
                    queued = self._queue.get_nowait()
                except queue.Empty:
                    break
            if batch:
                _settle(batch, self._commit(connection, batch))
        connection.close()

    def _commit(self, connection: sqlite3.Connection, batch: Sequence[_Queued]) -> RunFolderError | None:
        if self._broken is not None:
            return self._broken
        try:
            with transaction(connection):
                added = insert(connection, [queued.write for queued in batch])
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._broken = trouble(self.path, "write", error)
            self._broken.__cause__ = error
            return self._broken
        for at, tally in added.items():
            self._tallies.setdefault(at, Tally()).add(tally)
        return None


def _settle(batch: Sequence[_Queued], error: RunFolderError | None) -> None:
    """Wake those who wait for the batch: each loop once."""
    waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for _, done in batch:
        if done is not None:
            waiting.setdefault(done.get_loop(), []).append(done)
    for loop, futures in waiting.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures, error)
        except RuntimeError:
            continue  # the loop has ended, and with it those who waited


def _resolve(futures: Sequence[asyncio.Future[None]], error: RunFolderError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
