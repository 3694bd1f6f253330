"""A user's callbacks, as Stable-Baselines3 takes them: named in a config, or given as objects."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from stable_baselines3.common import callbacks as sb3_callbacks
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback

from instructgym.errors import ConfigError
from instructgym.plugins import is_file_reference, load_from_file, nearest

__all__ = ["check_callbacks", "make_callbacks", "named_only"]

_EXPECTED = "expected 'path/to/file.py:NAME', a callback of Stable-Baselines3 by its class's name, or a table of name "


def check_callbacks(agent: str, given: Any) -> tuple[Any, ...]:
    """`given` as a tuple, its form looked at; no file is opened. Raises `ConfigError`."""
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise ConfigError(f"agent '{agent}': callbacks = {given!r}; expected a list.")
    for one in given:
        if isinstance(one, Mapping):
            unknown = [key for key in one if key not in ("name", "kwargs")]
            if unknown or not isinstance(one.get("name"), str) or not isinstance(one.get("kwargs", {}), Mapping):
                raise ConfigError(f"agent '{agent}': callbacks hold {dict(one)!r}; {_EXPECTED}and kwargs.")
        elif not isinstance(one, (str, BaseCallback)) and not callable(one):
            raise ConfigError(f"agent '{agent}': callbacks hold {one!r}; {_EXPECTED}and kwargs, or an object.")
    return tuple(given)


def make_callbacks(agent: str, given: Sequence[Any]) -> list[BaseCallback]:
    """The callbacks, ready for ``learn``.

    Raises `ConfigError` for a file that is not there or fails, a name that is not in it, arguments that do not fit, and
    what is no callback.
    """
    return [_made(agent, one) for one in given]


def named_only(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """An agent's arguments without callbacks that are Python objects: a saved agent is made again without them."""
    if "callbacks" not in kwargs:
        return dict(kwargs)
    named = [one for one in kwargs["callbacks"] if isinstance(one, (str, Mapping))]
    rest = {name: value for name, value in kwargs.items() if name != "callbacks"}
    return {**rest, "callbacks": named} if named else rest


def _made(agent: str, given: Any) -> BaseCallback:
    name = given["name"] if isinstance(given, Mapping) else given if isinstance(given, str) else repr(given)
    kwargs = dict(given.get("kwargs", {})) if isinstance(given, Mapping) else {}
    found = _found(agent, name) if isinstance(given, (str, Mapping)) else given
    if inspect.isclass(found):
        if not issubclass(found, BaseCallback):
            raise _no_callback(agent, name, f"the class {found.__name__}")
        try:
            inspect.signature(found).bind(**kwargs)
        except TypeError as error:
            raise ConfigError(
                f"agent '{agent}': callback '{name}' cannot be made: {error}. Give its kwargs."
            ) from error
        made: BaseCallback = found(**kwargs)
        return made
    if kwargs:
        raise ConfigError(f"agent '{agent}': callback '{name}' is no class and takes no kwargs, got {sorted(kwargs)}.")
    if isinstance(found, BaseCallback):
        return found
    if not callable(found):
        raise _no_callback(agent, name, f"a {type(found).__name__}")
    try:
        inspect.signature(found).bind({}, {})
    except TypeError as error:
        raise _no_callback(agent, name, f"a function with the parameters {inspect.signature(found)}") from error
    return ConvertCallback(found)


def _found(agent: str, name: str) -> Any:
    if is_file_reference(name):
        return load_from_file(name)
    own = [key for key, value in vars(sb3_callbacks).items() if inspect.isclass(value) and key.endswith("Callback")]
    own += [key for key in vars(sb3_callbacks) if key.startswith("StopTraining")]
    if name not in own:
        raise ConfigError(f"agent '{agent}': unknown callback '{name}'; {nearest(name, sorted(own))} {_OWN}")
    return getattr(sb3_callbacks, name)


_OWN = "One of your own: 'path/to/file.py:NAME'."


def _no_callback(agent: str, name: str, got: str) -> ConfigError:
    return ConfigError(
        f"agent '{agent}': callback '{name}' is {got}; expected a subclass or an instance of "
        "stable_baselines3.common.callbacks.BaseCallback, or a function of (locals, globals) that returns a bool."
    )
