"""A run that takes a second or two, for the tests of the pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from instructgym.train.config import Config
from instructgym.train.config_text import load_config
from instructgym.train.pipeline import run

SEEDS = (
    ("Explain how a suspension bridge carries its load.", ""),
    ("Write a Python function that reverses a list in place.", ""),
    ("List three ways to store apples over the winter.", ""),
    ("Find the mean of the numbers.", "3, 5, 8, 13"),
    ("用三句话解释什么是光合作用。", ""),
    ("اكتب فقرة قصيرة عن تاريخ الورق.", ""),
    ("Plan a weekend in Lisbon for two people 🧳.", ""),
    ("Summarise the causes of the French Revolution.", ""),
)

SMALL = (
    "train.steps=64",
    "train.num_envs=4",
    "agent.kwargs={n_steps = 8, batch_size = 16, n_epochs = 2, net_arch = [16]}",
    "env.horizon=2",
    'evaluate.policies=["trained", "random", "fixed:deepen"]',
    "evaluate.draws=1",
    "evaluate.bootstrap=100",
    "limits.concurrency=4",
)


def small_config(seeds: Path, *overrides: str) -> Config:
    return load_config("quickstart", [*SMALL, f"seeds.path={json.dumps(str(seeds))}", *overrides])


def write_seeds(path: Path, seeds: Sequence[tuple[str, str]] = SEEDS) -> Path:
    rows = [{"id": f"s{number}", "instruction": text, "input": data} for number, (text, data) in enumerate(seeds)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def seeds_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeds(tmp_path_factory.mktemp("seeds") / "seeds.jsonl")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, seeds_file: Path) -> Path:
    """A run of every stage on the simulated backend. Not to be changed by tests."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    result = run(small_config(seeds_file), out)
    assert result.exit_code == 0
    return out
