"""ARS of sb3-contrib, with the steps of a vector env counted as they are taken."""

from __future__ import annotations

from typing import Any

from sb3_contrib import ARS

__all__ = ["CountingARS"]


class _Stop(Exception):
    """A callback said that learning is to end."""


class CountingARS(ARS):
    """The same algorithm and the same zip, which ``ARS.load`` reads.

    sb3-contrib counts each step of N envs N times over, and ignores what callbacks say. Here a transition is counted
    once, those included that an env takes while others finish their episodes; callbacks hear of each step of the envs
    once, and one that returns False ends learning. Needs an `SB3VecEnv` below.
    """

    _taken = 0

    def evaluate_candidates(self, candidate_weights: Any, callback: Any, async_eval: Any) -> Any:
        self._taken = self.env.steps_taken
        return super().evaluate_candidates(candidate_weights, callback, async_eval)

    def _trigger_callback(self, _locals: dict[str, Any], _globals: dict[str, Any], callback: Any, n_envs: int) -> None:
        taken = self.env.steps_taken
        if taken == self._taken:  # said of this step before, for another env
            return
        self.num_timesteps += taken - self._taken
        self._taken = taken
        if not callback.on_step():
            raise _Stop

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().learn(*args, **kwargs)
        except _Stop:
            return self

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_taken"]
