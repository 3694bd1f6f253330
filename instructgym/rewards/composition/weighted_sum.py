"""The weighted sum of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from instructgym.errors import ConfigError
from instructgym.rewards.base import Reward
from instructgym.rewards.checking import checked_score
from instructgym.rewards.composition.composite import Composite, terms_under
from instructgym.rewards.composition.function import as_reward
from instructgym.rewards.concurrency import gather
from instructgym.types import Score, Transition, Usage

__all__ = ["WeightedSum"]

Missing = Literal["none", "skip"]


class WeightedSum(Composite):
    """``sum of weight * reward``; the rewards are asked at the same time.

    Every reward is reported under its name in this sum, its own terms below that, unweighted. A reward of weight 0 is
    scored and reported, and does not count.

    Args:
        rewards: name -> (reward or function, weight).
        missing: ``none`` makes the sum None if a reward of non-zero weight is; ``skip`` leaves such rewards out and
            scales the rest up to the whole weight (None if nothing is left), so that missing is not the same as 0.
    """

    name = "weighted_sum"
    reward_options = ("rewards",)

    def __init__(
        self,
        rewards: Mapping[str, tuple[Reward | Callable[[Transition], Any], float]],
        missing: Missing = "none",
    ) -> None:
        if not isinstance(rewards, Mapping):
            raise ConfigError(
                f"a weighted sum got a {type(rewards).__name__} as its rewards; expected name -> (reward, weight)."
            )
        if not rewards:
            raise ConfigError("a weighted sum got no rewards; expected at least one name -> (reward, weight).")
        if missing not in get_args(Missing):
            raise ConfigError(f"a weighted sum got missing = {missing!r}; expected 'none' or 'skip'.")
        for name, (_, weight) in rewards.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ConfigError(f"reward '{name}' has weight {weight!r}; expected a finite number.")
        super().__init__({name: as_reward(reward, name) for name, (reward, _) in rewards.items()})
        self._weights = {name: float(weight) for name, (_, weight) in rewards.items()}
        self._missing = missing

    async def score(self, transition: Transition) -> Score:
        scores = await gather(
            [checked_score(name, child, transition) for name, child in self._children.items()], instant=self.instant
        )
        terms: dict[str, float] = {}
        usage, calls, total, present = Usage(), 0, 0.0, 0.0
        absent = False
        for (name, child), score in zip(self._children.items(), scores, strict=True):
            terms |= terms_under(name, child.name, score)
            usage, calls = usage + score.usage, calls + score.calls
            weight = self._weights[name]
            if weight == 0.0:
                continue
            if score.value is None:
                absent = True
            else:
                total += weight * score.value
                present += abs(weight)
        if not absent:
            return Score(total, terms, usage, calls)
        if self._missing == "none" or present == 0.0:
            return Score(None, terms, usage, calls)
        return Score(total * sum(map(abs, self._weights.values())) / present, terms, usage, calls)
