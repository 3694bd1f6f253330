"""Rewards made of rewards, and rewards made of functions."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from instructgym.errors import ConfigError, InstructGymError
from instructgym.rewards.base import Reward
from instructgym.rewards.checking import checked_score, raised, single_float
from instructgym.rewards.concurrency import gather
from instructgym.types import Score, Transition, Usage

__all__ = ["FunctionReward", "Gate", "WeightedSum", "as_reward"]

Missing = Literal["none", "skip"]


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


def as_reward(reward: Reward | Callable[[Transition], Any], name: str | None = None) -> Reward:
    """A reward as it is, a function wrapped. Raises `ConfigError` for anything else."""
    if isinstance(reward, Reward):
        return reward
    if callable(reward) and not isinstance(reward, type):
        return FunctionReward(reward, name)
    raise ConfigError(f"got {reward!r} as a reward; expected a Reward or a function of a transition.")


class _Composite(Reward):
    """Rewards by name: memory goes to and comes from each of them."""

    def __init__(self, children: Mapping[str, Reward]) -> None:
        self._children = dict(children)

    def commit(self, transitions: Sequence[Transition]) -> None:
        for child in self._children.values():
            child.commit(transitions)

    def state_dict(self) -> Mapping[str, Any]:
        states = {name: child.state_dict() for name, child in self._children.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        strangers = sorted(set(state) - set(self._children))
        if strangers:
            raise ValueError(f"reward '{self.name}' got state for {strangers}; it holds {sorted(self._children)}")
        for name, child in self._children.items():
            child.load_state_dict(state.get(name, {}))


class WeightedSum(_Composite):
    """``sum of weight * reward``; the rewards are asked at the same time.

    Every reward is reported under its name in this sum, its own terms below that, unweighted. A reward of weight 0 is
    scored and reported, and does not count.

    Args:
        rewards: name -> (reward or function, weight).
        missing: ``none`` makes the sum None if a reward of non-zero weight is; ``skip`` leaves such rewards out and
            scales the rest up to the whole weight (None if nothing is left), so that missing is not the same as 0.
    """

    name = "sum"

    def __init__(
        self,
        rewards: Mapping[str, tuple[Reward | Callable[[Transition], Any], float]],
        missing: Missing = "none",
    ) -> None:
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
        scores = await gather([checked_score(name, child, transition) for name, child in self._children.items()])
        terms: dict[str, float] = {}
        usage, calls, total, present = Usage(), 0, 0.0, 0.0
        absent = False
        for (name, child), score in zip(self._children.items(), scores, strict=True):
            terms |= _terms_under(name, child.name, score)
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


class Gate(_Composite):
    """`reward` where `validity` is at least `threshold`, else 0.0; None where validity is missing.

    A closed gate does not ask `reward`, so an invalid rewrite costs no call and the terms of `reward` are absent.
    The term ``gate`` is 1.0 where it is open and 0.0 where it is closed.
    """

    name = "gate"

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
        terms = _terms_under(self._validity.name, self._validity.name, validity)
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


def _terms_under(name: str, own_name: str, score: Score) -> dict[str, float]:
    """A reward's terms re-rooted from its own name to the one it has in a composite."""
    terms: dict[str, float] = {}
    for key, term in score.terms.items():
        if key == own_name:
            continue
        rest = key.removeprefix(f"{own_name}/")
        terms[f"{name}/{rest}"] = term
    if score.value is not None:
        terms[name] = score.value
    return terms
