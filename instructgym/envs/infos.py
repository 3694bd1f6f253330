"""`info`: a plain function of seed and actions, and its batched form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.envs.dynamics import Outcome, State
from instructgym.types import Usage

__all__ = ["batch_infos", "reset_info", "step_info"]


def reset_info(state: State, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The info of a first state. The same keys as after a step, but for the reward terms."""
    return _info(state, mask) | {
        "parent": "",
        "operation": "",
        "elimination": "",
        "failure": "",
        "calls": 0,
        "usage": _usage(Usage()),
        "valid": True,
    }


def step_info(outcome: Outcome, mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The info of a step.

    Every value has one type whatever happened, so that a vector env can hold it in an array whose type the first env
    decides; a missing reward term is an absent key. ``action_mask`` is int8, as `Discrete.sample` wants it.
    """
    transition = outcome.transition
    return _info(outcome.state, mask) | {
        "parent": transition.parent.text,
        "operation": transition.operation,
        "elimination": "" if transition.elimination is None else transition.elimination.reason,
        "failure": outcome.failure or "",
        "calls": outcome.calls,
        "usage": _usage(outcome.usage),
        "valid": outcome.valid,
        **{f"reward/{name}": float(value) for name, value in outcome.score.terms.items()},
    }


def _info(state: State, mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "instruction": state.instruction.text,
        "input": state.instruction.input,
        "seed_id": state.seed.id,
        "topic": state.seed.topic,
        "step": state.step,
        "action_mask": mask.astype(np.int8),
    }


def _usage(usage: Usage) -> dict[str, float]:
    return {
        "prompt_tokens": float(usage.prompt_tokens),
        "completion_tokens": float(usage.completion_tokens),
    }


def batch_infos(infos: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """One dict of arrays for the infos of n rows (None: the row has none), each with its mask ``_key``.

    The same result as Gymnasium's `VectorEnv._add_info` row by row (a test holds them equal), made column by column.
    """
    columns: dict[str, tuple[list[int], list[Any]]] = {}
    for row, info in enumerate(infos):
        for key, value in (info or {}).items():
            rows, values = columns.setdefault(key, ([], []))
            rows.append(row)
            values.append(value)
    batched: dict[str, Any] = {}
    for key, (rows, values) in columns.items():
        mask = np.zeros(len(infos), dtype=np.bool_)
        mask[rows] = True
        batched[key] = _column(key, rows, values, len(infos))
        batched[f"_{key}"] = mask
    return batched


def _column(key: str, rows: list[int], values: list[Any], count: int) -> Any:
    first = values[0]
    if isinstance(first, dict) and key != "final_obs":
        spread: list[Mapping[str, Any] | None] = [None] * count
        for row, value in zip(rows, values, strict=True):
            spread[row] = value
        return batch_infos(spread)
    column: NDArray[Any]
    if key != "final_obs" and (type(first) in (int, float, bool) or isinstance(first, np.number)):
        column = np.zeros(count, dtype=type(first))
        column[rows] = values
    elif key != "final_obs" and isinstance(first, np.ndarray):
        column = np.zeros((count, *first.shape), dtype=first.dtype)
        column[rows] = values
    else:
        column = np.full(count, None, dtype=object)
        for row, value in zip(rows, values, strict=True):
            column[row] = value
    return column
