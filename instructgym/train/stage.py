"""What a stage is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from instructgym.train.config import Config
from instructgym.train.progress import Progress
from instructgym.train.run_folder import Manifest, RunFolder
from instructgym.types import Seed

if TYPE_CHECKING:
    from instructgym.train.runtime import Runtime

__all__ = ["SeedSplit", "StageContext", "StageOutput"]


@dataclass(frozen=True)
class SeedSplit:
    """All seeds in the order of their file, and which of them training sees."""

    all: tuple[Seed, ...]
    train: tuple[Seed, ...]
    held_out: tuple[Seed, ...]
    format: str = ""

    @property
    def for_evaluation(self) -> tuple[Seed, ...]:
        """The held-out seeds; the training seeds if none were held out."""
        return self.held_out or self.train


@dataclass(frozen=True)
class StageContext:
    """One run, as its stages see it. `manifests` holds the finished stages that this one builds on.

    `trained` is what an earlier training left, where stage `train` is to learn on from it.
    """

    config: Config
    folder: RunFolder
    seeds: SeedSplit
    runtime: Runtime
    progress: Progress
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    trained: Manifest | None = None


@dataclass(frozen=True)
class StageOutput:
    """The files that a stage wrote (names in the run folder) and facts about them: no times, no counts of hits.

    `lost` is the number of items that failed for good.
    """

    files: tuple[str, ...]
    result: Mapping[str, Any] = field(default_factory=dict)
    lost: int = 0
