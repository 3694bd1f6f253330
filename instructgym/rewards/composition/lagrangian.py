"""A reward under a limit on what an episode costs, in the form of safe RL."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from instructgym.errors import ConfigError, InstructGymError
from instructgym.rewards.base import Reward
from instructgym.rewards.checking import raised, single_float
from instructgym.rewards.composition.wrapper import Wrapper
from instructgym.types import Transition

__all__ = ["Cost", "Lagrangian"]


@runtime_checkable
class Cost(Protocol):
    """What a transition costs, from the transition alone, accepted or not; 0 or more."""

    def cost_of(self, transition: Transition) -> float: ...


class Lagrangian(Wrapper):
    """``reward - multiplier * cost``, the multiplier learned so that an episode's mean cost keeps to `limit`.

    The Lagrangian of a constrained MDP (Altman 1999) with dual ascent at each commit (Ray et al. 2019, "Benchmarking
    safe exploration"): ``multiplier = max(0, multiplier + learning_rate * (cost an episode - limit))``. Costs count for
    every committed transition, eliminated or not; an eliminated one earns the environment's penalty and is not charged
    here. With `rescale` the value is divided by ``1 + multiplier``, which keeps its size while the multiplier grows.

    Args:
        cost: an object with ``cost_of`` ("operation_cost") or a function of a transition.
        limit: the mean cost allowed an episode, in the cost's unit.
        learning_rate: of the multiplier, a commit.
        multiplier: what it starts from.
    """

    name = "lagrangian"
    reward_options = ("reward", "cost")

    def __init__(
        self,
        reward: Reward | Callable[[Transition], Any],
        cost: Cost | Callable[[Transition], float],
        limit: float,
        *,
        learning_rate: float = 0.05,
        multiplier: float = 0.0,
        max_multiplier: float = 100.0,
        rescale: bool = True,
    ) -> None:
        for name, value in (("limit", limit), ("multiplier", multiplier), ("max_multiplier", max_multiplier)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"lagrangian got {name} = {value}; expected a finite number of 0 or more.")
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise ConfigError(f"lagrangian got learning_rate = {learning_rate}; expected a number above 0.")
        if multiplier > max_multiplier:
            raise ConfigError(
                f"lagrangian got multiplier = {multiplier}, max_multiplier = {max_multiplier}; expected no more."
            )
        super().__init__(reward)
        if isinstance(cost, Cost):
            self._cost_of: Callable[[Transition], Any] = cost.cost_of
        elif callable(cost):
            self._cost_of = cost
        else:
            raise ConfigError(
                f"lagrangian got {type(cost).__name__} as its cost; expected 'operation_cost' or a plain function of a "
                "transition: a cost must be known without asking anybody."
            )
        self._limit = limit
        self._learning_rate = learning_rate
        self._multiplier = float(multiplier)
        self._most = max_multiplier
        self._rescale = rescale

    @property
    def multiplier(self) -> float:
        """The price of a unit of cost, as of the last commit."""
        return self._multiplier

    def cost_of(self, transition: Transition) -> float:
        """The transition's cost, checked. Raises `RewardError` for what is not one finite number."""
        try:
            cost = self._cost_of(transition)
        except InstructGymError:
            raise
        except Exception as error:
            raise raised(f"{self.name}' in its cost", error, transition) from error
        return single_float(f"{self.name}' in its cost", cost, transition)

    def value_of(self, transition: Transition, value: float) -> tuple[float, Mapping[str, float]]:
        cost = self.cost_of(transition)
        priced = value - self._multiplier * cost
        if self._rescale:
            priced /= 1.0 + self._multiplier
        return priced, {"cost": cost, "multiplier": self._multiplier}

    def commit(self, transitions: Sequence[Transition]) -> None:
        super().commit(transitions)
        if not transitions:
            return
        # A rollout cuts episodes; those that began in it are as many as those that its steps are worth, on the mean.
        episodes = sum(transition.step == 0 for transition in transitions) or len(transitions) / transitions[0].horizon
        an_episode = sum(map(self.cost_of, transitions)) / episodes
        step = self._learning_rate * (an_episode - self._limit)
        self._multiplier = min(max(0.0, self._multiplier + step), self._most)

    def own_state(self) -> Mapping[str, Any]:
        return {"multiplier": self._multiplier}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._multiplier = float(state["multiplier"])
