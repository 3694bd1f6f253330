"""The vector env of a run: it ends training when every further call would fail, and feeds rewards with memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgym.envs.spec import EnvConfig
from instructgym.envs.vector_env import Batch, InstructionEvolutionVectorEnv
from instructgym.rewards.base import Reward
from instructgym.train.accounting import CountingBackend
from instructgym.types import Transition

__all__ = ["WatchedVectorEnv"]


class WatchedVectorEnv(InstructionEvolutionVectorEnv):
    """Raises what `counting` calls fatal at the step that met it, and collects the transitions of a rollout."""

    def __init__(self, num_envs: int, config: EnvConfig, counting: CountingBackend, reward: Reward) -> None:
        super().__init__(num_envs, config)
        self._counting = counting
        self._reward = reward
        self._remembers = bool(reward.state_dict())
        self._rollout: list[list[Transition]] = [[] for _ in range(num_envs)]

    def step(self, actions: Any) -> Batch:
        batch = super().step(actions)
        self._watch(range(self.num_envs))
        return batch

    def retry_rows(self, actions: Any, rows: Sequence[int]) -> Batch:
        batch = super().retry_rows(actions, rows)
        self._watch(rows)
        return batch

    def end_rollout(self) -> None:
        """Commit what the rollout brought to the reward's memory, in (env, step) order."""
        if self._remembers:
            self._reward.commit([transition for row in self._rollout for transition in row])
        for row in self._rollout:
            row.clear()

    def _watch(self, rows: Sequence[int]) -> None:
        if self._counting.fatal is not None:
            raise self._counting.fatal
        if self._remembers:
            transitions = self.last_transitions
            for row in rows:
                transition = transitions[row]
                if transition is not None:
                    self._rollout[row].append(transition)
