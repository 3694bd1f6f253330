"""The SQLite file of a ledger: its schema, how it is opened, and what is written into it in one transaction."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, TypeVar

from instructgym.errors import RunFolderError, UsageError
from instructgym.llm_backends.ledger_rows import (
    AttemptRow,
    CallRow,
    Failure,
    Tally,
    TallyKey,
    completion_from_json,
    completion_to_json,
)
from instructgym.llm_backends.retry import OK
from instructgym.types import Completion

__all__ = [
    "LEDGER_NAME",
    "SCHEMA_VERSION",
    "Write",
    "add_tallies",
    "check_schema",
    "connect",
    "create_private",
    "guard",
    "insert",
    "ledger_path",
    "load_outcome",
    "load_tallies",
    "outcome_of",
    "transaction",
    "trouble",
]

T = TypeVar("T")

LEDGER_NAME = "ledger.sqlite"
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
_WAL_LIMIT_BYTES = 16 * 2**20


class Write(NamedTuple):
    """What goes into the file in one piece: a call with its outcome as text, attempts, or both. See `Write.of`."""

    call: CallRow | None
    outcome: str
    attempts: Sequence[AttemptRow]

    @classmethod
    def of(cls, call: CallRow | None, attempts: Sequence[AttemptRow] = ()) -> Write:
        """Encodes the outcome here, where an answer that cannot be written fails alone and not with its batch."""
        if call is None:
            return cls(None, "", attempts)
        outcome = call.outcome
        text = completion_to_json(outcome) if isinstance(outcome, Completion) else outcome.to_json()
        return cls(call, text, attempts)


def ledger_path(path: Path) -> Path:
    """The ledger of a run's folder, or the ledger file itself."""
    return path / LEDGER_NAME if path.is_dir() else path


def create_private(path: Path) -> None:
    """An empty file that its owner alone may read; SQLite gives its companions the same mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise RunFolderError(f"the ledger {path} cannot be opened: {error.strerror}") from error


def connect(path: Path, *, read_only: bool = False, alone: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode. `alone` fails if any other process has the file open, and keeps others out."""
    if not read_only:
        connection = _connect(str(path), wait_s=0.0 if alone else 10.0)
        try:
            if alone:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            # A log that grew because somebody read for long is cut to this afterwards.
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        except BaseException:
            connection.close()
            raise
        return connection
    uri = path.absolute().as_uri()
    # Not mode=ro: whoever closes the file last removes its companions, and such a connection could not.
    connection = _connect(f"{uri}?mode=rw")
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" in str(error):
            raise
        # A file in WAL mode in a folder that cannot be written, such as a published recording.
        connection = _connect(f"{uri}?immutable=1")
    return connection


def _connect(name: str, *, wait_s: float = 10.0) -> sqlite3.Connection:
    return sqlite3.connect(
        name, uri=name.startswith("file:"), isolation_level=None, check_same_thread=False, timeout=wait_s
    )


def check_schema(connection: sqlite3.Connection, path: Path, *, create: bool) -> None:
    """Raise `RunFolderError` unless this is a ledger that this version reads; make one of an empty file."""
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


def trouble(path: Path, verb: str, error: Exception) -> RunFolderError:
    """`error` in words for the user of the ledger at `path`."""
    return RunFolderError(f"the ledger {path} could not {verb}: {error}; nothing that was committed is lost")


def guard(path: Path, verb: str, action: Callable[[], T]) -> T:
    """``action()``, whose SQLite errors become ours."""
    try:
        return action()
    except sqlite3.ProgrammingError as error:
        raise UsageError(f"the ledger {path} is closed") from error
    except sqlite3.Error as error:
        raise trouble(path, verb, error) from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits at the end of the ``with`` block, or rolls everything back."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # not after a full disk: SQLite has rolled back by itself
            connection.execute("ROLLBACK")
        raise


def insert(connection: sqlite3.Connection, batch: Iterable[Write]) -> Mapping[TallyKey, Tally]:
    """Insert the batch's rows and add to the counts; returns what was added to them."""
    added: dict[TallyKey, Tally] = {}
    calls: list[tuple[object, ...]] = []
    attempts: list[tuple[object, ...]] = []
    for call, outcome, tried in batch:
        if call is not None:
            at = (call.role, call.stage, call.model)
            if call.replaces:
                _take_back_failure(connection, call.key, added)
            added.setdefault(at, Tally()).add_call(call)
            status = call.outcome.error if isinstance(call.outcome, Failure) else OK
            calls.append((call.key, *at, call.request, status, outcome))
        for attempt in tried:
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
    add_tallies(connection, added)
    return added


def add_tallies(connection: sqlite3.Connection, added: Mapping[TallyKey, Tally]) -> None:
    """Add to the counts that stand in the file."""
    for at, tally in added.items():
        connection.execute(_ADD_TALLY, (*at, *(getattr(tally, name) for name in _COUNTS)))


def load_tallies(connection: sqlite3.Connection) -> dict[TallyKey, Tally]:
    """The counts as they stand in the file: kept at each commit, so that opening reads no calls."""
    rows = connection.execute(f"SELECT role, stage, model, {', '.join(_COUNTS)} FROM tallies")
    return {(role, stage, model): Tally(*counts) for role, stage, model, *counts in rows}


def load_outcome(connection: sqlite3.Connection, key: bytes) -> Completion | Failure | None:
    """The outcome of a call, or None."""
    row = connection.execute(_GET, (key,)).fetchone()
    return None if row is None else outcome_of(*row)


def outcome_of(status: str, text: str) -> Completion | Failure:
    """An outcome from its two columns."""
    return completion_from_json(text) if status == OK else Failure.from_json(status, text)


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
