"""How far a rewrite is from where it comes from, in an encoder's space."""

from __future__ import annotations

import math

from instructgym.errors import ConfigError
from instructgym.rewards.base import Reward
from instructgym.rewards.encoders.base import Encoder
from instructgym.types import Score, Transition

__all__ = ["Novelty"]


class Novelty(Reward):
    """``parent_weight * (1 - cos(child, parent)) + seed_weight * (1 - cos(child, seed))``.

    Each distance is clipped to [0, 1]. Terms: ``novelty/parent`` and ``novelty/seed``, unweighted. Novelty alone pays
    for leaving the subject and for gibberish: gate it, or weigh it below a reward that does not.
    """

    name = "novelty"

    def __init__(self, encoder: Encoder, parent_weight: float = 0.5, seed_weight: float = 0.5) -> None:
        for name, weight in (("parent_weight", parent_weight), ("seed_weight", seed_weight)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"novelty got {name} = {weight}; expected a finite number of 0 or more.")
        self._encoder = encoder
        self._parent_weight = parent_weight
        self._seed_weight = seed_weight

    @property
    def instant(self) -> bool:
        return self._encoder.instant

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        texts = [instruction.render() for instruction in (transition.child, transition.parent, transition.seed)]
        child, parent, seed = await self._encoder.encode(texts)
        from_parent = min(max(1.0 - float(child @ parent), 0.0), 1.0)
        from_seed = min(max(1.0 - float(child @ seed), 0.0), 1.0)
        value = self._parent_weight * from_parent + self._seed_weight * from_seed
        return Score(value, {self.name: value, f"{self.name}/parent": from_parent, f"{self.name}/seed": from_seed})
