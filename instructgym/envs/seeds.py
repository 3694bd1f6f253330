"""The seed instructions of an env: a sequence, a JSONL file, or the package's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from instructgym.errors import SeedError
from instructgym.types import Instruction, Seed

__all__ = ["as_instruction", "load_seeds"]

SeedLike = Seed | Instruction | str


def load_seeds(source: str | Path | Sequence[SeedLike]) -> tuple[Seed, ...]:
    """The seeds of `source`.

    Args:
        source: ``default`` (the package's own), the path of a JSONL file whose records have ``instruction`` and may
            have ``input``, ``id``, ``topic`` and ``output``, or a sequence of texts, `Instruction` or `Seed`.
            Texts without an id are called by their place, ``seed-0``, ``seed-1``, ...

    Raises:
        SeedError: the file cannot be read (with the line), an instruction is empty, an id is there twice, or there is
            no seed at all. Other formats are read by `instructgym.train`, whose seeds can be passed as a sequence.
    """
    if isinstance(source, (str, Path)):
        named = f"'{source}'"
        if source == "default":
            text = (resources.files("instructgym") / "data" / "seeds.jsonl").read_text("utf-8")
        else:
            text = _read(Path(source))
        seeds = _parse(text, named)
    else:
        named = "the given seeds"
        seeds = [_as_seed(item, index) for index, item in enumerate(source)]
    return _checked(seeds, named)


def as_instruction(value: object, what: str) -> Instruction:
    """A text or `Instruction` with something in it. Raises `SeedError`, which calls it `what`."""
    instruction = Instruction(value) if isinstance(value, str) else value
    if not isinstance(instruction, Instruction):
        raise SeedError(f"{what} is of type {type(value).__name__}; expected a str or an instructgym Instruction.")
    if not instruction.text.strip():
        raise SeedError(f"{what} is empty; expected the text of an instruction.")
    for text in (instruction.text, instruction.input):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise SeedError(f"{what} holds half of a surrogate pair, which is no character; expected text.")
    return instruction


def _as_seed(item: SeedLike, index: int) -> Seed:
    if isinstance(item, Seed):
        as_instruction(item.instruction, f"seed '{item.id}'")
        return item
    return Seed(id=f"seed-{index}", instruction=as_instruction(item, f"seed {index}"))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise SeedError(f"the seeds '{path}' cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise SeedError(f"the seeds '{path}' are not UTF-8 (byte {error.start}); convert the file.") from error


def _parse(text: str, named: str) -> list[Seed]:
    seeds: list[Seed] = []
    # Only "\n" ends a JSONL record: a JSON string may hold U+2028, at which splitlines() would cut it.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {named}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise SeedError(f"{where} is not JSON: {error.msg} at column {error.colno}.") from error
        if not isinstance(record, dict) or not isinstance(record.get("instruction"), str):
            raise SeedError(f'{where} has no text; expected a JSON object with "instruction": "...".')
        instruction = Instruction(record["instruction"], _text(record, "input", where))
        seeds.append(
            Seed(
                id=_text(record, "id", where) or f"seed-{len(seeds)}",
                instruction=as_instruction(instruction, f"the instruction of {where}"),
                topic=_text(record, "topic", where),
                output=_text(record, "output", where),
            )
        )
    return seeds


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if isinstance(value, (str, int)):
        return str(value)
    raise SeedError(f"{where} has {key} = {value!r}; expected a text.")


def _checked(seeds: Iterable[Seed], named: str) -> tuple[Seed, ...]:
    found: dict[str, Seed] = {}
    for seed in seeds:
        if seed.id in found:
            raise SeedError(f"{named}: the id '{seed.id}' is there more than once; ids must be unique.")
        found[seed.id] = seed
    if not found:
        raise SeedError(f"{named}: no seed; expected at least one instruction.")
    return tuple(found.values())
