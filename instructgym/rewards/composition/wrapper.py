"""What the rewards share that change the value of one other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from instructgym.rewards.base import Reward
from instructgym.rewards.checking import checked_score
from instructgym.rewards.composition.composite import terms_under
from instructgym.rewards.composition.function import as_reward
from instructgym.types import Score, Transition

__all__ = ["Wrapper"]


class Wrapper(Reward):
    """One reward, its value changed: the inner one is reported under its own name, the outcome under this one's.

    The memory holds what `own_state` gives beside the inner reward's.
    """

    reward_options: ClassVar[tuple[str, ...]] = ("reward",)

    def __init__(self, reward: Reward | Callable[[Transition], Any]) -> None:
        self._reward = as_reward(reward)

    def value_of(self, transition: Transition, value: float) -> tuple[float, Mapping[str, float]]:
        """(the value that takes the place of `value`, further terms by their part's name)."""
        raise TypeError(f"{type(self).__name__} does not define value_of()")

    def own_state(self) -> Mapping[str, Any]:
        """This reward's own memory; empty for one without."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `own_state` gave."""
        if state:
            raise ValueError(f"reward '{self.name}' has no memory of its own, but got state for {sorted(state)}")

    async def score(self, transition: Transition) -> Score:
        inner = await checked_score(self._reward.name, self._reward, transition)
        terms = terms_under(self._reward.name, self._reward.name, inner)
        if inner.value is None:
            return Score(None, terms, inner.usage, inner.calls)
        value, parts = self.value_of(transition, inner.value)
        own = {self.name: value} | {f"{self.name}/{part}": term for part, term in parts.items()}
        return Score(value, terms | own, inner.usage, inner.calls)

    def commit(self, transitions: Sequence[Transition]) -> None:
        self._reward.commit(transitions)

    @property
    def instant(self) -> bool:
        return self._reward.instant

    @property
    def remembers(self) -> bool:
        return type(self).commit is not Wrapper.commit or self._reward.remembers

    def state_dict(self) -> Mapping[str, Any]:
        states = {"own": self.own_state(), "reward": self._reward.state_dict()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        strangers = sorted(set(state) - {"own", "reward"})
        if strangers:
            raise ValueError(f"reward '{self.name}' got state for {strangers}; expected 'own' and 'reward'")
        self.load_own_state(state.get("own", {}))
        self._reward.load_state_dict(state.get("reward", {}))
