"""Whether a rewrite keeps to the subject it came from."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, get_args

from instructgym.errors import ConfigError
from instructgym.rewards.base import Reward
from instructgym.rewards.control.validity import relatedness, topic_test
from instructgym.rewards.encoders.base import Encoder
from instructgym.types import Score, Transition

__all__ = ["Relevance"]

To = Literal["seed", "parent", "both"]


class Relevance(Reward):
    """1.0 where the cosine to the seed is `high` or more, 0.0 where it is `low` or less, linear between.

    An operation that is meant to leave the subject is exempt and gets 1.0, with the term ``relevance/exempt``. Once a
    chain has left its seed by such an operation, every later step is far from the seed too, and a transition does not
    tell why: with one in the action set, take ``to = "parent"``. Terms: ``relevance/seed`` and ``relevance/parent``,
    cosines, of those that were asked for; texts are compared with and without their inputs, the larger counts.

    Args:
        encoder: gives the cosines.
        to: ``seed``, ``parent``, or ``both`` (the smaller cosine counts).
        low: None takes the encoder's `related_cosine`.
        high: None takes the middle between `low` and 1.
        changes_topic: operations that are meant to leave the subject: their names, or a function of a name.
    """

    name = "relevance"

    def __init__(
        self,
        encoder: Encoder,
        *,
        to: To = "seed",
        low: float | None = None,
        high: float | None = None,
        changes_topic: Collection[str] | Callable[[str], bool] = ("breadth",),
    ) -> None:
        if to not in get_args(To):
            raise ConfigError(f"relevance got to = {to!r}; expected 'seed', 'parent' or 'both'.")
        lower = encoder.related_cosine if low is None else low
        upper = (1.0 + lower) / 2 if high is None else high
        if not -1.0 <= lower < upper <= 1.0:
            raise ConfigError(f"relevance got low = {lower}, high = {upper}; expected -1 <= low < high <= 1.")
        self._encoder = encoder
        self._sides = ("seed", "parent") if to == "both" else (to,)
        self._low, self._high = lower, upper
        self._changes_topic = topic_test(self.name, changes_topic)

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        if self._changes_topic(transition.operation):
            return Score(1.0, {self.name: 1.0, f"{self.name}/exempt": 1.0})
        origins = {"seed": transition.seed, "parent": transition.parent}
        cosines = {side: await relatedness(self._encoder, transition.child, origins[side]) for side in self._sides}
        share = (min(cosines.values()) - self._low) / (self._high - self._low)
        value = min(max(share, 0.0), 1.0)
        return Score(value, {self.name: value} | {f"{self.name}/{side}": cosine for side, cosine in cosines.items()})
