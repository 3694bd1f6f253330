"""A plain function as a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from instructgym.errors import ConfigError, InstructGymError
from instructgym.rewards.base import Reward
from instructgym.rewards.checking import raised, single_float
from instructgym.types import Score, Transition

__all__ = ["FunctionReward", "as_reward"]


class FunctionReward(Reward):
    """A plain function ``(transition) -> float``, sync or async; None means missing, and a `Score` is taken as it is.

    A sync function runs on the event loop: one that computes for more than a millisecond, or waits, should be async
    and leave the loop (``await asyncio.to_thread(...)``).
    """

    def __init__(self, function: Callable[[Transition], Any], name: str | None = None) -> None:
        self._function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))

    async def score(self, transition: Transition) -> Score:
        try:
            value = self._function(transition)
            if inspect.isawaitable(value):
                value = await value
        except InstructGymError:
            raise
        except Exception as error:
            raise raised(self.name, error, transition) from error
        if isinstance(value, Score):
            return value
        if value is None:
            return Score(None)
        number = single_float(self.name, value, transition)
        return Score(number, {self.name: number})

    def cost_of(self, transition: Transition) -> float:
        """The function's value at once, where it serves as a cost. Raises `RewardError` for an async function."""
        value = self._function(transition)
        if inspect.iscoroutine(value):
            value.close()
        return single_float(self.name, value, transition)


def as_reward(reward: Reward | Callable[[Transition], Any], name: str | None = None) -> Reward:
    """A reward as it is, a function wrapped. Raises `ConfigError` for anything else."""
    if isinstance(reward, Reward):
        return reward
    if callable(reward) and not isinstance(reward, type):
        return FunctionReward(reward, name)
    if isinstance(reward, Mapping):
        raise ConfigError(
            f"got the rewards {list(reward)} where one is expected; put them together with type = 'weighted_sum' or "
            "'product'."
        )
    raise ConfigError(f"got {reward!r} as a reward; expected a Reward or a function of a transition.")
