"""Errors about names that the user gave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from instructgym.errors import ConfigError
from instructgym.plugins import nearest

__all__ = ["check_kwargs"]


def check_kwargs(owner: str, kwargs: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise `ConfigError` for the first of `kwargs` that is not a known name."""
    names = [*known]
    for name in kwargs:
        if not names:
            raise ConfigError(f"{owner} takes no arguments, but got '{name}'.")
        if name not in names:
            raise ConfigError(f"{owner} takes no argument '{name}'; {nearest(name, names)}")
