"""What models learn from: conversations, and preferences between two answers; and the readers of their files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError
from instructgym.llm_backends.answering import answer_messages
from instructgym.types import Instruction, Message

__all__ = ["PreferenceExample", "SFTExample", "read_preferences", "read_sft"]

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class SFTExample:
    """A conversation that ends with an answer; every assistant turn is learned."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """Two answers to one prompt. Weights matter relative to each other."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    weight: float = 1.0


def read_sft(path: Path) -> list[SFTExample]:
    """A JSON, JSON lines or Parquet file: Alpaca (``instruction``, ``input``, ``output``), chat (``messages`` or
    ``conversations``), or ``prompt`` and ``completion``, each a text or messages. A folder stands for the data that a
    run of ours has exported there.

    Raises `ConfigError` with the number of the first record that is none of them.
    """
    path = _exported(path, ("dataset/sft_messages.jsonl", "sft_messages.jsonl", "dataset/sft_alpaca.jsonl"))
    return [_sft(row, f"{path}, record {number}") for number, row in enumerate(_records(path), start=1)]


def read_preferences(path: Path) -> list[PreferenceExample]:
    """A JSON, JSON lines or Parquet file: ``prompt`` (text or messages) or ``instruction`` with ``input``; ``chosen``
    and ``rejected``, each a text or messages; optionally ``weight``. Chats may hold the prompt in both answers. A
    folder stands for the pairs that an alignment has exported there.

    Raises `ConfigError` with the number of the first record that is something else.
    """
    path = _exported(path, ("preferences/pairs.jsonl", "pairs.jsonl"))
    return [_preference(row, f"{path}, record {number}") for number, row in enumerate(_records(path), start=1)]


def _exported(path: Path, names: Sequence[str]) -> Path:
    """The file of an export, where `path` is a folder."""
    if not path.is_dir():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ConfigError(f"the folder '{path}' holds no data to learn from; expected one of {', '.join(names)} in it.")


def _records(path: Path) -> list[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        return _parquet(path)
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{path}' is not valid UTF-8 at byte {error.start}; expected JSON lines.") from error
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read: {error.strerror or error}.") from error
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"'{path}' is not valid JSON: {error}.") from error
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise ConfigError(f"'{path}', line {number}: not valid JSON: {error}.") from error
    if not rows:
        raise ConfigError(f"'{path}' holds no records.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise ConfigError(f"{path}, record {number}: got {type(row).__name__}; expected an object.")
    return list(rows)


def _parquet(path: Path) -> list[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"'{path}' cannot be read as Parquet: {str(error).splitlines()[0]}.") from error
    if not rows:
        raise ConfigError(f"'{path}' holds no records.")
    # A column that one record has is null in all others.
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _sft(row: Mapping[str, Any], where: str) -> SFTExample:
    chat = row.get("messages", row.get("conversations"))
    if chat is not None:
        messages = _messages(chat, where)
    elif "completion" in row and "prompt" in row:
        messages = (*_prompt(row["prompt"], where), *_answer(row["completion"], where))
    elif "instruction" in row and "output" in row:
        answer = Message("assistant", _text(row["output"], "output", where))
        messages = (*answer_messages(_instruction(row, where)), answer)
    else:
        raise ConfigError(
            f"{where}: has {', '.join(sorted(row)) or 'no fields'}; expected messages, or prompt and completion, or "
            "instruction and output."
        )
    if messages[-1].role != "assistant" or not any(message.role == "user" for message in messages):
        raise ConfigError(f"{where}: expected a conversation with a user's turn that ends with an assistant's turn.")
    return SFTExample(messages)


def _preference(row: Mapping[str, Any], where: str) -> PreferenceExample:
    missing = [name for name in ("chosen", "rejected") if name not in row]
    if missing:
        raise ConfigError(f"{where}: has no '{missing[0]}'; expected prompt (or instruction), chosen and rejected.")
    weight = 1.0 if row.get("weight") is None else row["weight"]
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
        raise ConfigError(f"{where}: the weight is {weight!r}; expected a number of 0 or more.")
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        prompt = _prompt(row["prompt"], where)
    elif "instruction" in row:
        prompt = tuple(answer_messages(_instruction(row, where)))
    elif isinstance(chosen, Sequence) and not isinstance(chosen, str):
        full, other = _messages(chosen, where), _messages(rejected, where)
        prompt = full[:-1]
        if not prompt or other[:-1] != prompt:
            raise ConfigError(f"{where}: has no prompt, and chosen and rejected do not begin with the same one.")
        chosen, rejected = full[-1].content, other[-1].content
    else:
        raise ConfigError(f"{where}: has no prompt; expected prompt (or instruction), chosen and rejected.")
    if prompt[-1].role == "assistant":
        raise ConfigError(f"{where}: the prompt ends with an assistant's turn; expected a user's.")
    answers = []
    for answer in (chosen, rejected):
        turns = _answer(answer, where)
        if len(turns) > 1 and tuple(turns[:-1]) == prompt:
            turns = turns[-1:]
        if len(turns) != 1:
            raise ConfigError(f"{where}: an answer has {len(turns)} turns; expected one of the assistant.")
        if turns[0].role != "assistant":
            raise ConfigError(f"{where}: an answer is a turn of the {turns[0].role}; expected one of the assistant.")
        answers.append(turns[0].content)
    return PreferenceExample(prompt, answers[0], answers[1], float(weight))


def _instruction(row: Mapping[str, Any], where: str) -> Instruction:
    return Instruction(_text(row["instruction"], "instruction", where), str(row.get("input") or ""))


def _prompt(value: Any, where: str) -> tuple[Message, ...]:
    return (Message("user", value),) if isinstance(value, str) else _messages(value, where)


def _answer(value: Any, where: str) -> tuple[Message, ...]:
    return (Message("assistant", value),) if isinstance(value, str) else _messages(value, where)


_SPEAKERS = {"human": "user", "gpt": "assistant", "bot": "assistant"}


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ConfigError(f"{where}: got {type(value).__name__} where a text or messages were expected.")
    found = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise ConfigError(f"{where}: a turn is {type(turn).__name__}; expected an object with role and content.")
        role = str(turn.get("role", turn.get("from", "")))
        role = _SPEAKERS.get(role, role)
        if role not in ROLES:
            raise ConfigError(f"{where}: a turn's role is '{role}'; expected one of {', '.join(ROLES)}.")
        found.append(Message(role, _text(turn.get("content", turn.get("value")), "content", where)))
    return tuple(found)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: '{name}' is {type(value).__name__}; expected a text.")
    return value
