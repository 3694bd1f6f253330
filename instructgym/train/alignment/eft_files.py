"""Answers that people have ranked or scored: what a record may look like, and the reader of the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError
from instructgym.train.seed_records import json_records
from instructgym.types import Instruction

__all__ = ["EFTFile", "RankedAnswers", "ScoredAnswer", "read_eft", "row_of"]

_PROMPT = ("instruction", "prompt")
_ANSWER = ("answer", "response", "output")
_REASONS = ("reasons", "rationale")
_FORMS = (
    "expected 'answers' with 'ranks' (the lowest is the best), 'chosen' with 'rejected', or 'answer' with 'score', "
    "beside 'instruction' or 'prompt'"
)


@dataclass(frozen=True, slots=True)
class RankedAnswers:
    """Answers to one instruction and people's ranks of them; the lowest rank is the best."""

    id: str
    instruction: Instruction
    answers: tuple[str, ...]
    ranks: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer, people's score of it, and their reasons where they gave any."""

    id: str
    instruction: Instruction
    answer: str
    score: float
    reasons: str = ""

    def with_score(self, score: float) -> ScoredAnswer:
        """The same with another score."""
        return replace(self, score=float(score))


@dataclass(frozen=True, slots=True)
class EFTFile:
    """What a file held: rows in order, and what was wrong with those that were skipped, by line."""

    rows: tuple[RankedAnswers | ScoredAnswer, ...]
    skipped: tuple[tuple[int, str], ...] = ()


def read_eft(path: str | Path, *, limit: int | None = None, skip_bad: bool = False) -> EFTFile:
    """Read JSON lines, or a JSON array, of ranked or scored answers; both kinds may stand in one file.

    A row without an ``id`` is called ``row-N``. `limit` stops after so many rows. Raises ConfigError for a file that
    cannot be read or holds no row, and unless `skip_bad` for the first bad row.
    """
    name = str(path)
    try:
        data = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ConfigError(f"the EFT file {name} cannot be read: {error.strerror or error}.") from error
    if not data.strip():
        raise ConfigError(f"the EFT file {name} is empty; expected a line with answers and ranks or a score.")
    rows: list[RankedAnswers | ScoredAnswer] = []
    skipped: list[tuple[int, str]] = []
    seen: set[str] = set()
    for number, record in enumerate(json_records(name, data)[1], start=1):
        if limit is not None and len(rows) >= limit:
            break
        try:
            if record.problem is not None:
                raise ValueError(record.problem)
            row = row_of(record.value, f"row-{number}")
            if row.id in seen:
                raise ValueError(f"the id '{row.id}' is that of a row before")
        except ValueError as error:
            if not skip_bad:
                raise ConfigError(
                    f"the EFT file {name}, line {record.line}: {error}. Mend it, or set eft.skip_bad."
                ) from None
            skipped.append((record.line, str(error)))
            continue
        seen.add(row.id)
        rows.append(row)
    if not rows:
        first = f"; {len(skipped)} are bad, the first: {skipped[0][1]}" if skipped else ""
        raise ConfigError(f"the EFT file {name} has no usable row{first}.")
    return EFTFile(tuple(rows), tuple(skipped))


def row_of(value: object, name: str) -> RankedAnswers | ScoredAnswer:
    """The row that a JSON object is; `name` is its id if it has none. ValueError says what is wrong, in words."""
    if not isinstance(value, Mapping):
        raise ValueError(f"the record is a {type(value).__name__}; {_FORMS}")
    key = str(value["id"]) if value.get("id") not in (None, "") else name
    instruction = Instruction(_text(value, *_PROMPT), _text(value, "input") if value.get("input") else "")
    if "ranks" in value or "answers" in value:
        return _ranked(value, key, instruction)
    if "chosen" in value or "rejected" in value:
        return RankedAnswers(key, instruction, (_text(value, "chosen"), _text(value, "rejected")), (0.0, 1.0))
    if "score" not in value:
        raise ValueError(f"the record has the fields {', '.join(map(str, value))}; {_FORMS}")
    reasons = next((_text(value, field) for field in _REASONS if value.get(field)), "")
    return ScoredAnswer(key, instruction, _text(value, *_ANSWER), _number(value["score"], "'score'"), reasons)


def _ranked(value: Mapping[Any, Any], key: str, instruction: Instruction) -> RankedAnswers:
    answers, ranks = value.get("answers"), value.get("ranks")
    if not isinstance(answers, list) or not isinstance(ranks, list) or len(answers) != len(ranks) or len(answers) < 2:
        raise ValueError("expected 'answers' and 'ranks' to be lists of as many entries, two or more")
    for place, answer in enumerate(answers):
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"answer {place} is {answer!r}; expected a text")
    numbers = tuple(_number(rank, f"rank {place}") for place, rank in enumerate(ranks))
    return RankedAnswers(key, instruction, tuple(answers), numbers)


def _text(value: Mapping[Any, Any], *fields: str) -> str:
    field = next((each for each in fields if each in value), None)
    if field is None:
        raise ValueError(f"the record has no {' or '.join(map(repr, fields))}; {_FORMS}")
    found = value[field]
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"'{field}' is {found!r}; expected a text")
    return found


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} is {value!r}; expected a number")
    return float(value)
