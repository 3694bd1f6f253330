"""Work on a ledger that no run is using: take in the calls of others, drop calls, open a recording of either form."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from instructgym.errors import RunFolderError, UsageError
from instructgym.llm_backends.ledger_file import (
    Write,
    add_tallies,
    check_schema,
    connect,
    create_private,
    guard,
    insert,
    ledger_path,
    load_outcome,
    transaction,
    trouble,
)
from instructgym.llm_backends.ledger_lines import call_of, read_lines
from instructgym.llm_backends.ledger_rows import CallRow, Failure, Tally, TallyKey
from instructgym.llm_backends.ledger_selection import Selection, read_rows
from instructgym.llm_backends.retry import OK

__all__ = ["Imported", "Pruned", "import_calls", "prune", "recording"]

_BATCH = 512
_SQLITE_MAGIC = b"SQLite format 3\0"


@dataclass(slots=True)
class Imported:
    """What became of a source's calls.

    `new` were added, `replaced` took the place of a failure, `known` stood there already. `conflicting` are the keys
    for which the ledger holds another answer, which it kept.
    """

    new: int = 0
    replaced: int = 0
    known: int = 0
    conflicting: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was dropped (or would be): answers and failures by (role, stage, model); the file's size around it."""

    dropped: Mapping[TallyKey, Tally]
    bytes_before: int
    bytes_after: int


def import_calls(path: Path, sources: Sequence[Path]) -> list[Imported]:
    """Add to the ledger at `path` the calls of `sources` that it lacks; all of them, or on any error none.

    A source is an exported file (see `ledger_lines`), a ledger file or a run's folder. An answer is never overwritten;
    a failure gives way to an answer. Each key is computed anew from its request. What comes in counts as answers and
    not as attempts, so it is charged to no budget. A ledger that is not there is made.

    Raises `RunFolderError` for a source that cannot be read, and if another process has the ledger open.
    """
    for source in sources:
        _check_source(source, path)
    there = path.exists()
    create_private(path)
    try:
        with _alone(path) as connection:
            guard(path, "open", lambda: check_schema(connection, path, create=True))
            return guard(path, "write", lambda: _import_all(connection, sources))
    except BaseException:
        if not there:
            path.unlink(missing_ok=True)
        raise


def prune(path: Path, selection: Selection, *, dry_run: bool = False) -> Pruned:
    """Drop the selected calls from the ledger at `path` and shrink the file.

    What they cost stays counted: attempts and tokens are not touched, so a budget does not grow. A call that is asked
    again is paid again. `dry_run` only counts.

    Raises `RunFolderError` if there is no ledger, and (unless `dry_run`) if another process has it open.
    """
    if selection.everything:
        raise UsageError("prune needs a selection; an empty one would drop every call")
    if not path.is_file():
        raise RunFolderError(f"there is no ledger at {path}; expected a file that a run has written")
    before = path.stat().st_size
    if dry_run:
        with closing(guard(path, "open", lambda: connect(path, read_only=True))) as connection:
            guard(path, "open", lambda: check_schema(connection, path, create=False))
            return Pruned(guard(path, "read", lambda: _count(connection, selection)), before, before)
    with _alone(path) as connection:
        guard(path, "open", lambda: check_schema(connection, path, create=False))
        dropped = guard(path, "write", lambda: _drop(connection, selection))
        if dropped:
            guard(path, "shrink", lambda: connection.execute("VACUUM"))
    return Pruned(dropped, before, path.stat().st_size)


@contextmanager
def recording(path: Path) -> Iterator[Path]:
    """The ledger file of a recording for the time of a ``with`` block; an exported file is unpacked to a temporary one.

    Raises `RunFolderError` if nothing is there, or if it is no recording.
    """
    file = ledger_path(path)
    if not file.is_file():
        raise RunFolderError(
            f"there is no recording at {path}; expected a run's folder, its ledger.sqlite, or what "
            "`instructgym ledger export` wrote"
        )
    if _is_sqlite(file):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="instructgym-recording-") as folder:
        unpacked = Path(folder) / file.name
        import_calls(unpacked, [file])
        yield unpacked


@contextmanager
def _alone(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a file that nobody else has open."""
    try:
        connection = connect(path, alone=True)
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise RunFolderError(
                f"the ledger {path} is in use by another process; wait until it ends, or stop it"
            ) from error
        raise trouble(path, "open", error) from error
    with closing(connection):
        yield connection


def _check_source(source: Path, into: Path) -> None:
    file = ledger_path(source)
    if not file.is_file():
        raise RunFolderError(
            f"there is nothing to import at {file}; expected an exported file, a ledger, or a run's folder"
        )
    if into.exists() and os.path.samefile(file, into):
        raise RunFolderError(f"{file} is the ledger to import into; name another source")


def _is_sqlite(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC


def _import_all(connection: sqlite3.Connection, sources: Sequence[Path]) -> list[Imported]:
    with transaction(connection):
        return [_import_one(connection, _calls(ledger_path(source))) for source in sources]


def _calls(source: Path) -> Iterator[CallRow]:
    if not _is_sqlite(source):
        yield from read_lines(source)
        return
    with closing(guard(source, "open", lambda: connect(source, read_only=True))) as connection:
        guard(source, "open", lambda: check_schema(connection, source, create=False))
    for row in read_rows(source, Selection()):
        yield call_of(row, f"{source}, call {row.key}")


def _import_one(connection: sqlite3.Connection, calls: Iterator[CallRow]) -> Imported:
    done = Imported()
    batch: dict[bytes, Write] = {}
    for call in calls:
        if len(batch) == _BATCH or call.key in batch:
            insert(connection, batch.values())
            batch.clear()
        held = load_outcome(connection, call.key)
        if held is None:
            done.new += 1
            batch[call.key] = Write.of(call)
        elif isinstance(held, Failure) and not isinstance(call.outcome, Failure):
            done.replaced += 1
            batch[call.key] = Write.of(call._replace(replaces=True))
        elif isinstance(call.outcome, Failure) or held == call.outcome:
            done.known += 1
        else:
            done.conflicting.append(call.key.hex())
    insert(connection, batch.values())
    return done


def _count(connection: sqlite3.Connection, selection: Selection) -> dict[TallyKey, Tally]:
    condition, values = selection.where()
    rows = connection.execute(
        "SELECT role, stage, model, sum(status = ?), sum(status <> ?) FROM calls"
        f" WHERE {condition} GROUP BY role, stage, model",
        (OK, OK, *values),
    )
    return {(role, stage, model): Tally(calls=answers, failed=failed) for role, stage, model, answers, failed in rows}


def _drop(connection: sqlite3.Connection, selection: Selection) -> dict[TallyKey, Tally]:
    condition, values = selection.where()
    with transaction(connection):
        dropped = _count(connection, selection)
        connection.execute(f"DELETE FROM calls WHERE {condition}", values)
        add_tallies(connection, {at: Tally(calls=-tally.calls, failed=-tally.failed) for at, tally in dropped.items()})
    return dropped
