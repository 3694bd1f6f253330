"""What a rewrite costs, as a reward below zero."""

from __future__ import annotations

import math
from collections.abc import Mapping

from instructgym.errors import ConfigError
from instructgym.metrics.text import count_words
from instructgym.rewards.base import Reward
from instructgym.types import Score, Transition

__all__ = ["OperationCost"]


class OperationCost(Reward):
    """Minus the cost of a rewrite: so much a call, so much for its operation, so much for each 100 words written.

    All costs are in reward units, whatever those of the other rewards are; to price calls, make one reward unit a cent.
    Words written are those of the expert's reply (of the child where a transition has no reply), thrown-away chatter
    included. A call that yielded no rewrite costs as much; but the environment gives an eliminated rewrite its penalty
    and asks no reward, so there the penalty should hold the cost. Stopping makes no call and is not scored. Terms:
    ``operation_cost/call``, ``/operation``, ``/words``, the three parts, each above 0.

    For a limit on calls instead of a price, see the reward "lagrangian".

    Args:
        per_call: of every call.
        costs: operation name -> its cost on top; 0 for one that is not named.
        per_100_words: of each 100 words written, in proportion.
    """

    name = "operation_cost"

    def __init__(
        self,
        *,
        per_call: float = 0.01,
        costs: Mapping[str, float] | None = None,
        per_100_words: float = 0.0,
    ) -> None:
        costs = dict(costs or {})
        given = {"per_call": per_call, "per_100_words": per_100_words}
        given |= {f"costs['{operation}']": cost for operation, cost in costs.items()}
        for name, cost in given.items():
            if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not (math.isfinite(cost) and cost >= 0):
                raise ConfigError(f"operation_cost got {name} = {cost!r}; expected a finite number of 0 or more.")
        if not any(given.values()):
            raise ConfigError("operation_cost got costs of 0 alone; expected at least one above 0.")
        self._per_call = float(per_call)
        self._costs = costs
        self._per_100_words = float(per_100_words)

    def cost_of(self, transition: Transition) -> float:
        """The cost above 0, of an eliminated rewrite too: what the reward "lagrangian" keeps to its limit."""
        return sum(self._parts(transition).values())

    async def score(self, transition: Transition) -> Score:
        parts = self._parts(transition)
        value = -sum(parts.values())
        return Score(value, {self.name: value} | {f"{self.name}/{part}": cost for part, cost in parts.items()})

    def _parts(self, transition: Transition) -> dict[str, float]:
        written = transition.reply
        if not written and transition.child is not None:
            written = transition.child.render()
        return {
            "call": self._per_call,
            "operation": float(self._costs.get(transition.operation, 0.0)),
            "words": self._per_100_words * count_words(written) / 100,
        }
