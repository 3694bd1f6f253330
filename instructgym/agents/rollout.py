"""What a learner sees of a vector env: reading its infos, the rollout buffer, and generalised advantage estimation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from instructgym.errors import UsageError

__all__ = ["Rollout", "action_masks", "gae", "require_same_step", "valid_rows"]


@dataclass
class Rollout:
    """M transitions of N envs in the order in which they came, filled in place by who collects it.

    Envs may have brought different numbers of transitions; those of one env are in the order of its steps, none left
    out. `obs` are flat, as the network saw them when it chose; `log_probs` are of the policy that chose. `next_values`
    are the values of the true successors (of the final observation where an episode ended, never of the reset that
    followed). Where the network has a memory, `obs` holds it beside the observation, as it was before the step.
    `learned` is False where a transition is not to be learned from: not `valid`, or too stale.
    `infos` holds the vector env's infos batch by batch, if someone wants them.
    """

    num_envs: int
    rows: NDArray[np.int64]  # (M,): the env
    times: NDArray[np.int64]  # (M,): how many transitions of the env are before it in this rollout
    obs: NDArray[np.float32]  # (M, D), or (M, D + H) with a memory of H
    raw_obs: NDArray[np.float32]  # (M, D), before normalisation
    masks: NDArray[np.bool_]  # (M, A)
    actions: NDArray[np.int64]  # (M,), like all that follow
    log_probs: NDArray[np.float32]
    values: NDArray[np.float32]
    rewards: NDArray[np.float32]
    next_values: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    staleness: NDArray[np.int64]  # updates between choice and arrival
    learned: NDArray[np.bool_]
    infos: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def empty(cls, size: int, num_envs: int, obs_dim: int, actions: int, memory: int = 0) -> Rollout:
        return cls(
            num_envs=num_envs,
            rows=np.zeros(size, np.int64),
            times=np.zeros(size, np.int64),
            obs=np.zeros((size, obs_dim + memory), np.float32),
            raw_obs=np.zeros((size, obs_dim), np.float32),
            masks=np.ones((size, actions), bool),
            actions=np.zeros(size, np.int64),
            log_probs=np.zeros(size, np.float32),
            values=np.zeros(size, np.float32),
            rewards=np.zeros(size, np.float32),
            next_values=np.zeros(size, np.float32),
            terminated=np.zeros(size, bool),
            truncated=np.zeros(size, bool),
            valid=np.ones(size, bool),
            staleness=np.zeros(size, np.int64),
            learned=np.ones(size, bool),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, size: int) -> Rollout:
        """The first `size` transitions, as views."""
        arrays: dict[str, Any] = {
            name: value[:size] for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        return replace(self, **arrays)

    def grid(self, column: NDArray[Any]) -> NDArray[Any]:  # (M, ...) -> (T, N, ...)
        """A column by (time, env); T is the largest number of transitions of an env, and 0 or False fills the rest."""
        grid = np.zeros((int(self.times.max()) + 1, self.num_envs, *column.shape[1:]), column.dtype)
        grid[self.times, self.rows] = column
        return grid

    def advantages(self, gamma: float, gae_lambda: float) -> NDArray[np.float32]:  # (M,)
        """`gae` of each env's transitions on their own; 0 for those that are not learned from."""
        columns = (self.rewards, self.values, self.next_values, self.terminated, self.truncated, self.learned)
        grids = [self.grid(column) for column in columns]
        return gae(*grids, gamma=gamma, gae_lambda=gae_lambda)[self.times, self.rows]


def gae(
    rewards: NDArray[Any],
    values: NDArray[Any],
    next_values: NDArray[Any],
    terminated: NDArray[np.bool_],
    truncated: NDArray[np.bool_],
    valid: NDArray[np.bool_],
    *,
    gamma: float,
    gae_lambda: float,
) -> NDArray[np.float32]:  # each (T, N) -> (T, N)
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    A terminated row does not bootstrap, a truncated one bootstraps from its next value; neither takes advantage from
    the row after it, which belongs to another episode. An invalid row gets advantage 0 and passes none on: the row
    before it bootstraps from its own next value, which is the value of the state in which the call failed.
    """
    deltas = rewards + gamma * np.where(terminated, 0.0, next_values) - values
    carried = np.where(terminated | truncated, 0.0, gamma * gae_lambda)
    advantages = np.zeros(rewards.shape, np.float32)
    running = np.zeros(rewards.shape[1:], np.float64)
    for t in reversed(range(len(rewards))):
        running = np.where(valid[t], deltas[t] + carried[t] * running, 0.0)
        advantages[t] = running
    return advantages


def require_same_step(vector_env: Any) -> None:
    """Raise `UsageError` unless the vector env resets in the same step."""
    mode = (getattr(vector_env, "metadata", None) or {}).get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise UsageError(
            f"vector env of autoreset mode {getattr(mode, 'value', mode)}; expected SameStep. Make it with "
            'vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}.'
        )


def action_masks(infos: dict[str, Any], envs: int, actions: int) -> NDArray[np.bool_] | None:
    """``infos["action_mask"]`` as bool (N, A), or None where every action of every row is legal.

    A batch of some rows only (of `recv`) names them in ``infos["env_id"]``.

    Raises `UsageError` for another shape, and for a row without a legal action.
    """
    given = infos.get("action_mask")
    if given is None:
        return None
    present = infos.get("_action_mask")
    if np.asarray(given).dtype.kind == "O":
        given = np.stack([np.ones(actions, bool) if row is None else np.asarray(row, bool) for row in given])
    masks = np.asarray(given, bool)
    if masks.shape != (envs, actions):
        raise UsageError(f"info['action_mask'] of shape {masks.shape}; expected ({envs}, {actions}).")
    if present is not None and not np.all(present):
        masks = masks | ~np.asarray(present, bool)[:, None]
    if not masks.any(axis=1).all():
        row = int(np.argmin(masks.any(axis=1)))
        row = infos["env_id"][row] if "env_id" in infos else row
        raise UsageError(f"info['action_mask'] of env {row} allows no action; expected at least one.")
    return None if masks.all() else masks


def valid_rows(infos: dict[str, Any], done: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``info["valid"]`` of the step just made, (N,); True where the env says nothing.

    With SAME_STEP autoreset a finished row's own info is in ``final_info``; beside it stands that of the reset.
    """
    valid = _flags(infos, done.shape)
    final = infos.get("final_info")
    if isinstance(final, dict) and "valid" in final:
        valid = np.where(done, _flags(final, done.shape), valid)
    return valid


def _flags(infos: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    given = infos.get("valid")
    if given is None:
        return np.ones(shape, bool)
    present = infos.get("_valid")
    flags = np.asarray(given, bool)
    return flags if present is None else flags | ~np.asarray(present, bool)
