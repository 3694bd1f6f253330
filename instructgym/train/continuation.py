"""Learning on in the folder of a finished training.

What a continuation learns is written beside what is there and put in its place only when it is whole, so whatever stops
it leaves the agent as it was; the same command then starts the continuation again, and the ledger answers what was paid
for. Between the first move and the last a journal says what is to be done: `settle` does it, as often as it takes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructgym.agents.base import Agent, Algorithm
from instructgym.errors import ConfigError, RunFolderError
from instructgym.train.config import Config
from instructgym.train.run_folder import Manifest, RunFolder
from instructgym.train.stage import StageOutput

__all__ = [
    "EPISODES",
    "LEARNING_CURVE",
    "STAGED",
    "Past",
    "check_continues",
    "check_learns_on",
    "clear",
    "publish",
    "settle",
]

LEARNING_CURVE = "stages/learning_curve.json"
EPISODES = "stages/episodes.json"
STAGED = "stages/continued"
"""The folder in which a continuation's files wait, by their names in the run's folder."""
_JOURNAL = f"{STAGED}/journal.json"


@dataclass(frozen=True)
class Past:
    """What the trainings so far in a folder came to; `parts` of them."""

    parts: int = 0
    steps: int = 0
    calls: int = 0
    curve: Sequence[Mapping[str, float | None]] = ()
    episodes: Sequence[Sequence[float]] = ()
    accounting: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, folder: RunFolder, manifest: Manifest) -> Past:
        result = manifest.result
        return cls(
            parts=1 + int(result.get("continued", 0)),
            steps=int(result["steps"]),
            calls=int(result["calls"]),
            curve=_read(folder.path / LEARNING_CURVE),
            episodes=_read(folder.path / EPISODES) if EPISODES in manifest.outputs else (),
            accounting=result["accounting"],
        )

    def accounting_with(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The counts of the past and of `rows`, a row a stage and role."""
        total: dict[tuple[str, str], dict[str, Any]] = {}
        for row in (*self.accounting, *rows):
            held = total.setdefault((row["stage"], row["role"]), {})
            for name, value in row.items():
                held[name] = held.get(name, 0) + value if isinstance(value, int) else value
        return [total[key] for key in sorted(total)]


def check_continues(config: Config, stages: Sequence[str], out: Path) -> None:
    """Raise `ConfigError` or `RunFolderError` where nothing can be continued; writes nothing."""
    if "train" not in stages:
        raise ConfigError(f"only training can be continued; the stages are {', '.join(stages)}. Add 'train'.")
    if config.train.logs:
        raise ConfigError(
            f"agent '{config.agent.name}' learned from logs (train.logs), all of them at once; there is nothing to "
            "continue. Train it on more logs, in another folder."
        )
    if not (out / "stages/train.json").is_file():
        raise RunFolderError(
            f"'{out}' holds no trained agent to continue. Train one there first: the same command without --continue."
        )


def check_learns_on(name: str, agent: Agent) -> Algorithm:
    """The agent, if it learns and what it learned was loaded. Raises `ConfigError`."""
    if not isinstance(agent, Algorithm):
        raise ConfigError(f"agent '{name}' does not learn; there is nothing to continue.")
    kind = type(agent)
    if kind.load_state_dict is Agent.load_state_dict and kind.load_files is Agent.load_files:
        raise ConfigError(
            f"agent '{name}' ({kind.__name__}) does not keep what it learned; expected the methods state_dict() and "
            "load_state_dict(state), or save_files(folder) and load_files(folder). Without them training can only "
            "start anew, in another folder."
        )
    return agent


def publish(
    folder: RunFolder, key: str, output: StageOutput, result: Mapping[str, Any], stale: Sequence[str]
) -> Manifest:
    """Put a continuation in the place of what was continued. The stages `stale` were made of that, and are undone."""
    journal = {"key": key, "files": list(output.files), "result": dict(result), "stale": list(stale)}
    folder.write_json(_JOURNAL, journal)
    return _carry_out(folder, journal)


def settle(folder: RunFolder) -> Manifest | None:
    """Bring a continuation that was being put in place to its end. None if there was none; `clear` forgets it."""
    path = folder.path / _JOURNAL
    return _carry_out(folder, _read(path)) if path.is_file() else None


def clear(folder: RunFolder) -> None:
    """Forget a continuation: the command that asked for it has come to its end, or it starts over."""
    (folder.path / _JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(folder.path / STAGED, ignore_errors=True)


def _carry_out(folder: RunFolder, journal: Mapping[str, Any]) -> Manifest:
    """As often as it is begun, it ends the same."""
    for name in journal["files"]:
        staged, target = folder.path / STAGED / name, folder.path / name
        if staged.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        if staged.exists():
            staged.replace(target)
    for stage in journal["stale"]:
        folder.take_back(stage)
    return folder.finish("train", journal["key"], journal["files"], journal["result"])


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"'{path}' cannot be read as a run's file: {error}. Choose another folder.") from error
