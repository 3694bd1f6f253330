"""Rewards that ask a reviewer LLM whether a rewrite gained anything."""

from instructgym.rewards.reviewers.archive import ReviewerArchive
from instructgym.rewards.reviewers.equality import ReviewerEquality
from instructgym.rewards.reviewers.gain import ReviewerGain
from instructgym.rewards.reviewers.panel import ReviewerPanel

__all__ = ["ReviewerArchive", "ReviewerEquality", "ReviewerGain", "ReviewerPanel"]
