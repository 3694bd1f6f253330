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
    """Raises what `counting` calls fatal at the step that met it, and collects the transitions of a rollout.

    Steps are counted to the rollout in which they are received. One that is in flight over `end_rollout` belongs to the
    next, and is scored by the memory that the reward has when its score is asked for.
    """

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

    def recv(self, min_ready: int = 1) -> Batch:
        batch = super().recv(min_ready)
        self._watch(batch[-1]["env_id"])
        return batch

    def end_rollout(self) -> None:
        """Commit what the rollout brought to the reward's memory, in (env, step) order."""
        if self._remembers:
            # On the loop, where steps in flight are scored: none of them sees a memory that is half written.
            self._running().call(self._commit, [transition for row in self._rollout for transition in row])
        for row in self._rollout:
            row.clear()

    async def _commit(self, transitions: Sequence[Transition]) -> None:
        self._reward.commit(transitions)

    def _watch(self, rows: Sequence[int]) -> None:
        if self._counting.fatal is not None:
            raise self._counting.fatal
        if self._remembers:
            transitions = self.last_transitions
            for row in rows:
                transition = transitions[row]
                if transition is not None:
                    self._rollout[row].append(transition)
