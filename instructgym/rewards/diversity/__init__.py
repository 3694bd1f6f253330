"""Rewards for being unlike: the parent, the seed, what was kept before."""

from instructgym.rewards.diversity.archive_novelty import ArchiveNovelty
from instructgym.rewards.diversity.compression_gain import CompressionGain
from instructgym.rewards.diversity.marginal_vendi import MarginalVendi
from instructgym.rewards.diversity.ngram_novelty import NgramNovelty
from instructgym.rewards.diversity.novelty import Novelty

__all__ = ["ArchiveNovelty", "CompressionGain", "MarginalVendi", "NgramNovelty", "Novelty"]
