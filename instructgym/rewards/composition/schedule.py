"""A reward that comes in, or goes out, while an instructor learns."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructgym.errors import ConfigError
from instructgym.rewards.base import Reward
from instructgym.rewards.composition.wrapper import Wrapper
from instructgym.types import Transition

__all__ = ["Schedule"]


class Schedule(Wrapper):
    """A reward times a factor that depends on how many transitions were committed, linear between `points`.

    Args:
        points: (transitions, factor) pairs, transitions ascending; outside of them the factor stays as at the end.
    """

    name = "schedule"

    def __init__(self, reward: Reward | Callable[[Transition], Any], points: Sequence[Sequence[float]]) -> None:
        pairs = [tuple(point) for point in points]
        if not pairs or any(len(pair) != 2 or not all(map(math.isfinite, pair)) for pair in pairs):
            raise ConfigError(f"schedule got points = {points!r}; expected (transitions, factor) pairs.")
        steps = [float(pair[0]) for pair in pairs]
        if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise ConfigError(f"schedule got points at {steps}; expected ascending numbers of transitions.")
        super().__init__(reward)
        self._steps = steps
        self._factors = [float(pair[1]) for pair in pairs]
        self._seen = 0

    @property
    def factor(self) -> float:
        """The factor as of the last commit."""
        after = bisect.bisect_right(self._steps, self._seen)
        if after == 0:
            return self._factors[0]
        if after == len(self._steps):
            return self._factors[-1]
        start, end = self._steps[after - 1], self._steps[after]
        share = (self._seen - start) / (end - start)
        return self._factors[after - 1] * (1.0 - share) + self._factors[after] * share

    def value_of(self, transition: Transition, value: float) -> tuple[float, Mapping[str, float]]:
        factor = self.factor
        return factor * value, {"factor": factor}

    def commit(self, transitions: Sequence[Transition]) -> None:
        super().commit(transitions)
        self._seen += len(transitions)

    def own_state(self) -> Mapping[str, Any]:
        return {"seen": self._seen}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._seen = int(state["seen"])
