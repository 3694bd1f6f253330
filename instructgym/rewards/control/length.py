"""Length held in check: a price on words beyond a cap, and a reward without the part that length explains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructgym.errors import ConfigError
from instructgym.metrics.text import count_words
from instructgym.rewards.base import Reward
from instructgym.rewards.composition.pending import Pending
from instructgym.rewards.composition.wrapper import Wrapper
from instructgym.types import Instruction, Score, Transition

__all__ = ["LengthCap", "LengthResidual"]

_LEAST_VARIANCE = 1e-9


class LengthCap(Reward):
    """0.0 up to a cap, then minus `rate` for each word of the rewrite beyond it; no bound below.

    Words are those of instruction and input together. Terms: ``length_cap/words`` and ``length_cap/excess`` (words).

    Args:
        max_growth: words that the child may have more than its parent; None for no such cap. The 30 of the default
            leave room above the 10 to 20 words that Evol-Instruct's prompts ask for (2304.12244).
        max_words: words that the child may have at all; None for no such cap. The tighter of both counts.
        rate: reward units a word.
    """

    name = "length_cap"

    def __init__(self, *, max_growth: int | None = 30, max_words: int | None = None, rate: float = 0.01) -> None:
        if max_growth is None and max_words is None:
            raise ConfigError("length_cap got neither max_growth nor max_words; expected at least one of them.")
        for name, value in (("max_growth", max_growth), ("max_words", max_words)):
            if value is not None and not value >= 0:
                raise ConfigError(f"length_cap got {name} = {value}; expected 0 or more words.")
        if not (math.isfinite(rate) and rate > 0):
            raise ConfigError(f"length_cap got rate = {rate}; expected a number above 0, in reward units a word.")
        self._max_growth = math.inf if max_growth is None else max_growth
        self._max_words = math.inf if max_words is None else max_words
        self._rate = rate

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        words = _words(transition.child)
        cap = min(_words(transition.parent) + self._max_growth, self._max_words)
        excess = max(words - cap, 0.0)
        value = -self._rate * excess if excess else 0.0
        return Score(
            value, {self.name: value, f"{self.name}/words": float(words), f"{self.name}/excess": float(excess)}
        )


class LengthResidual(Wrapper):
    """A reward without the part of it that the growth in length explains: ``y - slope * (x - mean of x)``.

    ``x = log(words of the child / words of the parent)``, input included, and `slope` is the least-squares slope of the
    rewards ``y`` on it over all committed transitions. So over those the result has the mean of ``y`` and no
    correlation with ``x``. Until `min_count` of them are committed, and while ``x`` does not vary, nothing is
    subtracted. What was learned in a run's early rollouts is never forgotten.

    The inner reward keeps its terms under its own name. Terms: ``length_residual/growth`` (x), ``/slope``, ``/version``
    (commits so far). The memory is saved with the agent.
    """

    name = "length_residual"

    def __init__(self, reward: Reward | Callable[[Transition], Any], *, min_count: int = 50) -> None:
        if min_count < 2:
            raise ConfigError(f"length_residual got min_count = {min_count}; expected 2 or more, for a slope.")
        super().__init__(reward)
        self._min_count = min_count
        self._count, self._version = 0, 0
        self._mean_x, self._mean_y = 0.0, 0.0
        self._squares, self._products = 0.0, 0.0  # sums of (x - mean)^2 and of (x - mean)(y - mean)
        self._pending: Pending[float] = Pending()

    def value_of(self, transition: Transition, value: float) -> tuple[float, Mapping[str, float]]:
        if transition.child is None:
            return value, {}
        self._pending.note(transition, value)
        growth, slope = _growth(transition.child, transition.parent), self._slope()
        parts = {"growth": growth, "slope": slope, "version": float(self._version)}
        return value - slope * (growth - self._mean_x), parts

    def commit(self, transitions: Sequence[Transition]) -> None:
        super().commit(transitions)
        for transition, value in self._pending.take(transitions):
            if transition.child is not None:
                self._learn(_growth(transition.child, transition.parent), value)
        self._version += 1

    def own_state(self) -> Mapping[str, Any]:
        return {
            "count": self._count,
            "mean_x": self._mean_x,
            "mean_y": self._mean_y,
            "squares": self._squares,
            "products": self._products,
            "version": self._version,
        }

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._count, self._version = int(state["count"]), int(state["version"])
        self._mean_x, self._mean_y = float(state["mean_x"]), float(state["mean_y"])
        self._squares, self._products = float(state["squares"]), float(state["products"])

    def _slope(self) -> float:
        if self._count < self._min_count or self._squares / self._count < _LEAST_VARIANCE:
            return 0.0
        return self._products / self._squares

    def _learn(self, x: float, y: float) -> None:
        """Welford's update: no difference of large sums."""
        self._count += 1
        from_mean = x - self._mean_x
        self._mean_x += from_mean / self._count
        self._mean_y += (y - self._mean_y) / self._count
        self._squares += from_mean * (x - self._mean_x)
        self._products += from_mean * (y - self._mean_y)


def _words(instruction: Instruction) -> int:
    return count_words(instruction.render())


def _growth(child: Instruction, parent: Instruction) -> float:
    return math.log(max(_words(child), 1) / max(_words(parent), 1))
