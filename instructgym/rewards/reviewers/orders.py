"""Two texts are asked about in both orders, because judges favour a place (arXiv 2306.05685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from instructgym.errors import ConfigError
from instructgym.types import Score, Usage

__all__ = ["BothOrders", "Orders", "check_orders"]

Orders = Literal["both", "forward"]


@dataclass(frozen=True, slots=True)
class BothOrders:
    """What a reviewer said of a pair: the value of the orders together, and of each; None where it is missing.

    `disagree` is None unless both orders could be read. `unparsable` counts replies.
    """

    value: float | None
    forward: float | None
    backward: float | None
    disagree: bool | None
    usage: Usage
    calls: int
    unparsable: int
    from_logprobs: bool

    def score(self, name: str, *, logprobs: bool) -> Score:
        """The score of a reward `name`, with the orders as terms; ``/from_logprobs`` if they were asked for."""
        found = {
            name: self.value,
            f"{name}/forward": self.forward,
            f"{name}/backward": self.backward,
            f"{name}/disagree": None if self.disagree is None else float(self.disagree),
            f"{name}/unparsable": float(self.unparsable),
        }
        if logprobs and self.value is not None:
            found[f"{name}/from_logprobs"] = float(self.from_logprobs)
        terms = {key: value for key, value in found.items() if value is not None}
        return Score(self.value, terms, self.usage, self.calls)


def check_orders(name: str, orders: Orders) -> Orders:
    """`orders`, or a `ConfigError` that names the reward."""
    if orders not in get_args(Orders):
        raise ConfigError(f"{name} got orders = {orders!r}; expected 'both' or 'forward'.")
    return orders
