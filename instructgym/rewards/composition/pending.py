"""What was scored since the last commit, for rewards that learn from their own scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from instructgym.types import Transition

__all__ = ["Pending"]

V = TypeVar("V")

MOST = 200_000
"""Transitions remembered at most: an evaluation scores and never commits."""


class Pending(Generic[V]):
    """Values by transition, kept from `score` to `commit`. No score reads them, so scoring stays pure."""

    def __init__(self) -> None:
        self._values: dict[Transition, V] = {}
        self._earlier: dict[Transition, V] = {}

    def note(self, transition: Transition, value: V) -> None:
        """Remember what `transition` was given; the oldest is forgotten where there are too many."""
        if len(self._values) >= MOST:
            del self._values[next(iter(self._values))]
        self._values[transition] = value

    def take(self, transitions: Iterable[Transition]) -> list[tuple[Transition, V]]:
        """The remembered of `transitions` in their order, which are forgotten, and whatever waited for a commit before.

        Others stay for one commit more: a step in flight is scored before a commit and belongs to the next.
        """
        known = self._earlier | self._values
        found = [(transition, known[transition]) for transition in transitions if transition in known]
        taken = {transition for transition, _ in found}
        self._earlier = {transition: value for transition, value in self._values.items() if transition not in taken}
        self._values = {}
        return found
