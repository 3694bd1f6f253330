"""A ledger's rows in SQLite: one writer thread, answers read back from the file and never kept in memory."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, TypeVar

from instructgym.errors import RunFolderError, UsageError
from instructgym.llm_backends.ledger_rows import (
    AttemptRow,
    CallRow,
    Failure,
    LedgerRow,
    Tally,
    TallyKey,
    completion_from_json,
    completion_to_json,
)
from instructgym.llm_backends.retry import OK
from instructgym.types import Completion

__all__ = ["SCHEMA_VERSION", "SqliteStore"]

T = TypeVar("T")

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x49474C31  # "IGL1"
_COUNTS = tuple(field.name for field in fields(Tally))
_SCHEMA = f"""
CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    role TEXT NOT NULL,
    stage TEXT NOT NULL,
    model TEXT NOT NULL,
    request TEXT NOT NULL,
    status TEXT NOT NULL,
    outcome TEXT NOT NULL
);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    role TEXT NOT NULL,
    stage TEXT NOT NULL,
    model TEXT NOT NULL,
    status TEXT NOT NULL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    charged_prompt_tokens INTEGER NOT NULL,
    charged_completion_tokens INTEGER NOT NULL
);
CREATE TABLE tallies (
    role TEXT NOT NULL,
    stage TEXT NOT NULL,
    model TEXT NOT NULL,
    {", ".join(f"{name} INTEGER NOT NULL" for name in _COUNTS)},
    PRIMARY KEY (role, stage, model)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_GET = "SELECT status, outcome FROM calls WHERE key = ?"
_INSERT_CALL = "INSERT INTO calls (key, role, stage, model, request, status, outcome) VALUES "
_ON_KNOWN_CALL = (
    " ON CONFLICT (key) DO UPDATE SET stage = excluded.stage, model = excluded.model, request = excluded.request,"
    " status = excluded.status, outcome = excluded.outcome"
)
_INSERT_ATTEMPT = (
    "INSERT INTO attempts (key, role, stage, model, status, prompt_tokens, completion_tokens,"
    " charged_prompt_tokens, charged_completion_tokens) VALUES "
)
_ADD_TALLY = (
    f"INSERT INTO tallies (role, stage, model, {', '.join(_COUNTS)}) VALUES ({', '.join('?' * (3 + len(_COUNTS)))})"
    " ON CONFLICT (role, stage, model) DO UPDATE SET "
) + ", ".join(f"{name} = {name} + excluded.{name}" for name in _COUNTS)
_ROWS_A_STATEMENT = (64, 8, 1)
"""Each statement lets go of the interpreter lock once, so a batch goes in as few statements, of few different texts."""


class _Write(NamedTuple):
    call: CallRow | None
    outcome: str
    attempts: Sequence[AttemptRow]
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
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._broken: RunFolderError | None = None
        self._closed = False
        self._tallies: dict[TallyKey, Tally] = {}
        self._writer: threading.Thread | None = None
        if read_only and not path.is_file():
            raise RunFolderError(f"there is no ledger at {path}; expected a file that a run has written")
        if not read_only:
            _create_private(path)
        self._reader = self._guard("open", lambda: _connect(path, read_only=read_only))
        self._guard("open", lambda: _check_schema(self._reader, path, create=not read_only))
        self._guard("read", self._load_tallies)
        if not read_only:
            connection = self._guard("open", lambda: _connect(path, read_only=False))
            self._guard("open", lambda: connection.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}"))
            self._writer = threading.Thread(target=self._write_all, args=(connection,), name="ledger", daemon=True)
            self._writer.start()
            atexit.register(self.close)

    def get(self, key: bytes) -> Completion | Failure | None:
        row = self._guard("read", lambda: self._reader.execute(_GET, (key,)).fetchone())
        return None if row is None else _outcome(*row)

    async def put(self, call: CallRow | None, attempts: Sequence[AttemptRow]) -> None:
        done = asyncio.get_running_loop().create_future()
        self._enqueue(_Write(call, "" if call is None else _outcome_json(call.outcome), attempts, done))
        await done

    def put_soon(self, attempt: AttemptRow) -> None:
        self._enqueue(_Write(None, "", (attempt,), None))

    def tallies(self) -> Mapping[TallyKey, Tally]:
        return self._tallies

    def rows(self) -> Iterator[LedgerRow]:
        connection = self._guard("read", lambda: _connect(self.path, read_only=True))
        try:
            cursor = connection.execute(
                "SELECT key, role, stage, model, request, status, outcome FROM calls ORDER BY id"
            )
            while row := self._guard("read", cursor.fetchone):
                key, role, stage, model, request, status, outcome = row
                yield LedgerRow(key.hex(), role, stage, model, json.loads(request), _outcome(status, outcome))
        finally:
            connection.close()

    def close(self) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        if self._writer is not None:
            atexit.unregister(self.close)
            self._queue.put(None)
            self._writer.join()
        self._reader.close()

    def _enqueue(self, write: _Write) -> None:
        if os.getpid() != self._pid:
            raise UsageError(
                f"the ledger {self.path} was opened in process {self._pid} and cannot be used in process "
                f"{os.getpid()}; create the env inside the worker, and spawn workers instead of forking them"
            )
        if self._broken is not None:
            raise self._broken
        if self._closed or self._writer is None:
            raise UsageError(f"the ledger {self.path} is {'closed' if self._closed else 'open for reading only'}")
        self._queue.put(write)

    def _guard(self, verb: str, action: Callable[[], T]) -> T:
        try:
            return action()
        except sqlite3.ProgrammingError as error:
            raise UsageError(f"the ledger {self.path} is closed") from error
        except sqlite3.Error as error:
            raise _trouble(self.path, verb, error) from error

    def _load_tallies(self) -> None:
        for role, stage, model, *counts in self._reader.execute(
            f"SELECT role, stage, model, {', '.join(_COUNTS)} FROM tallies"
        ):
            self._tallies[(role, stage, model)] = Tally(*counts)

    # ---- the writer thread -------------------------------------------------------------------------------------

    def _write_all(self, connection: sqlite3.Connection) -> None:
        going_on = True
        while going_on:
            batch: list[_Write] = []
            write = self._queue.get()
            while True:
                if write is None:
                    going_on = False
                else:
                    batch.append(write)
                try:
                    write = self._queue.get_nowait()
                except queue.Empty:
                    break
            if batch:
                self._settle(batch, self._commit(connection, batch))
        connection.close()

    def _commit(self, connection: sqlite3.Connection, batch: Sequence[_Write]) -> RunFolderError | None:
        if self._broken is not None:
            return self._broken
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                added = _insert(connection, batch)
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._broken = _trouble(self.path, "write", error)
            self._broken.__cause__ = error
            return self._broken
        for at, tally in added.items():
            self._tallies.setdefault(at, Tally()).add(tally)
        return None

    def _settle(self, batch: Sequence[_Write], error: RunFolderError | None) -> None:
        waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for write in batch:
            if write.done is not None:
                waiting.setdefault(write.done.get_loop(), []).append(write.done)
        for loop, futures in waiting.items():
            try:
                loop.call_soon_threadsafe(_resolve, futures, error)  # one wake-up a batch
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


def _insert(connection: sqlite3.Connection, batch: Sequence[_Write]) -> Mapping[TallyKey, Tally]:
    """Insert the batch's rows and add to the counts; returns what was added."""
    added: dict[TallyKey, Tally] = {}
    calls: list[tuple[object, ...]] = []
    attempts: list[tuple[object, ...]] = []
    for write in batch:
        call = write.call
        if call is not None:
            at = (call.role, call.stage, call.model)
            if call.replaces:
                _take_back_failure(connection, call.key, added)
            added.setdefault(at, Tally()).add_call(call)
            status = call.outcome.error if isinstance(call.outcome, Failure) else OK
            calls.append((call.key, *at, call.request, status, write.outcome))
        for attempt in write.attempts:
            at = (attempt.role, attempt.stage, attempt.model)
            added.setdefault(at, Tally()).add_attempt(attempt)
            usage = (
                (None, None)
                if attempt.usage is None
                else (attempt.usage.prompt_tokens, attempt.usage.completion_tokens)
            )
            charged = (attempt.charged.prompt_tokens, attempt.charged.completion_tokens)
            attempts.append((attempt.key, *at, attempt.status, *usage, *charged))
    _insert_rows(connection, _INSERT_CALL, calls, _ON_KNOWN_CALL)
    _insert_rows(connection, _INSERT_ATTEMPT, attempts, "")
    for at, tally in added.items():
        connection.execute(_ADD_TALLY, (*at, *(getattr(tally, name) for name in _COUNTS)))
    return added


def _insert_rows(connection: sqlite3.Connection, head: str, rows: list[tuple[object, ...]], tail: str) -> None:
    start = 0
    for size in _ROWS_A_STATEMENT:
        while len(rows) - start >= size:
            chunk = rows[start : start + size]
            row_marks = f"({', '.join('?' * len(chunk[0]))})"
            values = [value for row in chunk for value in row]
            connection.execute(head + ", ".join([row_marks] * size) + tail, values)
            start += size


def _take_back_failure(connection: sqlite3.Connection, key: bytes, added: dict[TallyKey, Tally]) -> None:
    row = connection.execute("SELECT role, stage, model FROM calls WHERE key = ? AND status <> ?", (key, OK)).fetchone()
    if row is not None:
        added.setdefault((row[0], row[1], row[2]), Tally()).failed -= 1


def _outcome_json(outcome: Completion | Failure) -> str:
    return completion_to_json(outcome) if isinstance(outcome, Completion) else outcome.to_json()


def _outcome(status: str, text: str) -> Completion | Failure:
    return completion_from_json(text) if status == OK else Failure.from_json(status, text)


def _create_private(path: Path) -> None:
    """An empty file that its owner alone may read; SQLite gives its companions the same mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise RunFolderError(f"the ledger {path} cannot be opened: {error.strerror}") from error


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        connection.execute("PRAGMA journal_mode = WAL")
        return connection
    uri = path.absolute().as_uri()
    connection = sqlite3.connect(
        f"{uri}?mode=ro", uri=True, isolation_level=None, check_same_thread=False, timeout=10.0
    )
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        # A file in WAL mode in a folder that cannot be written, such as a published recording.
        connection.close()
        connection = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None, check_same_thread=False)
    return connection


def _check_schema(connection: sqlite3.Connection, path: Path, *, create: bool) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if create and tables == 0:
        connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
    elif application != _APPLICATION_ID:
        raise RunFolderError(f"the file {path} is not a ledger of InstructGym; name another folder or file")
    elif version != SCHEMA_VERSION:
        raise RunFolderError(
            f"the ledger {path} has schema {version}; this version of InstructGym reads schema {SCHEMA_VERSION}: "
            "use the version that wrote it"
        )


def _trouble(path: Path, verb: str, error: Exception) -> RunFolderError:
    return RunFolderError(f"the ledger {path} could not {verb}: {error}; nothing that was committed is lost")
