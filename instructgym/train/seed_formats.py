"""What a record means: which format it is of, and where its instruction, input, output, topic and id stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["JSON_FORMATS", "SEED_FORMATS", "TEXT_FIELDS", "BadRecord", "Draft", "drafts_of", "json_format"]

JSON_FORMATS = ("alpaca", "dolly", "self_instruct", "messages")
SEED_FORMATS = (*JSON_FORMATS, "text", "csv", "parquet")
TEXT_FIELDS = ("input", "output", "topic", "id")
"""The columns that CSV and Parquet may hold besides the instruction."""


class BadRecord(Exception):
    """Why a record cannot be a seed, in words; never leaves the reader."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A record's texts before they are checked as a seed. `id` is empty where the record names none."""

    instruction: str
    input: str = ""
    output: str = ""
    topic: str = ""
    id: str = ""
    suffix: str = ""


def json_format(records: Iterable[object], field: str | None) -> str | None:
    """The format of the first record that looks like one; None if no record does."""
    for record in records:
        if not isinstance(record, Mapping):
            continue
        if field is None and "messages" in record:
            return "messages"
        if field is None and "instances" in record:
            return "self_instruct"
        if (field or "instruction") in record:
            return "dolly" if "category" in record or "context" in record else "alpaca"
    return None


def drafts_of(record: object, format: str, field: str | None) -> list[Draft]:
    """The seeds that `record` holds: one, or one an instance in self_instruct. BadRecord says what is wrong."""
    if format == "text" and isinstance(record, str):
        return [Draft(record)]
    if not isinstance(record, Mapping):
        raise BadRecord(f"the record is {_kind(record)}; expected an object with named fields")
    if format == "messages":
        return [_from_messages(record)]
    if format == "self_instruct":
        return _from_instances(record)
    return [_from_fields(record, field or "instruction", format)]


def _from_fields(record: Mapping[str, object], field: str, format: str) -> Draft:
    text_input = "" if field == "input" else _optional(record, "input")
    topic = _optional(record, "topic")
    if format == "dolly":
        context = _optional(record, "context")
        if context and text_input and context != text_input:
            raise BadRecord("has both 'context' and 'input', and they differ; expected one of them")
        text_input = context or text_input
        topic = topic or _optional(record, "category")
    output = "" if field == "output" else _optional(record, "output") or _optional(record, "response")
    return Draft(_required(record, field), text_input, output, topic, _id(record))


def _from_instances(record: Mapping[str, object]) -> list[Draft]:
    text = _required(record, "instruction")
    instances = record.get("instances")
    if not isinstance(instances, list) or not instances:
        raise BadRecord(f"'instances' is {_kind(instances)}; expected a list with at least one instance")
    drafts: list[Draft] = []
    for number, instance in enumerate(instances):
        if not isinstance(instance, Mapping):
            raise BadRecord(f"instance {number} is {_kind(instance)}; expected an object with 'input' and 'output'")
        given, answer = _optional(instance, "input"), _optional(instance, "output")
        drafts.append(Draft(text, given, answer, _optional(record, "topic"), _id(record), f"/{number}"))
    return drafts


def _from_messages(record: Mapping[str, object]) -> Draft:
    messages = record.get("messages")
    if not isinstance(messages, list):
        raise BadRecord(f"'messages' is {_kind(messages)}; expected a list of messages with 'role' and 'content'")
    first: dict[str, str] = {}
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRecord(f"message {number} has no 'role'; expected an object with 'role' and 'content'")
        role = str(message["role"])
        # An assistant's turn before the first question answers nothing that we keep.
        if role in first or role not in ("user", "assistant") or (role == "assistant" and "user" not in first):
            continue
        content = message.get("content")
        if not isinstance(content, str):
            raise BadRecord(f"the content of message {number} is {_kind(content)}; expected text")
        first[role] = content
    if "user" not in first:
        raise BadRecord("no message of the role 'user'; its first one would be the instruction")
    return Draft(first["user"], "", first.get("assistant", ""), _optional(record, "topic"), _id(record))


def _required(record: Mapping[str, object], field: str) -> str:
    if field not in record:
        raise BadRecord(f"no field {field!r}; the record has {_names(record)}")
    value = record[field]
    if not isinstance(value, str):
        raise BadRecord(f"{field!r} is {_kind(value)}; expected text")
    return value


def _optional(record: Mapping[str, object], field: str) -> str:
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRecord(f"{field!r} is {_kind(value)}; expected text")
    return value


def _id(record: Mapping[str, object]) -> str:
    value = record.get("id")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRecord(f"'id' is {_kind(value)}; expected text or a whole number")
    return str(value)


def _names(record: Mapping[str, object]) -> str:
    names = [repr(name) for name in record]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no fields"


def _kind(value: object) -> str:
    if value is None:
        return "missing or null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"a number ({value})" if len(str(value)) <= 20 else "a number"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, Mapping) else f"of type {type(value).__name__}"
