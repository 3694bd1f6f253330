"""A reward within bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from instructgym.errors import ConfigError
from instructgym.rewards.base import Reward
from instructgym.rewards.composition.wrapper import Wrapper
from instructgym.types import Transition

__all__ = ["Clip"]


class Clip(Wrapper):
    """A reward held between `low` and `high`, so that no single term can outweigh all others."""

    name = "clip"

    def __init__(self, reward: Reward | Callable[[Transition], Any], low: float = 0.0, high: float = 1.0) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"clip got low = {low}, high = {high}; expected finite numbers, low below high.")
        super().__init__(reward)
        self._bounds = (float(low), float(high))

    def value_of(self, transition: Transition, value: float) -> tuple[float, Mapping[str, float]]:
        low, high = self._bounds
        return min(max(value, low), high), {}
