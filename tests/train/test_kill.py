"""A run that is killed again and again pays for no call twice and ends with the same bytes."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from instructgym.llm_backends.server import ServerBehaviour, SimulatedServer
from instructgym.llm_backends.simulated import SimulatedBackend
from instructgym.train.pipeline import ALL

from .conftest import SMALL, write_seeds
from .test_pipeline import contents

KILLS = 10
MANY_KILLS = 50
CONCURRENCY = 4
MANY_CONCURRENCY = 16

# Real processes, each forked from a server process that has imported what takes seconds: the moments then fall into
# the run, and not into the import of torch.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "aiohttp",
        "jinja2",
        "openai",
        "pandas",
        "pyarrow.parquet",
        "pytest",
        "torch.utils.tensorboard",
        "instructgym.train.export",
        "instructgym.train.pipeline",
        "instructgym.train.train_instructor",
    ]
)


class Said:
    """Leaves the name of each stage that begins in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def say(self, text: str) -> None: ...

    def started(self, stage: str, total: int | None) -> None:
        self.path.write_text(stage)

    def advance(self, stage: str, done: int, note: str = "") -> None: ...

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None:
        self.path.write_text(f"after {stage}")


def program(out: Path, overrides: list[str], said: Path, stages: tuple[str, ...]) -> None:
    """What the killed process runs."""
    from instructgym.train.config_text import load_config
    from instructgym.train.pipeline import run

    os.environ["OPENAI_API_KEY"] = "none"
    try:
        code = run(load_config("quickstart", overrides), out, stages=stages, progress=Said(said)).exit_code
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(SimulatedBackend(), ServerBehaviour(latency_s=0.02)).in_thread() as running:
        yield running


def overrides_for(tmp_path: Path, server: SimulatedServer) -> list[str]:
    return [
        *SMALL,
        f"seeds.path={json.dumps(str(write_seeds(tmp_path / 'seeds.jsonl')))}",
        "llm.backend=openai",
        "llm.model=simulated",
        f"llm.base_url={server.base_url}",
        f"limits.concurrency={CONCURRENCY}",
        "evaluate.draws=2",
        "evolve.chains_per_seed=2",
    ]


def start(out: Path, overrides: list[str], stages: tuple[str, ...] = ALL) -> ForkServerProcess:
    process = PROCESSES.Process(target=program, args=(out, overrides, out.with_suffix(".said"), stages))
    process.start()
    return process


def run_to_the_end(out: Path, overrides: list[str], stages: tuple[str, ...] = ALL) -> float:
    """Returns the seconds it took."""
    begun = time.monotonic()
    process = start(out, overrides, stages)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - begun


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
    overrides = overrides_for(tmp_path, server)
    run_to_the_end(tmp_path / "warm", overrides)  # the fork server's own start is no part of a run
    before = server.stats()["requests"]
    duration_s = run_to_the_end(tmp_path / "whole", overrides)
    undisturbed = server.stats()["requests"] - before
    assert paid_calls(tmp_path / "whole") == (undisturbed, 0)

    rng = random.Random(3)
    hit: list[str] = []
    moments: list[float] = []
    numbers = itertools.count()
    while len(hit) < KILLS:
        if len(moments) < 3:  # one from each tenth of the run, in any order: uniform, and no part is left out
            moments += rng.sample([duration_s * (part + rng.random()) / 10 for part in range(10)], 10)
        three, moments = sorted(moments[:3]), moments[3:]
        out = tmp_path / f"killed-{next(numbers)}"
        hit += _kill_and_finish(out, overrides, three, server, undisturbed)
        assert contents(out) == contents(tmp_path / "whole"), hit


def _kill_and_finish(
    out: Path,
    overrides: list[str],
    moments_s: list[float],
    server: SimulatedServer,
    undisturbed: int,
) -> list[str]:
    """Kill a run at `moments_s` of its wall time, restarting it in between, then let it end.

    A restart has what was paid already and is faster than the first run, so later moments may find it finished: hence
    several runs. Returns where each kill hit.
    """
    before = server.stats()["requests"]
    hit: list[str] = []
    for moment_s in moments_s:
        process = start(out, overrides)
        process.join(moment_s)
        if process.exitcode is not None:
            break
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        said = out.with_suffix(".said")
        hit.append(said.read_text() if said.exists() else "before train")
    run_to_the_end(out, overrides)
    paid, twice = paid_calls(out)
    assert twice == 0
    assert paid == undisturbed, hit
    repeats = server.stats()["requests"] - before - undisturbed
    assert 0 <= repeats <= len(hit) * 2 * CONCURRENCY, hit
    return hit


@pytest.mark.slow
def test_fifty_sigkills_during_one_evolution_pay_for_nothing_twice(tmp_path: Path, server: SimulatedServer) -> None:
    overrides = [
        *overrides_for(tmp_path, server),
        "evolve.policy=random",
        "evolve.chains_per_seed=20",
        f"limits.concurrency={MANY_CONCURRENCY}",
    ]
    run_to_the_end(tmp_path / "whole", overrides, ("evolve",))
    undisturbed, twice = paid_calls(tmp_path / "whole")
    assert (undisturbed > 8 * MANY_KILLS, twice) == (True, 0)

    # A server of its own counts what this run has sent; it answers alike.
    out = tmp_path / "killed"
    with SimulatedServer(SimulatedBackend(), ServerBehaviour(latency_s=0.02)).in_thread() as own:
        overrides = [*overrides, f"llm.base_url={own.base_url}"]
        for moment in sorted(random.Random(4).sample(range(1, undisturbed - MANY_CONCURRENCY), MANY_KILLS)):
            # By the share of the work that is done, for a restart has less to wait for than the first start; and never
            # before it has sent something itself.
            moment = max(moment, own.stats()["distinct_bodies"] + 1)
            process = start(out, overrides, ("evolve",))
            while own.stats()["distinct_bodies"] < moment:
                assert process.exitcode is None
                time.sleep(0.001)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        run_to_the_end(out, overrides, ("evolve",))
        requests = own.stats()["requests"]

    assert paid_calls(out) == (undisturbed, 0)
    assert contents(out) == contents(tmp_path / "whole")
    lost = requests - undisturbed  # sent, and not committed when the process was killed
    assert 0 <= lost <= MANY_KILLS * MANY_CONCURRENCY


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train", "evolve"])
def test_an_interrupted_run_ends_and_goes_on(stage: str, tmp_path: Path, server: SimulatedServer) -> None:
    overrides = overrides_for(tmp_path, server)
    out = tmp_path / "run"
    process = start(out, overrides)
    said = out.with_suffix(".said")
    while process.exitcode is None and not (said.exists() and said.read_text() == stage):
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(10)
    assert process.exitcode == 130
    run_to_the_end(out, overrides)
    assert paid_calls(out)[1] == 0
