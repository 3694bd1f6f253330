"""Configs as text: finding, reading and writing them, and overrides from the command line."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from instructgym.errors import ConfigError
from instructgym.train.config import C, Config, Section, build
from instructgym.train.config_faults import nearest

__all__ = ["apply_overrides", "config_names", "json_schema", "load_config", "load_config_of", "to_toml"]

_PART = r"""(?:"[^"\n]+"|'[^'\n]+'|[^\s."'=]+)"""
_KEY_PART = re.compile(_PART)
_KEY = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")


def config_names(folder: str = "") -> list[str]:
    """The named configs of the package; those of another kind than the main job's have a folder of their own."""
    entries = (resources.files("instructgym") / "data" / folder).iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A named config of the package, else a TOML file, with ``section.key=value`` overrides.

    Raises `ConfigError` if there is no such config, it is not TOML, or a value or key is wrong.
    """
    return load_config_of(Config, name_or_path, overrides)


def load_config_of(kind: type[C], name_or_path: str | Path, overrides: Sequence[str] = (), folder: str = "") -> C:
    """`load_config` for a config of any kind, whose named ones stand in `folder`."""
    text, source = _read(name_or_path, folder)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}.") from error
    return build(kind, apply_overrides(data, overrides), source)


def _read(name_or_path: str | Path, folder: str) -> tuple[str, str]:
    name = str(name_or_path)
    if name in config_names(folder):
        return (resources.files("instructgym") / "data" / folder / f"{name}.toml").read_text("utf-8"), name
    try:
        return Path(name).read_text("utf-8"), name
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not valid UTF-8 at byte {error.start}; a config is a TOML file.") from error
    except OSError as error:
        near = nearest(name, config_names(folder)) or "."
        raise ConfigError(
            f"no config '{name}'{near} It is neither one of {', '.join(config_names(folder))} nor a file that can be "
            f"read ({error.strerror})."
        ) from error


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`data` with each ``section.key=value`` put in; values are TOML, and plain words strings.

    Another `agent.name` leaves the `agent.kwargs` of `data` behind: they are arguments of the agent that stood there.
    """
    result = _copy(data)
    if _names_another_agent(data, overrides):
        result["agent"].pop("kwargs", None)
    for override in overrides:
        parts, value = _key_and_value(override)
        node = result
        for part in parts[:-1]:
            inner = node.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"override '{override}': '{part}' holds a value ({inner!r}), not a section.")
            node = inner
        node[parts[-1]] = value
    return result


def _key_and_value(override: str) -> tuple[list[str], Any]:
    """``a.b=1`` -> (["a", "b"], 1); a part that holds a dot is quoted, as in ``budget.prices."gpt-4.1"={...}``."""
    match = _KEY.match(override)
    parts = [] if match is None else [part.strip().strip("\"'") for part in _KEY_PART.findall(match[1])]
    if match is None or len(parts) < 2:
        raise ConfigError(f"override '{override}'; expected section.key=value, e.g. train.steps=5000.")
    return parts, _toml_value(override[match.end() :].strip())


def _names_another_agent(data: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    given = data.get("agent")
    names = [value for parts, value in map(_key_and_value, overrides) if parts == ["agent", "name"]]
    return bool(names) and isinstance(given, Mapping) and names[-1] != given.get("name")


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in data.items()}


def _toml_value(text: str) -> Any:
    if "\n" in text:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def to_toml(config: Section) -> str:
    """The config as resolved; reading the text gives an equal config."""
    import tomli_w

    return str(tomli_w.dumps(_without_none(json.loads(config.model_dump_json()))))


def json_schema() -> dict[str, Any]:
    """JSON schema of a config file."""
    return Config.model_json_schema()


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in data.items() if v is not None}
