"""The form in which a ledger is published: one JSON object a line for each call, plain or gzipped."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from instructgym.errors import RunFolderError
from instructgym.llm_backends.ledger_rows import (
    CallRow,
    Failure,
    LedgerRow,
    completion_from_value,
    completion_to_value,
    request_from_canonical,
    request_key,
)
from instructgym.types import Completion, Request

__all__ = ["call_of", "read_lines", "sampling_to_value", "to_line", "write_lines"]

_GZIP_MAGIC = b"\x1f\x8b"
_SAMPLING = ("temperature", "top_p", "max_tokens", "stop", "top_logprobs", "extra")


def to_line(row: LedgerRow) -> bytes:
    """A call as a line of UTF-8, newline included: all that `read_lines` needs to restore it under the same key."""
    request = row.request
    value: dict[str, object] = {
        "key": row.key,
        "role": request.role,
        "stage": request.stage,
        "model": request.model,
        "request": {
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "sampling": sampling_to_value(request),
            "prompt_version": request.prompt_version,
            "sample": request.sample,
        },
    }
    if isinstance(row.outcome, Failure):
        value["failure"] = {
            "error": row.outcome.error,
            "message": row.outcome.message,
            "status": row.outcome.status,
        }
    else:
        value["completion"] = completion_to_value(row.outcome)
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 lacks: escaped
        return json.dumps(value).encode() + b"\n"


def sampling_to_value(request: Request) -> dict[str, object]:
    """The sampling parameters by name; `n` is left out where it is 1, as in the key."""
    sampling = request.sampling
    value = {name: getattr(sampling, name) for name in _SAMPLING}
    return value if sampling.n == 1 else {**value, "n": sampling.n}


def write_lines(path: Path, rows: Iterable[LedgerRow]) -> int:
    """Write a whole file, gzipped if its name ends in ``.gz``, or none; returns the number of calls.

    The same calls give the same bytes.
    """
    count = 0
    try:
        with _whole_file(path) as raw, ExitStack() as stack:
            zipped = path.suffix == ".gz"
            stream = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0)) if zipped else raw
            for row in rows:
                stream.write(to_line(row))
                count += 1
    except OSError as error:
        raise RunFolderError(f"cannot write '{path}': {error.strerror or error}") from error
    return count


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` at the end of the ``with`` block, or on an error never."""
    if path.exists() and not path.is_file():  # a device or a pipe
        with path.open("wb") as stream:
            yield stream
        return
    beside = path.with_name(f"{path.name}.tmp")
    try:
        with beside.open("wb") as stream:
            yield stream
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def read_lines(path: Path) -> Iterator[CallRow]:
    """The calls of an exported file, each checked against its key.

    Raises `RunFolderError` with file and line for what is cut, is no call, or has a key that is not its request's.
    """
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(path.open("rb"))
            zipped = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            stream = stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw
            number = 0
            for number, line in enumerate(stream, start=1):
                if not line.isspace():
                    yield _call_of_line(line, f"{path}, line {number}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RunFolderError(f"{path} is cut or broken after line {number}: {error}") from error
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror or error}") from error


def call_of(row: LedgerRow, place: str) -> CallRow:
    """The row to be stored for a call, its key computed anew.

    Raises `RunFolderError` that names `place` if the key is another than `row` says.
    """
    request = row.request
    key, canonical = request_key(request)
    if key.hex() != row.key:
        raise RunFolderError(
            f"{place}: the key is {row.key}, but that of its request is {key.hex()}; the request was changed after it "
            "was asked, or comes from a version that made other keys"
        )
    return CallRow(key, request.role, request.stage, request.model, canonical, row.outcome)


def _call_of_line(line: bytes, place: str) -> CallRow:
    try:
        value = json.loads(line)
    except ValueError as error:  # UnicodeDecodeError included
        reason = "the line is cut" if not line.endswith(b"\n") else "no JSON"
        raise RunFolderError(f"{place}: {reason} ({error}); expected a call as `ledger export` writes it") from error
    try:
        row = LedgerRow(value["key"], _request_of(value), _outcome_of(value))
        return call_of(row, place)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{place}: no call as `ledger export` writes it ({type(error).__name__}: {error})"
        ) from error


def _request_of(value: Mapping[str, Any]) -> Request:
    asked = value["request"]
    sampling = asked["sampling"]
    parameters = [sampling[name] for name in _SAMPLING]
    if "n" in sampling:
        parameters.append(sampling["n"])
    messages = [(message["role"], message["content"]) for message in asked["messages"]]
    canonical = [value["role"], value["model"], messages, parameters, asked["prompt_version"], asked["sample"]]
    return request_from_canonical(canonical, _text(value["stage"]))


def _outcome_of(value: Mapping[str, Any]) -> Completion | Failure:
    if "failure" in value:
        failed = value["failure"]
        failure = Failure(failed["error"], _text(failed["message"]), failed["status"])
        try:
            failure.to_error()
        except RunFolderError as error:
            raise ValueError(f"'{failure.error}' is no error of a call") from error
        return failure
    completion = completion_from_value(value["completion"])
    for text in (completion.text, completion.finish_reason, completion.model):
        _text(text)
    for choice in completion.others:
        _text(choice.text)
    if completion.usage is not None and not (
        isinstance(completion.usage.prompt_tokens, int) and isinstance(completion.usage.completion_tokens, int)
    ):
        raise TypeError(f"usage is {value['completion']['usage']}; expected two numbers of tokens")
    return completion


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} stands where a text is expected")
    return value
