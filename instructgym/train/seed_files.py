"""Seeds files: whatever the user has (Alpaca, Dolly, Self-Instruct, chat, plain text, CSV, Parquet) becomes seeds.

The format is detected from the content and can be overridden. Nothing is dropped in silence: a record that cannot be a
seed is a `SeedError` that names its line, or with `skip_bad` a `Rejected` that the caller can write down. Texts come
through as they stand in the file, in any script.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from instructgym.errors import ConfigError, SeedError
from instructgym.train.seed_formats import (
    JSON_FORMATS,
    SEED_FORMATS,
    TEXT_FIELDS,
    BadRecord,
    Draft,
    drafts_of,
    json_format,
)
from instructgym.train.seed_records import (
    RawRecord,
    csv_header,
    csv_records,
    json_records,
    load_bytes,
    parquet_records,
    text_records,
)
from instructgym.train.seed_split import split_seeds
from instructgym.types import Instruction, Seed

__all__ = ["DEFAULT_SEEDS", "SEED_FORMATS", "Rejected", "SeedFile", "read_seeds", "split_seeds"]

DEFAULT_SEEDS = "default"
"""The path that stands for the instructions that come with InstructGym."""

_CONTAINERS = {"csv": "CSV", "parquet": "Parquet", "text": "plain text"}
_PARQUET_MAGIC = b"PAR1"
_SURROGATE = re.compile("[\ud800-\udfff]")
_TAKES_FIELD = ("alpaca", "dolly", "csv", "parquet")
_ADVICE = "Fix the record, or go on without it: --skip-bad."


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that is no seed: its line (row, in Parquet), why, and its first 200 characters."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True, slots=True)
class SeedFile:
    """What was read. `container` says how the records were packed (JSON, JSONL, ...); `line_count` is of the whole file
    (rows, in Parquet).
    """

    seeds: tuple[Seed, ...]
    format: str
    rejected: tuple[Rejected, ...]
    line_count: int
    container: str = ""

    @property
    def with_input(self) -> int:
        """How many seeds have an input."""
        return sum(bool(seed.instruction.input) for seed in self.seeds)

    def describe(self) -> str:
        """One line for people, e.g. ``alpaca JSONL, 4000 instructions, 1595 with input``."""
        kind = f"{self.format} {self.container}" if self.format in JSON_FORMATS else self.container
        count = len(self.seeds)
        parts = [kind, f"{count} instruction{'' if count == 1 else 's'}", f"{self.with_input} with input"]
        if self.rejected:
            parts.append(f"{len(self.rejected)} rejected")
        return ", ".join(parts)


def read_seeds(
    path: str | Path,
    *,
    format: str = "auto",
    instruction_field: str | None = None,
    skip_bad: bool = False,
    limit: int | None = None,
    max_characters: int = 20_000,
) -> SeedFile:
    """Read a seeds file; ``"default"`` is the set that comes with InstructGym.

    `instruction_field` names the field or column of the instruction where that is not ``instruction``. `limit` stops
    after so many seeds (later records are not looked at). `max_characters` bounds instruction and input together.
    Raises SeedError for the file and, unless `skip_bad`, for its first bad record; ConfigError for the options.
    """
    _check_options(format, instruction_field, limit, max_characters)
    place = Path(str(files("instructgym") / "data" / "seeds.jsonl")) if path == DEFAULT_SEEDS else Path(path)
    name = str(path)
    data = load_bytes(place)
    found, container, records = _open(name, data, format, instruction_field, place.suffix.lower())
    line_count = len(records) if found == "parquet" else data.count(b"\n") + (not data.endswith(b"\n"))

    unit = "row" if found == "parquet" else "line"
    seeds: list[Seed] = []
    rejected: list[Rejected] = []
    first_use: dict[str, int] = {}
    for number, record in enumerate(records, start=1):
        if limit is not None and len(seeds) >= limit:
            break
        try:
            fresh = _seeds_of(record, number, found, instruction_field, first_use, max_characters, unit)
        except BadRecord as error:
            if not skip_bad:
                raise SeedError(f"{name}: {unit} {record.line}: {error}. {_ADVICE}") from None
            rejected.append(Rejected(record.line, str(error), record.raw[:200]))
            continue
        first_use.update((seed.id, record.line) for seed in fresh)
        seeds.extend(fresh if limit is None else fresh[: limit - len(seeds)])
    if not seeds:
        raise _nothing_left(name, unit, rejected)
    return SeedFile(tuple(seeds), found, tuple(rejected), line_count, container)


def _check_options(format: str, field: str | None, limit: int | None, max_characters: int) -> None:
    if format not in ("auto", *SEED_FORMATS):
        near = difflib.get_close_matches(format, ("auto", *SEED_FORMATS), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown seeds format {format!r}; expected auto, {', '.join(SEED_FORMATS)}.{hint}")
    if field is not None and format not in ("auto", *_TAKES_FIELD):
        raise ConfigError(
            f"instruction_field {field!r} has no meaning in the format {format!r}; it goes with "
            f"{', '.join(_TAKES_FIELD)}. Leave one of the two out."
        )
    for option, value in (("limit", limit), ("max_characters", max_characters)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} must be at least 1, got {value}.")


def _open(
    name: str, data: bytes, format: str, field: str | None, suffix: str
) -> tuple[str, str, Sequence[RawRecord]]:  # (format, container, records)
    if format == "auto":
        format = _detect(data, field, suffix)
    if format == "parquet":
        return format, _CONTAINERS[format], parquet_records(name, data, field or "instruction", TEXT_FIELDS)
    if format == "csv":
        return format, _CONTAINERS[format], csv_records(name, data, field or "instruction")
    if format == "text":
        return format, _CONTAINERS[format], text_records(data)
    container, records = json_records(name, data)
    if format != "json":
        return format, container, records
    detected = json_format((record.value for record in records), field)
    if detected is None:
        raise _no_format(name, field, records)
    return detected, container, records


def _detect(data: bytes, field: str | None, suffix: str) -> str:
    """``parquet``, ``json`` (any of the JSON formats), ``csv`` or ``text``, from the first bytes and the first line."""
    if data.startswith(_PARQUET_MAGIC):
        return "parquet"
    if data.lstrip()[:1] in (b"{", b"["):
        return "json"
    if field is not None or suffix in (".csv", ".tsv"):
        return "csv"
    first_line = data.split(b"\n", 1)[0].decode("utf-8", "replace")
    return "csv" if "instruction" in csv_header(first_line, "instruction")[1] else "text"


def _no_format(name: str, field: str | None, records: Sequence[RawRecord]) -> SeedError:
    broken = next((record for record in records if record.problem), None)
    usable = next((record for record in records if not record.problem), None)
    if usable is None and broken is not None:
        return SeedError(
            f"{name}: line {broken.line}: {broken.problem}. The file starts like JSON; if it is plain text, say so: "
            "--set seeds.format=text."
        )
    if usable is None:
        return SeedError(f"{name}: holds no records; expected at least one instruction.")
    keys = ", ".join(repr(key) for key in list(usable.value)[:8]) if isinstance(usable.value, dict) else "no fields"
    wanted = repr(field) if field else "'instruction', 'instances' or 'messages'"
    return SeedError(
        f"{name}: line {usable.line}: no known format: expected a field {wanted}; the record has {keys}. Name the "
        "field of the instruction: --instruction-field FIELD."
    )


def _nothing_left(name: str, unit: str, rejected: Sequence[Rejected]) -> SeedError:
    if not rejected:
        return SeedError(f"{name}: holds no records; expected at least one instruction.")
    first = rejected[0]
    return SeedError(
        f"{name}: no usable instruction; {len(rejected)} rejected, the first at {unit} {first.line}: {first.reason}. "
        "Check the format."
    )


def _seeds_of(
    record: RawRecord,
    number: int,
    format: str,
    field: str | None,
    first_use: dict[str, int],
    max_characters: int,
    unit: str,
) -> list[Seed]:
    if record.problem:
        raise BadRecord(record.problem)
    seeds = [_checked(draft, number, max_characters) for draft in drafts_of(record.value, format, field)]
    for seed in seeds:
        if seed.id in first_use:
            raise BadRecord(f"the id {seed.id!r} is taken by {unit} {first_use[seed.id]}; expected distinct ids")
    return seeds


def _checked(draft: Draft, number: int, max_characters: int) -> Seed:
    if not draft.instruction.strip():
        raise BadRecord(f"the instruction is {'only whitespace' if draft.instruction else 'empty'}; expected text")
    texts = {"instruction": draft.instruction, "input": draft.input, "output": draft.output}
    for place, text in {**texts, "topic": draft.topic, "id": draft.id}.items():
        if "\0" in text:
            raise BadRecord(f"the {place} holds a NUL byte; expected text")
        if _SURROGATE.search(text):
            raise BadRecord(f"the {place} holds half of a surrogate pair, which is no character; expected text")
    length = len(draft.instruction) + len(draft.input)
    if length > max_characters:
        raise BadRecord(f"instruction and input have {length:,} characters; the limit is {max_characters:,}")
    # An input of nothing but whitespace is how some exports say "none".
    given = draft.input if draft.input.strip() else ""
    name = (draft.id if draft.id.strip() else f"seed-{number:06d}") + draft.suffix
    return Seed(name, Instruction(draft.instruction, given), draft.topic, draft.output)
