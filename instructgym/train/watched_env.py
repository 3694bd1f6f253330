"""The vector env of a run: it ends training when every further call would fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructgym.envs.spec import EnvConfig
from instructgym.envs.vector_env import Batch, InstructionEvolutionVectorEnv
from instructgym.train.accounting import CountingBackend
from instructgym.train.chains import DIGITS

__all__ = ["CallsSpent", "WatchedVectorEnv"]


class CallsSpent(Exception):
    """The next step could exceed `max_calls`. Ends training, and is no fault."""


class WatchedVectorEnv(InstructionEvolutionVectorEnv):
    """Raises what `counting` calls fatal at the step that met it, and `CallsSpent` before `max_calls` are exceeded.

    `calls` counts logical expert requests so far, `steps` the rows that were stepped; a retried row counts again.
    `episodes` holds (calls so far, episode reward) of each episode that came to its end: a learning curve that is the
    same thing for every algorithm, whatever its rollouts are.
    """

    def __init__(
        self, num_envs: int, config: EnvConfig, counting: CountingBackend, *, max_calls: int | None = None
    ) -> None:
        super().__init__(num_envs, config)
        self._counting = counting
        self.max_calls = max_calls
        self.calls = 0
        self.steps = 0
        self.episodes: list[tuple[int, float]] = []
        self._returns = np.zeros(num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        mask = (options or {}).get("reset_mask")
        self._returns[slice(None) if mask is None else mask] = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, actions: Any) -> Batch:
        self._allow(self.num_envs)
        batch = super().step(actions)
        self._watch()
        return batch

    def send(self, actions: Any, rows: Sequence[int] | None = None) -> None:
        self._allow(len(self._flights) + (self.num_envs if rows is None else len(rows)))
        super().send(actions, rows)

    def retry_rows(self, actions: Any, rows: Sequence[int]) -> Batch:
        self._allow(len(rows))
        batch = super().retry_rows(actions, rows)
        self._watch()
        return batch

    def recv(self, min_ready: int = 1) -> Batch:
        batch = super().recv(min_ready)
        self._watch()
        return batch

    def _take(self, steps: Sequence[Any], *, name_rows: bool) -> Batch:
        self.calls += sum(landed.outcome.calls for landed in steps)
        self.steps += len(steps)
        for landed in steps:
            row, outcome = landed.job.row, landed.outcome
            self._returns[row] += outcome.reward or 0.0
            if outcome.valid and (outcome.terminated or landed.truncated):
                self.episodes.append((self.calls, round(float(self._returns[row]), DIGITS)))
            if outcome.terminated or (landed.truncated and outcome.valid):
                self._returns[row] = 0.0
        return super()._take(steps, name_rows=name_rows)

    def _allow(self, rows: int) -> None:
        if self.max_calls is not None and self.calls + rows > self.max_calls:
            raise CallsSpent(f"{self.calls} of {self.max_calls} calls are used, and {rows} more could be asked")

    def _watch(self) -> None:
        if self._counting.fatal is not None:
            raise self._counting.fatal
