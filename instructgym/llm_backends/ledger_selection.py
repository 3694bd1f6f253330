"""Which calls of a ledger file are meant, and reading just those."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgym.errors import RunFolderError
from instructgym.llm_backends.ledger_file import connect, guard, outcome_of
from instructgym.llm_backends.ledger_rows import LedgerRow, request_from_canonical
from instructgym.llm_backends.retry import OK

__all__ = ["Selection", "count_calls", "read_rows"]

_ROWS_A_READ = 500
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which calls are meant: those for which everything that is given holds. `key` is the start of a key, in hex.

    `stage` is the one that asked first.
    """

    key: str = ""
    role: str | None = None
    stage: str | None = None
    model: str | None = None
    prompt_version: str | None = None
    failed: bool = False

    @property
    def everything(self) -> bool:
        return self == Selection()

    def where(self) -> tuple[str, list[object]]:
        """An SQL condition over `calls`, and its values."""
        conditions, values = [], list[object]()
        if self.key and not set(self.key) <= _HEX:
            conditions.append("FALSE")
        elif self.key:
            # By the index of the keys; hex(key) or a scan in the order of commit would read every row.
            low, high = bytes.fromhex(self.key.ljust(32, "0")), bytes.fromhex(self.key.ljust(32, "f"))
            conditions.append("id IN (SELECT id FROM calls WHERE key BETWEEN ? AND ?)")
            values += [low, high]
        for column in ("role", "stage", "model"):
            value = getattr(self, column)
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)
        if self.prompt_version is not None:
            conditions.append("json_extract(request, '$[4]') = ?")
            values.append(self.prompt_version)
        if self.failed:
            conditions.append("status <> ?")
            values.append(OK)
        return " AND ".join(conditions) or "TRUE", values


def count_calls(connection: sqlite3.Connection, selection: Selection) -> int:
    """The number of selected calls."""
    condition, values = selection.where()
    (number,) = connection.execute(f"SELECT count(*) FROM calls WHERE {condition}", values).fetchone()
    return int(number)


def read_rows(path: Path, selection: Selection) -> Iterator[LedgerRow]:
    """The selected calls, in the order of commit.

    Read in pieces: one long read of a file that is being written would hold back its log for as long.
    """
    condition, values = selection.where()
    query = (
        "SELECT id, key, stage, request, status, outcome FROM calls"
        f" WHERE id > ? AND {condition} ORDER BY id LIMIT {_ROWS_A_READ}"
    )

    def read(after: int) -> list[tuple[Any, ...]]:
        return guard(path, "read", lambda: connection.execute(query, (after, *values)).fetchall())

    with closing(guard(path, "read", lambda: connect(path, read_only=True))) as connection:
        piece = read(0)
        while piece:
            for _, key, stage, request, status, outcome in piece:
                try:
                    asked = request_from_canonical(json.loads(request), stage)
                    row = LedgerRow(key.hex(), asked, outcome_of(status, outcome))
                except (KeyError, TypeError, ValueError) as error:
                    raise RunFolderError(
                        f"the ledger {path} holds a call that cannot be read, {key.hex()}: {error}; it was changed by "
                        "something else than InstructGym"
                    ) from error
                yield row
            piece = read(piece[-1][0])
