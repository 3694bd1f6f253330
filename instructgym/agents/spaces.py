"""Spaces as flat vectors and as JSON: what an agent needs to know of them, and what is saved with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from numpy.typing import NDArray

from instructgym.errors import ConfigError

__all__ = ["Flattener", "num_actions", "space_from_json", "space_to_json", "stack_rows"]

_Part = Callable[[Any], NDArray[np.float32]]


class Flattener:
    """Batched `gymnasium.spaces.utils.flatten`: N observations -> float32 (N, dim).

    Box, Discrete (one-hot), MultiBinary, MultiDiscrete (one-hots) and Dict of these. Raises `ConfigError` for others.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._flatten = _flatten_function(space)
        self.dim: int = flatdim(space)

    def __call__(self, obs: Any) -> NDArray[np.float32]:
        return self._flatten(obs)


def num_actions(space: spaces.Space[Any]) -> int:
    """The size A of a Discrete action space. Raises `ConfigError` for another space."""
    if not isinstance(space, spaces.Discrete) or space.start != 0:
        raise ConfigError(f"action space {space}; expected Discrete(n), counted from 0.")
    return int(space.n)


def stack_rows(space: spaces.Space[Any], rows: Any) -> Any:
    """Single observations -> the batch that `Flattener` takes (a dict of arrays for a Dict space)."""
    if isinstance(space, spaces.Dict):
        return {name: stack_rows(part, [row[name] for row in rows]) for name, part in space.spaces.items()}
    return np.stack([np.asarray(row) for row in rows])


def _flatten_function(space: spaces.Space[Any]) -> _Part:
    if isinstance(space, spaces.Dict):
        parts = [(name, _flatten_function(part)) for name, part in space.spaces.items()]
        return lambda obs: np.concatenate([part(obs[name]) for name, part in parts], axis=1)
    if isinstance(space, spaces.Discrete):
        return _one_hot(int(space.n), int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        starts = np.broadcast_to(space.start, space.nvec.shape).ravel()
        columns = [_one_hot(int(n), int(start)) for n, start in zip(space.nvec.ravel(), starts, strict=True)]
        return lambda obs: np.concatenate(
            [column(np.reshape(obs, (len(obs), -1))[:, i]) for i, column in enumerate(columns)], axis=1
        )
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return lambda obs: np.reshape(np.asarray(obs, np.float32), (len(obs), -1))
    raise ConfigError(
        f"observation space {type(space).__name__} cannot be flattened; expected Box, Discrete, MultiBinary, "
        "MultiDiscrete or a Dict of these."
    )


def _one_hot(n: int, start: int) -> _Part:
    table = np.eye(n, dtype=np.float32)
    return lambda obs: table[np.asarray(obs, np.int64) - start]


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space as JSON values. Raises `ConfigError` for a kind that `space_from_json` does not know."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[name, space_to_json(part)] for name, part in space.spaces.items()]}
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "low": _bounds_to_json(space.low),
            "high": _bounds_to_json(space.high),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else [int(n) for n in space.n]}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    raise ConfigError(f"space {type(space).__name__} cannot be saved with an agent.")


def space_from_json(data: dict[str, Any]) -> spaces.Space[Any]:
    """The space that `space_to_json` wrote."""
    kind = data["type"]
    if kind == "Dict":
        return spaces.Dict([(name, space_from_json(part)) for name, part in data["spaces"]])
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (_bounds_from_json(data[side], shape, dtype) for side in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(data["nvec"], start=data["start"])
    raise ConfigError(f"saved space of kind '{kind}'; expected Box, Dict, Discrete, MultiBinary or MultiDiscrete.")


def _bounds_to_json(bounds: NDArray[Any]) -> Any:
    """One number if all are equal, else nested lists; infinities as text, which JSON has no number for."""
    if bounds.size and (bounds == bounds.flat[0]).all():
        return _number(bounds.flat[0].item())
    return [_number(value) for value in bounds.ravel().tolist()]


def _bounds_from_json(data: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    values = [float(value) if isinstance(value, str) else value for value in np.ravel(np.array(data, object)).tolist()]
    return np.full(shape, values[0], dtype) if len(values) == 1 else np.array(values, dtype).reshape(shape)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
