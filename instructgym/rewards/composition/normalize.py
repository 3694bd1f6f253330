"""A reward on the scale of what it gave before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructgym.errors import ConfigError
from instructgym.rewards.base import Reward
from instructgym.rewards.composition.pending import Pending
from instructgym.rewards.composition.wrapper import Wrapper
from instructgym.types import Transition

__all__ = ["Normalize"]

_LEAST_STD = 1e-6


class Normalize(Wrapper):
    """A reward in running standard deviations from its running mean, so that rewards of different units can be added.

    Mean and deviation are those of the scores of committed transitions (Welford, population variance). Until
    `min_count` of them are there nothing is changed; while they do not vary, the value is only shifted by the mean. The
    memory is saved with the agent.

    Args:
        center: subtract the mean; without it the sign of a reward stays.
        min_count: committed scores before anything is changed.
        clip: bound of the result on both sides; None is no bound.
    """

    name = "normalize"

    def __init__(
        self,
        reward: Reward | Callable[[Transition], Any],
        *,
        center: bool = True,
        min_count: int = 32,
        clip: float | None = 10.0,
    ) -> None:
        if min_count < 1:
            raise ConfigError(f"normalize got min_count = {min_count}; expected 1 or more.")
        if clip is not None and not clip > 0:
            raise ConfigError(f"normalize got clip = {clip}; expected a number above 0, or none.")
        super().__init__(reward)
        self._center = center
        self._min_count = min_count
        self._clip = math.inf if clip is None else float(clip)
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._version = 0
        self._pending: Pending[float] = Pending()

    def value_of(self, transition: Transition, value: float) -> tuple[float, Mapping[str, float]]:
        self._pending.note(transition, value)
        parts = {"version": float(self._version)}
        if self._count < self._min_count:
            return value, parts
        std = math.sqrt(self._squares / self._count)
        shifted = value - self._mean if self._center else value
        scaled = shifted / std if std > _LEAST_STD else shifted
        return min(max(scaled, -self._clip), self._clip), parts

    def commit(self, transitions: Sequence[Transition]) -> None:
        super().commit(transitions)
        for _, value in self._pending.take(transitions):
            self._count += 1
            delta = value - self._mean
            self._mean += delta / self._count
            self._squares += delta * (value - self._mean)
        self._version += 1

    def own_state(self) -> Mapping[str, Any]:
        return {"count": self._count, "mean": self._mean, "squares": self._squares, "version": self._version}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._count, self._mean = int(state["count"]), float(state["mean"])
        self._squares, self._version = float(state["squares"]), int(state["version"])
