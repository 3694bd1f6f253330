"""What is wrong with a config, in words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

__all__ = ["fault_lines", "nearest", "unknown_keys"]


def unknown_keys(model: type[BaseModel], data: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A line for each key that `model` and its sections do not have."""
    faults = []
    for key, value in data.items():
        field = model.model_fields.get(key)
        if field is None:
            near = nearest(key, list(model.model_fields), prefix)
            if not near:
                near = f"; '{prefix.rstrip('.') or 'a config'}' has {', '.join(model.model_fields)}"
            faults.append(f"unknown key '{prefix}{key}'{near}")
            continue
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel) and isinstance(value, Mapping):
            faults += unknown_keys(section, value, f"{prefix}{key}.")
    return faults


def nearest(word: str, words: Sequence[str], prefix: str = "") -> str:
    """``; did you mean 'x'?`` for the nearest of `words`, or nothing if none is near."""
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean '{prefix}{near[0]}'?" if near else ""


def fault_lines(error: ValidationError) -> list[str]:
    """Pydantic's findings in our words: key, what it holds, what is expected."""
    lines = []
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "missing":
            lines.append(f"'{key}' is not given; expected a value.")
        elif fault["type"] == "value_error":
            lines.append(f"'{key}': {message}." if key else f"{message}.")
        else:
            expected = message.removeprefix("Input should be ")
            lines.append(f"'{key}' is {fault['input']!r}; expected {expected}.")
    return lines
