"""What a step costs, from the infos of a vector env."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.agents.rollout import valid_rows
from instructgym.errors import UsageError

__all__ = ["read_costs"]


def read_costs(
    infos: Mapping[str, Any], done: NDArray[np.bool_], weights: Mapping[str, float]
) -> NDArray[np.float64]:  # done: (N,) -> (N,)
    """The weighted sum of numbers in the infos of the step just made; 0 for a row that is not valid and has none.

    With SAME_STEP autoreset a finished row's own info is in ``final_info``; beside it stands that of the reset.

    Args:
        infos: as the vector env gave them, for these rows.
        done: terminated or truncated.
        weights: by the name of a key; ``a/b`` is the key b of the dict under the key a.

    Raises `UsageError` if a valid row has no finite number under a key.
    """
    valid = valid_rows(dict(infos), done)
    final = infos.get("final_info")
    total = np.zeros(len(done))
    for name, weight in weights.items():
        values = _column(infos, name, len(done))
        if done.any():
            values = np.where(done, _column(final if isinstance(final, Mapping) else {}, name, len(done)), values)
        missing = valid & ~np.isfinite(values)
        if missing.any():
            own = [*_numbers(final if isinstance(final, Mapping) and done.all() else infos)]
            raise UsageError(
                f"the infos hold no cost '{name}' for {int(missing.sum())} of {len(done)} rows; expected a finite "
                f"number a step. Numbers there are: {', '.join(own) or 'none'}."
            )
        total += weight * np.where(np.isfinite(values), values, 0.0)
    return total


def _column(infos: Mapping[str, Any], name: str, rows: int) -> NDArray[np.float64]:
    """A key's numbers (N,), NaN where a row has none."""
    head, _, rest = name.partition("/")
    if name not in infos and rest and isinstance(infos.get(head), Mapping):
        return _column(infos[head], rest, rows)
    values = infos.get(name)
    if not _is_number(values):
        return np.full(rows, np.nan)
    present = np.asarray(infos.get(f"_{name}", np.ones(rows, bool)), bool)
    return np.where(present, np.asarray(values, np.float64), np.nan)


def _numbers(infos: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in infos.items():
        if name.startswith("_") or name == "final_info":
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif _is_number(value):
            yield f"{prefix}{name}"


def _is_number(column: Any) -> bool:
    return isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind in "iuf"
