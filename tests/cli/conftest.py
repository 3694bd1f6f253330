from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from instructgym.cli.app import app

COMMAND = (sys.executable, "-m", "instructgym.cli")

# The whole job in a second or two: 2 envs, 32 steps of training, 2 rewrites a chain.
TINY = tuple(
    part
    for value in (
        "train.steps=32",
        "train.num_envs=2",
        "agent.kwargs.n_steps=16",
        "agent.kwargs.batch_size=16",
        "env.horizon=2",
        "evaluate.seeds=2",
        "evaluate.draws=1",
    )
    for part in ("--set", value)
)

Invoke = Callable[..., Result]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command in this process; `result.stdout` and `result.stderr` are apart."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def run_process(*arguments: str | Path, timeout_s: float = 60.0, **env: str) -> subprocess.CompletedProcess[str]:
    """The command as users run it."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **env},
    )


@pytest.fixture
def seeds_file(tmp_path: Path) -> Path:
    """Eight short instructions in Alpaca form."""
    subjects = ("rivers", "sorting", "bread", "contracts", "vaccines", "poems", "budgets", "volcanoes")
    path = tmp_path / "seeds.jsonl"
    lines = [json.dumps({"instruction": f"Explain to a beginner how {subject} work."}) for subject in subjects]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
