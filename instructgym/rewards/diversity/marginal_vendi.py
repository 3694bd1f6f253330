"""By how much a rewrite makes a set more diverse."""

from __future__ import annotations

import numpy as np

from instructgym.metrics.vendi import vendi_score
from instructgym.rewards.archive.remembering import ArchiveReward
from instructgym.rewards.encoders.base import Encoder
from instructgym.types import Score, Transition

__all__ = ["MarginalVendi"]


class MarginalVendi(ArchiveReward):
    """The Vendi score of a set with the child, minus that of the set without it (Friedman and Dieng, arXiv 2210.02410).

    The set is the seed, the parent and the k nearest to the child of all rewrites kept so far: far ones hardly change
    what a child adds. Cosine kernel, the effective number of distinct texts: about 0 for a near-duplicate, up to 1 for
    what is unlike all of them (and a little less than 0 for one that makes the set more even a crowd). A rewrite
    without a direction (the encoder knows no character of it) has no value.

    Args:
        encoder: gives the vectors.
        k: neighbours in the set.

    Terms: ``/before`` and ``/after``, the two scores, ``/version`` and ``/size`` of the memory.
    """

    name = "marginal_vendi"

    def __init__(self, encoder: Encoder, *, k: int = 16) -> None:
        super().__init__(encoder, k=k)

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        texts = [each.render() for each in (transition.child, transition.parent, transition.seed)]
        child, parent, seed = await self._encoder.encode(texts)
        if not child.any():
            return Score(None, self.facts)
        ids, _ = self.archive.nearest(child[None], self._k)
        kept = [parent] if texts[1] == texts[2] else [parent, seed]
        around = np.concatenate([np.stack(kept), self.archive.vectors(ids[0])])
        before = vendi_score(around)
        after = vendi_score(np.concatenate([around, child[None]]))
        if before is None or after is None:
            return Score(None, self.facts)
        value = after - before
        return Score(
            value, {self.name: value, f"{self.name}/before": before, f"{self.name}/after": after, **self.facts}
        )
