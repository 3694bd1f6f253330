"""A reward behind a gate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from instructgym.errors import ConfigError
from instructgym.rewards.base import Reward
from instructgym.rewards.checking import checked_score
from instructgym.rewards.composition.composite import Composite, terms_under
from instructgym.rewards.composition.function import as_reward
from instructgym.types import Score, Transition

__all__ = ["Gate"]


class Gate(Composite):
    """`reward` where `validity` is at least `threshold`, else 0.0; None where validity is missing.

    A closed gate does not ask `reward`, so an invalid rewrite costs no call and the terms of `reward` are absent.
    The term ``gate`` is 1.0 where it is open and 0.0 where it is closed.
    """

    name = "gate"
    reward_options = ("validity", "reward")

    def __init__(
        self,
        validity: Reward | Callable[[Transition], Any],
        reward: Reward | Callable[[Transition], Any],
        threshold: float = 0.5,
    ) -> None:
        if not math.isfinite(threshold):
            raise ConfigError(f"a gate got threshold = {threshold}; expected a finite number.")
        self._validity = as_reward(validity)
        self._reward = as_reward(reward)
        super().__init__({"validity": self._validity, "gated": self._reward})
        self._threshold = threshold

    async def score(self, transition: Transition) -> Score:
        validity = await checked_score(self._validity.name, self._validity, transition)
        terms = terms_under(self._validity.name, self._validity.name, validity)
        if validity.value is None:
            return Score(None, terms, validity.usage, validity.calls)
        if validity.value < self._threshold:
            return Score(0.0, terms | {"gate": 0.0}, validity.usage, validity.calls)
        score = await checked_score(self._reward.name, self._reward, transition)
        return Score(
            score.value,
            {**terms, **score.terms} | {"gate": 1.0},
            validity.usage + score.usage,
            validity.calls + score.calls,
        )
