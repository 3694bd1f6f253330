"""A run that is killed again and again pays for no call twice and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from instructgym.llm_backends.server import ServerBehaviour, SimulatedServer
from instructgym.llm_backends.simulated import SimulatedBackend

from .conftest import SMALL, write_seeds
from .test_pipeline import contents

KILLS = 10
CONCURRENCY = 4

PROGRAM = """
import json, sys
from instructgym.errors import InstructGymError
from instructgym.train.config_text import load_config
from instructgym.train.pipeline import run

class Said:
    def say(self, text): pass
    def started(self, stage, total): print(stage, flush=True)
    def advance(self, stage, done, note=""): pass
    def finished(self, stage, *, skipped=False, note=""): pass

overrides = json.loads(sys.argv[2])
print("imported", flush=True)
try:
    sys.exit(run(load_config("quickstart", overrides), sys.argv[1], progress=Said()).exit_code)
except InstructGymError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatedServer]:
    answerer = SimulatedBackend()
    with SimulatedServer(answerer, ServerBehaviour(latency_s=0.01)).in_thread() as running:
        yield running


def start(out: Path, overrides: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OPENAI_API_KEY": "none", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(out), json.dumps(overrides)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def paid_calls(out: Path) -> tuple[int, int]:
    """(calls that were paid, keys that were paid more than once), by the ledger."""
    ledger = sqlite3.connect(out / "ledger.sqlite")
    try:
        (paid,) = ledger.execute("SELECT count(*) FROM attempts WHERE status = 'ok'").fetchone()
        (twice,) = ledger.execute(
            "SELECT count(*) FROM (SELECT key FROM attempts WHERE status = 'ok' GROUP BY key HAVING count(*) > 1)"
        ).fetchone()
    finally:
        ledger.close()
    return paid, twice


@pytest.mark.slow
def test_sigkill_at_random_moments_costs_nothing_and_changes_nothing(tmp_path: Path, server: SimulatedServer) -> None:
    seeds = write_seeds(tmp_path / "seeds.jsonl")
    overrides = [
        *SMALL,
        "train.steps=32",
        f"seeds.path={json.dumps(str(seeds))}",
        "llm.backend=openai",
        "llm.model=simulated",
        f"llm.base_url={server.base_url}",
        f"limits.concurrency={CONCURRENCY}",
    ]
    begun = time.monotonic()
    with start(tmp_path / "whole", overrides) as whole:
        assert whole.wait() == 0, whole.communicate()[0]
    duration_s = time.monotonic() - begun
    undisturbed = server.stats()["requests"]
    assert paid_calls(tmp_path / "whole") == (undisturbed, 0)

    out = tmp_path / "killed"
    rng = random.Random(2)
    hit: list[str] = []
    for number in range(KILLS):
        with start(out, overrides) as process:
            # One moment from each tenth of the run: uniform over the whole, and every stage is hit.
            moment_s = duration_s * (number + rng.random()) / KILLS
            try:
                process.wait(moment_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            said = process.communicate()[0].split()
            hit.append(said[-1] if said else "start")
    with start(out, overrides) as last:
        assert last.wait() == 0, last.communicate()[0]

    paid, twice = paid_calls(out)
    assert twice == 0
    assert paid == undisturbed, hit
    repeats = server.stats()["requests"] - 2 * undisturbed
    assert 0 <= repeats <= KILLS * 2 * CONCURRENCY, hit
    assert contents(out) == contents(tmp_path / "whole"), hit
