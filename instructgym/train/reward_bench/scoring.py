"""Scoring many transitions, and what that took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from instructgym.errors import BackendError
from instructgym.rewards.base import Reward
from instructgym.rewards.checking import checked_score
from instructgym.train.bounded import ENDS_THE_RUN, map_bounded
from instructgym.types import Score, Transition, Usage

__all__ = ["Scored", "score_all"]


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores in the order of the transitions, and the sums over them. `failed` calls are missing scores."""

    scores: tuple[Score, ...]
    seconds: float
    failed: int

    @property
    def values(self) -> list[float | None]:
        return [score.value for score in self.scores]

    @property
    def calls(self) -> int:
        return sum(score.calls for score in self.scores)

    @property
    def usage(self) -> Usage:
        return sum((score.usage for score in self.scores), Usage())


async def score_all(name: str, reward: Reward, transitions: Sequence[Transition], *, width: int) -> Scored:
    """Score `transitions`, at most `width` at the same time. Raises `RewardError`, and what ends every run."""
    failed = 0

    async def one(transition: Transition) -> Score:
        nonlocal failed
        try:
            return await checked_score(name, reward, transition)
        except ENDS_THE_RUN:
            raise
        except BackendError:
            failed += 1
            return Score(None)

    started = time.perf_counter()
    scores = await map_bounded(one, list(transitions), width=width)
    return Scored(tuple(scores), time.perf_counter() - started, failed)
