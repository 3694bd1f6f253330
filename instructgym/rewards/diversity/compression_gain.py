"""What a rewrite adds that cannot be had from its parent."""

from __future__ import annotations

from instructgym.metrics.compression import compressed_bytes
from instructgym.rewards.base import Reward
from instructgym.types import Score, Transition

__all__ = ["CompressionGain"]


class CompressionGain(Reward):
    """What of the child its parent does not tell: ``(C(parent, child) - C(parent)) / C(child)``, C compressed bytes.

    The conditional half of the normalised compression distance (Li et al. 2004, "The similarity metric"), clipped to
    [0, 1]: about 0 for a copy, 0.6 to 0.9 for a sentence that shares no words with its parent, whose letters are alike
    still. Raw DEFLATE at level 9, without header; texts are rendered with their inputs. Gibberish compresses badly, so
    it is new: gate it. Terms: ``compression_gain/bytes``, the bytes that the child adds.
    """

    name = "compression_gain"

    async def score(self, transition: Transition) -> Score:
        if transition.child is None:
            return Score(None)
        parent, child = transition.parent.render(), transition.child.render()
        alone = compressed_bytes(child)
        added = compressed_bytes(f"{parent}\n{child}") - compressed_bytes(parent)
        value = min(max(added / alone, 0.0), 1.0)
        return Score(value, {self.name: value, f"{self.name}/bytes": float(added)})
