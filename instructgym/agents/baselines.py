"""Agents that do not learn: what a trained instructor has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructgym.agents.base import Agent, Decision
from instructgym.agents.draws import first_uniforms, sample_categorical
from instructgym.errors import ConfigError

__all__ = ["FixedAgent", "RandomAgent", "RoundRobinAgent", "SequenceAgent"]


class RandomAgent(Agent):
    """Uniform over the legal actions. It has no mode, so `deterministic` changes nothing."""

    name = "random"
    observes = False

    def act(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        legal = np.asarray(action_mask, bool)
        actions = sample_categorical(legal.astype(np.float64), first_uniforms(rng))
        return Decision(actions, log_prob=-np.log(legal.sum(axis=1), dtype=np.float32))

    def probabilities(
        self, obs: Any, *, action_mask: NDArray[np.bool_], state: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float64], Any]:
        legal = np.asarray(action_mask, np.float64)
        return legal / legal.sum(axis=1, keepdims=True), None


class SequenceAgent(Agent):
    """Plays `actions` in order, step by step of the episode, and starts over at their end.

    Where the planned action is illegal it takes the lowest legal one. Its state is the step within the episode,
    int64 (N,); a runner of many rows sets a row to 0 where a new episode starts.
    """

    name = "sequence"
    observes = False

    def __init__(self, actions: Sequence[int]) -> None:
        if not actions or any(int(action) != action or action < 0 for action in actions):
            raise ConfigError(f"a sequence of actions {list(actions)}; expected at least one index of 0 or more.")
        self.actions = np.array(actions, np.int64)

    def act(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        actions, steps = self._choose(np.asarray(action_mask, bool), state)
        return Decision(actions, state=steps + 1)

    def probabilities(
        self, obs: Any, *, action_mask: NDArray[np.bool_], state: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float64], Any]:
        legal = np.asarray(action_mask, bool)
        actions, steps = self._choose(legal, state)
        return np.eye(legal.shape[1])[actions], steps + 1

    def _choose(self, legal: NDArray[np.bool_], state: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.actions.max() >= legal.shape[1]:
            raise ConfigError(
                f"agent '{self.name}' plays action {self.actions.max()}, but there are only {legal.shape[1]} actions "
                f"(0 to {legal.shape[1] - 1})."
            )
        steps = _steps(state, len(legal))
        planned = self.actions[steps % len(self.actions)]
        allowed = legal[np.arange(len(legal)), planned]
        return np.where(allowed, planned, legal.argmax(axis=1)), steps


class FixedAgent(SequenceAgent):
    """Always the same action; the lowest legal one where that is illegal."""

    name = "fixed"

    def __init__(self, action: int) -> None:
        super().__init__([action])


class RoundRobinAgent(Agent):
    """Action (step mod A) at each step of the episode, or the next legal one after it in the circle."""

    name = "round_robin"
    observes = False

    def act(
        self,
        obs: Any,
        *,
        action_mask: NDArray[np.bool_],
        rng: Sequence[np.random.Generator],
        state: Any = None,
        deterministic: bool = False,
    ) -> Decision:
        actions, steps = self._choose(np.asarray(action_mask, bool), state)
        return Decision(actions, state=steps + 1)

    def probabilities(
        self, obs: Any, *, action_mask: NDArray[np.bool_], state: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[np.float64], Any]:
        legal = np.asarray(action_mask, bool)
        actions, steps = self._choose(legal, state)
        return np.eye(legal.shape[1])[actions], steps + 1

    def _choose(self, legal: NDArray[np.bool_], state: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, actions = legal.shape
        steps = _steps(state, rows)
        circle = (steps[:, None] + np.arange(actions)) % actions
        offset = legal[np.arange(rows)[:, None], circle].argmax(axis=1)
        return (steps + offset) % actions, steps


def _steps(state: Any, rows: int) -> NDArray[np.int64]:
    return np.zeros(rows, np.int64) if state is None else np.asarray(state, np.int64)
