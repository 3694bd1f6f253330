"""Other libraries learn on the registered environment: the returns that the examples print go up."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow
needs_tianshou = pytest.mark.skipif(
    importlib.util.find_spec("tianshou") is None,
    reason="Tianshou is not installed: 2.0.1 asks for pandas < 3 and filelock < 4, so it has an environment of its own "
    "(docs/other_libraries.md).",
)


def output_of(name: str, *arguments: str, cwd: Path) -> str:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr  # Tianshou draws its progress bars there
    assert list(cwd.iterdir()) == []
    return done.stdout


def test_a_ppo_in_the_style_of_cleanrl_learns(tmp_path: Path) -> None:
    output = output_of("06_cleanrl_style_ppo.py", "--steps", "2048", "--seed", "1", cwd=tmp_path)
    lines = re.findall(r"^steps +(\d+)  mean return of the last 100 episodes (\S+) ", output, re.M)
    assert [int(steps) for steps, _ in lines] == [512, 1024, 1536, 2048]
    returns = [float(value) for _, value in lines]
    assert returns[-1] > returns[0] + 0.3


@needs_tianshou
@pytest.mark.parametrize("options", [[], ["--once"]], ids=["all legal", "masks forbid"])
def test_tianshou_learns(options: list[str], tmp_path: Path) -> None:
    output = output_of("11_train_with_tianshou.py", "--steps", "2048", *options, cwd=tmp_path)
    found = re.fullmatch(
        r"mean return over 48 simulated episodes: (\S+) at random, (\S+) after training\n"
        r"2048 steps of DQN, Tianshou \d.*\n",
        output,
    )
    assert found is not None, output
    assert float(found[2]) > float(found[1]) + 0.3
