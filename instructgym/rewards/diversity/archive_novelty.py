"""How far a rewrite is from everything kept so far."""

from __future__ import annotations

from instructgym.rewards.archive.remembering import ArchiveReward
from instructgym.rewards.encoders.base import Encoder
from instructgym.types import Score, Transition

__all__ = ["ArchiveNovelty"]


class ArchiveNovelty(ArchiveReward):
    """The mean of 1 - cosine to the k nearest of all rewrites kept so far (novelty search, Lehman and Stanley 2011).

    Seed and parent count as kept, so that a fresh archive pays for leaving them and no more. Each distance is clipped
    to [0, 1]. A rewrite without a direction (the encoder knows no character of it) has no value. Like all novelty it
    pays for gibberish and for leaving the subject: gate it. The memory is as of the last commit, so that all steps of a
    rollout are scored alike; it makes the reward change while an instructor learns.

    Args:
        encoder: gives the vectors.
        k: neighbours; with fewer kept, those there are.

    Terms: ``/nearest``, the distance to the nearest alone, ``/version`` and ``/size`` of the memory.
    """

    name = "archive_novelty"

    def __init__(self, encoder: Encoder, *, k: int = 5) -> None:
        super().__init__(encoder, k=k)

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        texts = [each.render() for each in (transition.child, transition.parent, transition.seed)]
        child, parent, seed = await self._encoder.encode(texts)
        if not child.any():
            return Score(None, self.facts)
        # One query at a time: at a million it is well below a millisecond, and a batched product rounds its last bits
        # otherwise, so that a score would hang on who else was waiting.
        _, kept = self.archive.nearest(child[None], self._k)
        own = [float(child @ parent)] + ([float(child @ seed)] if texts[1] != texts[2] else [])
        cosines = sorted([*kept[0].tolist(), *own], reverse=True)[: self._k]
        distances = [min(max(1.0 - cosine, 0.0), 1.0) for cosine in cosines]
        value = sum(distances) / len(distances)
        return Score(value, {self.name: value, f"{self.name}/nearest": distances[0], **self.facts})
