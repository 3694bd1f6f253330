"""One cell: the pipeline's stages train and evaluate in a folder of their own, and what is kept of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructgym.errors import BackendError
from instructgym.rewards.encoders import open_encoder
from instructgym.train.chains import DIGITS
from instructgym.train.config import Config, build_config
from instructgym.train.evaluate import EVALUATION_LINEAGE
from instructgym.train.pipeline import run, seeds_of
from instructgym.train.policy_bench.diversity import set_by_calls
from instructgym.train.policy_bench.plan import Cell
from instructgym.train.run_folder import RunFolder
from instructgym.train.train_instructor import EPISODES

__all__ = ["CellJob", "evaluation_calls", "job_of", "read_cell", "run_cell"]

RESULT = "cell.json"
SECONDS = "seconds.json"
"""Apart from the result, which repeats to the byte."""
_POINTS = 50
_WINDOW = 100
_FIRST = 20
_KEPT = (
    "mean_episode_reward",
    "chains",
    "incomplete",
    "transitions",
    "accepted",
    "expert_calls",
    "reviewer_calls",
    "prompt_tokens",
    "completion_tokens",
    "operations",
    "eliminated",
    "mean_words",
)


@dataclass(frozen=True)
class CellJob:
    """A cell as it goes to another process: plain values."""

    name: str
    config: str
    folder: str
    stages: tuple[str, ...]
    evaluated: str
    key: str
    retry_failed: bool = False


def job_of(cell: Cell, out: Path, retry_failed: bool) -> CellJob:
    name = f"{cell.policy.name}, {cell.task.name}, seed {cell.seed}"
    config = cell.config.model_dump_json()
    return CellJob(name, config, str(out / cell.folder), cell.stages, cell.evaluated, cell.key, retry_failed)


def run_cell(job: CellJob) -> None:
    """Run a cell to its end and write `cell.json`. What goes wrong is raised."""
    config = build_config(json.loads(job.config), job.name)
    clock = _Clock()
    result = run(config, job.folder, stages=job.stages, progress=clock, retry_failed=job.retry_failed)
    folder = RunFolder(Path(job.folder))
    row = result.summary["evaluation"]["policies"][job.evaluated]
    if row["mean_episode_reward"] is None:
        raise BackendError(
            f"no chain of the evaluation came to its end; {row['incomplete']} were cut off by failed calls"
        )
    lineage = folder.read_lines(EVALUATION_LINEAGE)
    encoder = open_encoder(config.env.encoder)
    try:
        sets = set_by_calls(lineage, evaluation_calls(config), encoder)
    finally:
        encoder.close()
    document = {
        "key": job.key,
        "lost": result.lost,
        "evaluation": {name: row[name] for name in _KEPT},
        "train": _training(folder, result.summary) if "train" in job.stages else None,
        "sets": sets,
    }
    if clock.worked or not (folder.path / SECONDS).exists():
        folder.write_json(SECONDS, clock.seconds)
    folder.write_json(RESULT, document)


def read_cell(cell: Cell, out: Path) -> tuple[dict[str, Any], dict[str, float]] | None:
    """(result, seconds by stage) of a cell that is finished, else None."""
    folder = out / cell.folder
    try:
        document = json.loads((folder / RESULT).read_text("utf-8"))
        seconds = json.loads((folder / SECONDS).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return (document, seconds) if document.get("key") == cell.key else None


def evaluation_calls(config: Config) -> int:
    """What a policy that never stops asks the expert in an evaluation: the number at which sets are compared."""
    seeds = seeds_of(config).for_evaluation[: config.evaluate.seeds]
    return len(seeds) * config.evaluate.draws * config.env.horizon


def _training(folder: RunFolder, summary: Mapping[str, Any]) -> dict[str, Any]:
    rows = [row for row in summary["queries"]["rows"] if row["stage"] == "train"]
    episodes = json.loads((folder.path / EPISODES).read_text("utf-8"))
    return {
        "calls": summary["train"]["calls"],
        "steps": summary["train"]["steps"],
        "reviewer_calls": sum(row["calls"] for row in rows if row["role"] == "reviewer"),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "completion_tokens": sum(row["completion_tokens"] for row in rows),
        "curve": learning_curve(episodes),
    }


def learning_curve(episodes: Sequence[tuple[int, float]]) -> list[list[float]]:
    """At most `_POINTS` points (expert calls, mean reward of the last `_WINDOW` episodes), the last one at the end.

    It begins after `_FIRST` episodes: with `stop`, those that end first are the short ones.
    """
    rewards = np.array([reward for _, reward in episodes], np.float64)
    ends = sorted({round(len(rewards) * number / _POINTS) for number in range(1, _POINTS + 1)})
    ends = [end for end in ends if end >= min(_FIRST, len(rewards)) > 0]
    return [[episodes[end - 1][0], round(float(rewards[max(0, end - _WINDOW) : end].mean()), DIGITS)] for end in ends]


class _Clock:
    """The pipeline's `Progress` that only measures: wall seconds of each stage that ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.worked = False
        self._began: dict[str, float] = {}

    def say(self, text: str) -> None: ...

    def started(self, stage: str, total: int | None) -> None:
        self._began[stage] = time.monotonic()

    def advance(self, stage: str, done: int, note: str = "") -> None: ...

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None:
        if not skipped and stage in self._began:
            self.worked = True
            self.seconds[stage] = round(time.monotonic() - self._began[stage], 2)
