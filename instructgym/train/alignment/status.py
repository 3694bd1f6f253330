"""How far an alignment has come, from its folder alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instructgym.train.alignment.align import need_alignment
from instructgym.train.alignment.config import AlignmentConfig, load_alignment
from instructgym.train.alignment.plan import plan

__all__ = ["AlignmentStatus", "StageStatus", "status"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """A stage is ``finished``, ``begun`` (cut off, or under way) or ``not begun``."""

    name: str
    state: str
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AlignmentStatus:
    config: AlignmentConfig
    stages: tuple[StageStatus, ...]
    halted: str = ""

    @property
    def next_stage(self) -> str:
        """What the same command would do first; empty if nothing is left, or if the run has halted."""
        return "" if self.halted else next((stage.name for stage in self.stages if stage.state != "finished"), "")


def status(folder: Path) -> AlignmentStatus:
    """Read a folder, whether its run is under way, cut off or finished. Raises `RunFolderError` and `ConfigError`."""
    need_alignment(folder)
    config = load_alignment(folder / "config.toml")
    summary = _read(folder / "summary.json") or {}
    stages = []
    for step in plan(config):
        manifest = _read(folder / "stages" / f"{step.name}.json")
        state = "not begun" if manifest is None else str(manifest["state"])
        stages.append(StageStatus(step.name, state, {} if manifest is None else dict(manifest.get("result", {}))))
    return AlignmentStatus(config, tuple(stages), str(summary.get("halted", "")))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return None
