"""What users bring: objects of their own as ``path/to/file.py:NAME``, names that are nearly right, extras installed.

Every layer may import this; it imports only the errors.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError, MissingDependencyError

__all__ = ["is_file_reference", "load_from_file", "nearest", "require"]


def is_file_reference(text: str) -> bool:
    """True for ``something.py:NAME``."""
    path, colon, name = text.rpartition(":")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def load_from_file(reference: str) -> Any:
    """The object NAME of ``path/to/file.py:NAME``. The file is run as a module of its own, once a process.

    Raises `ConfigError` if the file is missing, fails, or has no such name.
    """
    text, _, name = reference.rpartition(":")
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"'{reference}': there is no file {path}.")
    digest = hashlib.blake2b(str(path).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    module_name = f"instructgym_user_{path.stem}_{digest}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"'{reference}': {path} cannot be loaded as Python.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their module up while the file runs
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ConfigError(f"'{reference}': {path} failed with {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ConfigError(f"'{reference}': {path.name} has no name '{name}'; {nearest(name, public)}")
    return getattr(module, name)


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'? Known: a, b, c.`` for an error message, to stand after a semicolon."""
    names = [*known]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? K" if close else "k"
    return f"{hint}nown: {', '.join(names)}."


def require(module: str, *, extra: str) -> None:
    """Raise `MissingDependencyError`, with the line that installs it, unless `module` can be imported."""
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(f"this needs {module}, which is not installed: pip install 'instructgym[{extra}]'")
