"""A reward's memory on disk: a folder with plain values as JSON and archives beside it."""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instructgym.errors import RewardError, RunFolderError
from instructgym.rewards.archive import Archive
from instructgym.train.run_folder import canonical_json

__all__ = ["load_memory", "save_memory"]

MEMORY = "memory.json"
_ARRAY = "__array__"
_ARCHIVE = "__archive__"


def save_memory(state: Mapping[str, Any], folder: Path) -> bool:
    """Write what a reward's `state_dict` gave; equal memory is equal bytes. False and no folder where it is empty.

    Raises `RewardError` for what would not come back as it is; then a folder that was there stays.
    """
    archives: list[Archive] = []
    text = canonical_json(_encoded(state, archives, ()))
    shutil.rmtree(folder, ignore_errors=True)
    if not state:
        return False
    folder.mkdir(parents=True, mode=0o700)
    for number, archive in enumerate(archives):
        archive.save(folder / f"archive-{number}")
    path = folder / MEMORY
    path.touch(mode=0o600)
    path.write_text(text, "utf-8")
    return True


def load_memory(folder: Path) -> dict[str, Any]:
    """What `save_memory` wrote, for `load_state_dict`; tuples come back as lists. Raises `RunFolderError`."""
    try:
        value = json.loads((folder / MEMORY).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"the reward's memory in {folder} cannot be read: {error}.") from error
    try:
        state: dict[str, Any] = _decoded(value, folder)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"the reward's memory in {folder} cannot be read: {error!r}.") from error
    return state


def _encoded(value: Any, archives: list[Archive], place: tuple[str, ...]) -> Any:
    """`value` with arrays as {dtype, shape, base64 of the bytes} and archives by their number."""
    if isinstance(value, Archive):
        archives.append(value)
        return {_ARCHIVE: len(archives) - 1}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
        return {_ARRAY: data, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or name in (_ARRAY, _ARCHIVE):
                raise _unkept(f"the key {name!r}", place, "texts as keys, so that they come back as they are")
        return {name: _encoded(inner, archives, (*place, name)) for name, inner in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_encoded(inner, archives, (*place, str(number))) for number, inner in enumerate(value)]
    if value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}, {value!r:.60}"
    raise _unkept(kind, place, "finite numbers, texts, lists, tables, arrays of numbers and archives")


def _unkept(got: str, place: tuple[str, ...], expected: str) -> RewardError:
    where = "/".join(place) or "state_dict()"
    return RewardError(f"a reward's memory cannot be saved: '{where}' holds {got}; expected {expected}.")


def _decoded(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_decoded(inner, folder) for inner in value]
    if not isinstance(value, dict):
        return value
    if _ARCHIVE in value:
        return Archive.open(folder / f"archive-{value[_ARCHIVE]}")
    if _ARRAY in value:
        data = base64.b64decode(value[_ARRAY])
        return np.frombuffer(data, dtype=np.dtype(value["dtype"])).reshape(value["shape"]).copy()
    return {name: _decoded(inner, folder) for name, inner in value.items()}
