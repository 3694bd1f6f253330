"""Action sets by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from instructgym.envs.action_sets import BUILTIN_ACTION_SETS
from instructgym.envs.operations import ActionSet
from instructgym.errors import ActionSetError
from instructgym.plugins import is_file_reference, load_from_file, nearest

__all__ = ["action_set_names", "load_action_set"]

ENTRY_POINT_GROUP = "instructgym.action_sets"


def load_action_set(name: str | ActionSet) -> ActionSet:
    """The action set of that name.

    Args:
        name: a name of the package (``evol_instruct``, ``core``, ``teams_rl``), of the entry-point group
            ``instructgym.action_sets``, or ``path/to/file.py:NAME``; ``+stop`` at the end adds the operation `stop`.
            An `ActionSet` is returned as it is.

    Raises:
        ActionSetError: there is no such set (with the nearest name), or what was found is not an action set.
        ConfigError: the file is missing or fails when it is run.
    """
    if isinstance(name, ActionSet):
        return name
    if not isinstance(name, str):
        raise ActionSetError(f"action_set is of type {type(name).__name__}; expected a name or an ActionSet.")
    if name.endswith("+stop"):
        return load_action_set(name.removesuffix("+stop")).with_stop()
    if name in BUILTIN_ACTION_SETS:
        return BUILTIN_ACTION_SETS[name]
    found: object
    if is_file_reference(name):
        found = load_from_file(name)
    else:
        installed = _installed()
        if name not in installed:
            raise ActionSetError(
                f"unknown action set '{name}'; {nearest(name, action_set_names())} "
                "One of your own: 'path/to/file.py:NAME'."
            )
        found = installed[name].load()
    if not isinstance(found, ActionSet):
        raise ActionSetError(f"'{name}' is of type {type(found).__name__}; expected an instructgym.envs.ActionSet.")
    return found


def action_set_names() -> tuple[str, ...]:
    """The names that `load_action_set` knows: the package's own, then those of installed packages."""
    return (*BUILTIN_ACTION_SETS, *sorted(set(_installed()) - set(BUILTIN_ACTION_SETS)))


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
