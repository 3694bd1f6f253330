"""Every instruction ever kept, as vectors, and the nearest of them to a new one."""

from instructgym.rewards.archive.archive import EXACT_BELOW, Archive
from instructgym.rewards.archive.remembering import ArchiveReward

__all__ = ["EXACT_BELOW", "Archive", "ArchiveReward"]
