"""From a seeds file's bytes to numbered records: JSON, JSONL, plain lines, CSV and Parquet.

A record that cannot be read is kept, with its line and what is wrong with it. What cannot be read in parts (a broken
JSON array, an unclosed quote in a CSV) is a `SeedError` at once, since nothing after the break can be trusted.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from instructgym.errors import SeedError

__all__ = ["RawRecord", "csv_header", "csv_records", "json_records", "load_bytes", "parquet_records", "text_records"]

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_SPACE = re.compile(r"[ \t\n\r]*")
_DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as the file holds it. `line` counts from 1 (the row, in Parquet); `problem` set = unusable."""

    line: int
    raw: str
    value: object = None
    problem: str | None = None


def load_bytes(path: Path) -> bytes:
    """The file without its byte order mark. SeedError if it is missing, a folder, unreadable, empty or UTF-16."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SeedError(f"{path}: no such seeds file.{_nearest_file(path)}") from None
    except IsADirectoryError:
        raise SeedError(f"{path}: is a folder; expected one seeds file. Give the path of a file in it.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SeedError(f"{path}: cannot be read: {reason}. Check the path and its permissions.") from error
    if data.startswith(_UTF16):
        raise SeedError(f"{path}: looks like UTF-16; expected UTF-8. Save it as UTF-8 and try again.")
    data = data.removeprefix(_BOM)
    if not data.strip():
        raise SeedError(f"{path}: is empty; expected at least one instruction.")
    return data


def _nearest_file(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        names = []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return f" Did you mean {path.parent / near[0]}?" if near else " Give the path of a file, or 'default'."


def decode_whole(name: str, data: bytes) -> str:
    """All of it as text, for containers that cannot be read line by line. SeedError names the line of a bad byte."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SeedError(
            f"{name}: line {line}: {_bad_byte(error)}. Save the file as UTF-8; it is read as a whole, so --skip-bad "
            "cannot go on past this."
        ) from None
    if (at := text.find("\0")) >= 0:
        raise SeedError(f"{name}: line {text.count(chr(10), 0, at) + 1}: holds a NUL byte; expected text. Remove it.")
    return text


def _bad_byte(error: UnicodeDecodeError) -> str:
    return f"not valid UTF-8 (byte 0x{error.object[error.start]:02x})"


def text_records(data: bytes) -> list[RawRecord]:
    """One record a non-blank line; LF and CRLF end a line, nothing else does. Broken bytes stay that line's problem."""
    records: list[RawRecord] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            records.append(RawRecord(number, line.decode("utf-8", "replace"), problem=_bad_byte(error)))
            continue
        if "\0" in text:
            records.append(RawRecord(number, text, problem="holds a NUL byte"))
        elif text.strip():
            records.append(RawRecord(number, text, text))
    return records


def json_records(name: str, data: bytes) -> tuple[str, list[RawRecord]]:
    """``("JSON", records)`` of an array or one object over several lines, else ``("JSONL", records)``."""
    start = data.lstrip()[:1]
    if start == b"[":
        return "JSON", _array_items(name, decode_whole(name, data))
    if start == b"{" and (whole := _single_object(data)) is not None:
        return "JSON", [whole]
    return "JSONL", [record if record.problem else _parsed(record) for record in text_records(data)]


def _parsed(record: RawRecord) -> RawRecord:
    try:
        return RawRecord(record.line, record.raw, json.loads(record.raw))
    except (ValueError, RecursionError) as error:
        return RawRecord(record.line, record.raw, problem=f"not valid JSON ({_json_fault(error)})")


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _single_object(data: bytes) -> RawRecord | None:
    first = data.lstrip().split(b"\n", 1)[0]
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        try:
            text = data.decode("utf-8")
            return RawRecord(1, text, json.loads(text))
        except (ValueError, RecursionError):
            return None  # read as JSONL then, which names the broken line
    return None


def _array_items(name: str, text: str) -> list[RawRecord]:
    # Item by item, so that each record knows its line and its own source text.
    decoder = json.JSONDecoder()
    records: list[RawRecord] = []
    line, counted = 1, 0

    def broken(at: int, what: str) -> SeedError:
        row, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        hint = "" if records else " If this is plain text, say so: --set seeds.format=text."
        return SeedError(
            f"{name}: line {row}: not valid JSON ({what}, column {column}). A JSON array is read as a whole, so "
            f"--skip-bad cannot go on past this: fix it, or save one record a line (JSONL).{hint}"
        )

    at = _skip_space(text, text.index("[") + 1)
    while not text.startswith("]", at):
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise broken(error.pos, error.msg) from None
        except (ValueError, RecursionError) as error:
            raise broken(at, _json_fault(error)) from None
        line += text.count("\n", counted, at)
        counted = at
        records.append(RawRecord(line, text[at:end], value))
        at = _skip_space(text, end)
        if text.startswith(",", at):
            at = _skip_space(text, at + 1)
            if text.startswith("]", at):
                raise broken(at, "a comma before the closing bracket")
        elif not text.startswith("]", at):
            raise broken(at, "expected ',' or ']'")
    if text[at + 1 :].strip():
        raise broken(_skip_space(text, at + 1), "something follows the array")
    return records


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def csv_header(text: str, field: str | None = None) -> tuple[str, list[str]]:
    """Delimiter and column names of the first line: the delimiter that shows `field`, else the one with most cells."""
    rows: list[tuple[str, list[str]]] = []
    for delimiter in _DELIMITERS:
        try:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:
            continue
        rows.append((delimiter, [cell.strip() for cell in header]))
    return max(rows, key=lambda row: (field in row[1], len(row[1])), default=(",", []))


def csv_records(name: str, data: bytes, field: str) -> list[RawRecord]:
    """One mapping a row, keyed by the header. SeedError if `field` is no column or the quoting is broken."""
    text = decode_whole(name, data)
    delimiter, header = csv_header(text, field)
    _need_column(name, header, field)
    doubled = sorted({column for column in header if header.count(column) > 1})
    if doubled:
        raise SeedError(
            f"{name}: line 1: the header names {doubled[0]!r} twice; expected distinct columns. Rename one."
        )
    records: list[RawRecord] = []
    # The module's limit of 131,072 characters a cell would end the reading; a long cell is that record's problem.
    old_limit = csv.field_size_limit(max(len(text), 131_072))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first = 1
    try:
        for cells in reader:
            line, first = first, reader.line_num + 1
            if line == 1 or not cells:
                continue
            raw = delimiter.join(cells)
            if len(cells) == len(header):
                records.append(RawRecord(line, raw, dict(zip(header, cells, strict=True))))
            else:
                problem = f"has {len(cells)} cell{'s' if len(cells) > 1 else ''}; the header has {len(header)}"
                records.append(RawRecord(line, raw, problem=problem))
    except csv.Error as error:
        raise SeedError(
            f"{name}: line {first}: broken CSV ({error}). Check the quotes from there on; --skip-bad cannot go on "
            "past this."
        ) from None
    finally:
        csv.field_size_limit(old_limit)
    return records


def parquet_records(name: str, data: bytes, field: str, others: tuple[str, ...]) -> list[RawRecord]:
    """One mapping a row of the columns `field` and those of `others` that are there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(pa.BufferReader(data))
        columns: list[str] = list(parquet.schema_arrow.names)
        _need_column(name, columns, field)
        rows = parquet.read(columns=[column for column in columns if column == field or column in others]).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SeedError(f"{name}: cannot be read as Parquet: {error}. Write the file again.") from error
    return [RawRecord(number, str(row.get(field)), row) for number, row in enumerate(rows, start=1)]


def _need_column(name: str, columns: list[str], field: str) -> None:
    if field not in columns:
        found = ", ".join(repr(column) for column in columns) or "none"
        raise SeedError(
            f"{name}: no column {field!r}; the columns are {found}. Name the one with the instructions: "
            "--instruction-field COLUMN."
        )
