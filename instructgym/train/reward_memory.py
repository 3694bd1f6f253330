"""A reward's memory on disk: a folder with plain values as JSON and archives beside it."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instructgym.errors import RunFolderError
from instructgym.rewards.archive import Archive
from instructgym.train.run_folder import canonical_json

__all__ = ["load_memory", "save_memory"]

MEMORY = "memory.json"
_ARRAY = "__array__"
_ARCHIVE = "__archive__"


def save_memory(state: Mapping[str, Any], folder: Path) -> bool:
    """Write what a reward's `state_dict` gave; equal memory is equal bytes. False and no folder where it is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    if not state:
        return False
    folder.mkdir(parents=True, mode=0o700)
    archives: list[Archive] = []
    text = canonical_json(_encoded(state, archives))
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
    state: dict[str, Any] = _decoded(value, folder)
    return state


def _encoded(value: Any, archives: list[Archive]) -> Any:
    """`value` with arrays as {dtype, shape, base64 of the bytes} and archives by their number."""
    if isinstance(value, Archive):
        archives.append(value)
        return {_ARCHIVE: len(archives) - 1}
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
        return {_ARRAY: data, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): _encoded(inner, archives) for name, inner in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [_encoded(inner, archives) for inner in value]
    return value


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
