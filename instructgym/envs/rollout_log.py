"""The transitions of a rollout, kept for a reward with memory until the rollout ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from instructgym.rewards.base import Reward
from instructgym.types import Transition

__all__ = ["RolloutLog"]

logger = logging.getLogger(__name__)

_MANY = 50_000


class RolloutLog:
    """Valid transitions by row. `remembers` is False for a reward without memory: then nothing is kept."""

    def __init__(self, reward: Reward, rows: int) -> None:
        self._reward = reward
        self.remembers = reward.remembers
        self._rows: list[list[Transition]] = [[] for _ in range(rows)]
        self._left = _MANY

    def add(self, row: int, transition: Transition) -> None:
        """Keep the transition of a valid step."""
        if not self.remembers:
            return
        self._rows[row].append(transition)
        self._left -= 1
        if self._left == 0:
            logger.warning(
                "the reward '%s' has a memory, and %d steps wait for it; call end_rollout() after each rollout.",
                self._reward.name,
                _MANY,
            )

    async def commit(self) -> None:
        """Give the rollout to the reward in (row, step) order. Runs on the loop where steps in flight are scored, so
        none of them sees a memory that is half written."""
        if self.remembers:
            rollout: Sequence[Transition] = [transition for row in self._rows for transition in row]
            self._reward.commit(rollout)
        for row in self._rows:
            row.clear()
        self._left = _MANY
