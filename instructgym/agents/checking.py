"""Errors about names that the user gave."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from instructgym.errors import ConfigError

__all__ = ["check_kwargs", "did_you_mean"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'? Known: a, b, c.`` for an error message."""
    names = [*known]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names)}."


def check_kwargs(owner: str, kwargs: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise `ConfigError` for the first of `kwargs` that is not a known name."""
    names = [*known]
    for name in kwargs:
        if name not in names:
            raise ConfigError(f"{owner} takes no argument '{name}'; {did_you_mean(name, names)}")
