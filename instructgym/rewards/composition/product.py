"""The product of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from instructgym.errors import ConfigError
from instructgym.rewards.base import Reward
from instructgym.rewards.checking import checked_score
from instructgym.rewards.composition.composite import Composite, terms_under
from instructgym.rewards.composition.function import as_reward
from instructgym.rewards.concurrency import gather
from instructgym.types import Score, Transition, Usage

__all__ = ["Product"]


class Product(Composite):
    """The product of rewards, asked at the same time: high only where all of them are.

    Every reward is reported under its name in the product. None if one of them is.

    Args:
        rewards: name -> reward or function.
    """

    name = "product"
    reward_options = ("rewards",)

    def __init__(self, rewards: Mapping[str, Reward | Callable[[Transition], Any]]) -> None:
        if not isinstance(rewards, Mapping):
            raise ConfigError(f"a product got a {type(rewards).__name__} as its rewards; expected name -> reward.")
        if not rewards:
            raise ConfigError("a product got no rewards; expected at least one name -> reward.")
        super().__init__({name: as_reward(reward, name) for name, reward in rewards.items()})

    async def score(self, transition: Transition) -> Score:
        scores = await gather([checked_score(name, child, transition) for name, child in self._children.items()])
        terms: dict[str, float] = {}
        usage, calls = Usage(), 0
        for (name, child), score in zip(self._children.items(), scores, strict=True):
            terms |= terms_under(name, child.name, score)
            usage, calls = usage + score.usage, calls + score.calls
        values = [score.value for score in scores if score.value is not None]
        return Score(math.prod(values) if len(values) == len(scores) else None, terms, usage, calls)
