"""Any Gymnasium vector env as a `VecEnv` of Stable-Baselines3, stepped in one batch rather than env by env."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from instructgym.agents.normaliser import ObservationNormaliser
from instructgym.agents.rollout import action_masks, require_same_step, valid_rows
from instructgym.agents.spaces import Flattener, num_actions, stack_rows
from instructgym.errors import BackendError, UsageError

__all__ = ["FlatNormalisedVecEnv", "SB3VecEnv"]


class SB3VecEnv(VecEnv):
    """`VecEnv` over a `gymnasium.vector.VectorEnv` in SAME_STEP mode.

    Never emits a row whose ``info["valid"]`` is False, for SB3 would learn from it: it repeats the operation of such
    rows from the kept state, through the vector env's ``retry_rows(actions (K,), rows (K,) indices)``, which returns
    what `step` does, for these K rows. After `retries` failures of a row it raises `BackendError`: `learn()` stops.

    Answers ``has_attr("action_masks")`` and ``env_method("action_masks")`` from ``info["action_mask"]`` (all legal
    where the env gives none), as MaskablePPO asks. `steps_taken` counts transitions.
    Episode statistics are `VecMonitor`'s business.
    """

    def __init__(self, vector_env: Any, *, retries: int = 3) -> None:
        require_same_step(vector_env)
        self.vector_env = vector_env
        self.retries = retries
        self.steps_taken = 0
        self._seed: int | None = None
        self._actions: NDArray[np.int64] = np.zeros(vector_env.num_envs, np.int64)
        self._masks: NDArray[np.bool_] | None = None
        super().__init__(vector_env.num_envs, vector_env.single_observation_space, vector_env.single_action_space)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """The seed of the next reset; the vector env derives that of each row."""
        self._seed = seed
        return [None if seed is None else seed + row for row in range(self.num_envs)]

    def reset(self) -> Any:
        obs, infos = self.vector_env.reset(seed=self._seed)
        self._seed = None
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [_row_info(infos, row) for row in range(self.num_envs)]
        self._masks = self._mask_of(infos)
        return obs

    def step_async(self, actions: NDArray[Any]) -> None:
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        obs, rewards, terminated, truncated, infos = self.vector_env.step(self._actions)
        self.steps_taken += self.num_envs
        rows = [_row_info(infos, row) for row in range(self.num_envs)]
        self._masks = self._mask_of(infos)
        failed = np.flatnonzero(~valid_rows(infos, terminated | truncated))
        retries = self.retries
        while len(failed):
            if retries == 0:
                raise BackendError(self._failure(failed, rows))
            retries -= 1
            again = self._retry(failed)
            obs = _put_rows(obs, failed, again[0])
            rewards, terminated, truncated = (np.array(part) for part in (rewards, terminated, truncated))
            rewards[failed], terminated[failed], truncated[failed] = again[1:4]
            masks = self._mask_of(again[4], len(failed))
            if masks is not None or self._masks is not None:
                self._masks = self._current_masks().copy()
                self._masks[failed] = True if masks is None else masks
            for place, row in enumerate(failed):
                rows[row] = _row_info(again[4], place)
            failed = failed[~valid_rows(again[4], again[2] | again[3])]
        return self._emit(obs, rewards, terminated, truncated, rows)

    def _retry(self, rows: NDArray[np.int64]) -> Any:
        retry_rows = getattr(self.vector_env, "retry_rows", None)
        if retry_rows is None:
            raise UsageError(
                f"the step of envs {rows.tolist()} failed (info['valid'] is False), and "
                f"{type(self.vector_env).__name__} has no retry_rows(actions, rows) to repeat it with. "
                "Stable-Baselines3 cannot leave a row out: give the vector env that method, or use agent 'ppo'."
            )
        return retry_rows(self._actions[rows], rows.tolist())

    def _failure(self, failed: NDArray[np.int64], rows: list[dict[str, Any]]) -> str:
        info = rows[failed[0]]
        reason = info.get("final_info", info).get("failure") or "the env gives no reason"
        return (
            f"the step of envs {failed.tolist()} failed and so did {self.retries} repetitions; "
            f"env {failed[0]}: {reason}."
        )

    def _emit(
        self,
        obs: Any,
        rewards: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        rows: list[dict[str, Any]],
    ) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        done = terminated | truncated
        for row in np.flatnonzero(done):
            # What stands beside final_info is of the reset; SB3 wants the info of the step, and keeps the other apart.
            info = rows[row]
            final_obs = info.pop("final_obs")
            own = info.pop("final_info", {})
            self.reset_infos[row] = info
            rows[row] = own | {
                "terminal_observation": final_obs,
                "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
            }
        return obs, np.asarray(rewards, np.float32), done, rows

    def _mask_of(self, infos: dict[str, Any], rows: int | None = None) -> NDArray[np.bool_] | None:
        if "action_mask" not in infos:
            return None
        return action_masks(infos, self.num_envs if rows is None else rows, num_actions(self.action_space))

    def _current_masks(self) -> NDArray[np.bool_]:
        return np.ones((self.num_envs, num_actions(self.action_space)), bool) if self._masks is None else self._masks

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """One value a row. Raises AttributeError if the vector env has no such attribute."""
        rows = self._rows(indices)
        if attr_name == "action_masks":
            return [lambda row=row: self._current_masks()[row] for row in rows]
        if attr_name == "render_mode":
            return [self.vector_env.render_mode for _ in rows]
        if hasattr(self.vector_env, "get_attr"):
            values = self.vector_env.get_attr(attr_name)
            return [values[row] for row in rows]
        value = getattr(self.vector_env, attr_name)
        return [value for _ in rows]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise UsageError(
            f"set_attr('{attr_name}') on an SB3VecEnv; its rows are one batched env. Set it on `vector_env`."
        )

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        rows = self._rows(indices)
        if method_name == "action_masks":
            masks = self._current_masks()
            return [masks[row] for row in rows]
        if not hasattr(self.vector_env, "call"):
            raise AttributeError(f"{type(self.vector_env).__name__} cannot call '{method_name}' on its rows.")
        results = self.vector_env.call(method_name, *method_args, **method_kwargs)
        return [results[row] for row in rows]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._rows(indices)]

    def close(self) -> None:
        self.vector_env.close()

    def _rows(self, indices: Any) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices


class FlatNormalisedVecEnv(VecEnvWrapper):
    """Flat observations as running z-scores, clipped: our observation normaliser in front of an SB3 algorithm."""

    def __init__(self, venv: VecEnv, flatten: Flattener, normaliser: ObservationNormaliser, space: Any) -> None:
        super().__init__(venv, observation_space=space)
        self._flatten = flatten
        self._normaliser = normaliser
        self._single_space = venv.observation_space

    def reset(self) -> Any:
        return self._observe(self.venv.reset())

    def step_wait(self) -> Any:
        obs, rewards, done, infos = self.venv.step_wait()
        seen = self._observe(obs)
        for row in np.flatnonzero(done):
            final = stack_rows(self._single_space, [infos[row]["terminal_observation"]])
            infos[row]["terminal_observation"] = self._normaliser(self._flatten(final))[0]
        return seen, rewards, done, infos

    def _observe(self, obs: Any) -> NDArray[np.float32]:
        flat = self._flatten(obs)
        self._normaliser.update(flat)
        return self._normaliser(flat)


def _row_info(infos: dict[str, Any], row: int) -> dict[str, Any]:
    """The info of one env out of a vector env's."""
    info: dict[str, Any] = {}
    for name, value in infos.items():
        present = infos.get(f"_{name}")
        if (name.startswith("_") and name[1:] in infos) or (present is not None and not present[row]):
            continue
        if isinstance(value, dict):
            info[name] = _row_info(value, row)
        else:
            single = value[row]
            info[name] = single.item() if isinstance(single, np.generic) else single
    return info


def _put_rows(obs: Any, rows: NDArray[np.int64], new: Any) -> Any:
    """`obs` of N rows with those of K `rows` from `new`."""
    if isinstance(obs, dict):
        return {name: _put_rows(part, rows, new[name]) for name, part in obs.items()}
    obs = np.array(obs)
    obs[rows] = new
    return obs
