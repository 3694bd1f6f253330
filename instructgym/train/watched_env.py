"""The vector env of a run: it ends training when every further call would fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgym.envs.spec import EnvConfig
from instructgym.envs.vector_env import Batch, InstructionEvolutionVectorEnv
from instructgym.train.accounting import CountingBackend

__all__ = ["WatchedVectorEnv"]


class WatchedVectorEnv(InstructionEvolutionVectorEnv):
    """Raises what `counting` calls fatal at the step that met it."""

    def __init__(self, num_envs: int, config: EnvConfig, counting: CountingBackend) -> None:
        super().__init__(num_envs, config)
        self._counting = counting

    def step(self, actions: Any) -> Batch:
        batch = super().step(actions)
        self._watch()
        return batch

    def retry_rows(self, actions: Any, rows: Sequence[int]) -> Batch:
        batch = super().retry_rows(actions, rows)
        self._watch()
        return batch

    def recv(self, min_ready: int = 1) -> Batch:
        batch = super().recv(min_ready)
        self._watch()
        return batch

    def _watch(self) -> None:
        if self._counting.fatal is not None:
            raise self._counting.fatal
