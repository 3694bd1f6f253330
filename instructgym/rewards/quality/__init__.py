"""Rewards for quality and difficulty: of an instruction by itself, or of the answer to it."""

from instructgym.rewards.quality.additive import AdditiveJudge
from instructgym.rewards.quality.answerability import Answerability
from instructgym.rewards.quality.complexity import Complexity
from instructgym.rewards.quality.ifd import IFD
from instructgym.rewards.quality.learnability import Learnability
from instructgym.rewards.quality.quality import Quality
from instructgym.rewards.quality.tag_count import TagCount

__all__ = ["IFD", "AdditiveJudge", "Answerability", "Complexity", "Learnability", "Quality", "TagCount"]
