"""Every example runs as a user would run it, with warnings as errors, and shows what it promises."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

# file -> arguments for a small run, and what its output must match
SMALL: dict[str, tuple[str, str]] = {
    "01_step_the_env.py": ("", r"observation \(\d+,\) float32, 6 operations\n(.*\n){4}\nseed [\s\S]*4/4 .*"),
    "02_your_own_reward.py": ("--episodes 4", r"novelty alone +-?\d[\s\S]*concise alone +\d[\s\S]*both +-?\d"),
    "03_your_own_action_set.py": (
        "",
        r"personas \([0-9a-f]{16}\): .*, add_persona, add_audience\n[\s\S]*Operation: add",
    ),
    "04_your_own_agent.py": ("--episodes 16", r"random .*\n +round_robin .*\n +no_repeats \d+\.\d+ \+- \d"),
    "05_train_with_sb3.py": ("--steps 512 --episodes 4", r"mean return .*: \S+ before, \S+ after\n512 steps of PPO"),
    "06_cleanrl_style_ppo.py": ("--steps 256 --num-steps 16", r"steps +256  mean return .* \d+\.\d+  \d+ steps/s"),
    "07_your_endpoint.py": ("--steps 1", r"step 0: mean reward .*\nthe server saw \d+ requests \{'200': \d+"),
    "08_async_send_recv.py": ("--steps 32", r"step\(\): .*\nsend\(\)/recv\(\): +\d+ transitions/s, in \d+ batches"),
    "09_teams_rl_preset.py": (
        "--episodes 2",
        r"6 operations, horizon 6; first observation \[0\. 0\.[\s\S]*breadth +\d+%",
    ),
    "10_run_the_pipeline_in_python.py": (
        "--steps 64",
        r"8 instructions, [\s\S]*export: done\n\n\d+ instructions with answers",
    ),
}
ELSEWHERE = ("11_train_with_tianshou.py",)  # in test_examples_other_libraries.py
SLOW = ("05_train_with_sb3.py", "06_cleanrl_style_ppo.py", "10_run_the_pipeline_in_python.py")


def run_python(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env.pop("OPENAI_API_KEY", None)
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in sorted(SMALL)]
)
def test_example_runs(name: str, tmp_path: Path) -> None:
    arguments, expected = SMALL[name]
    done = run_python(EXAMPLES / name, *arguments.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(expected, done.stdout), done.stdout
    assert [path.name for path in tmp_path.iterdir()] == []  # an example leaves nothing behind


def test_every_example_is_tested() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted([*SMALL, *ELSEWHERE])


def test_an_action_set_takes_less_than_15_lines() -> None:
    source = (EXAMPLES / "03_your_own_action_set.py").read_text("utf-8")
    start, end = source.index("PERSONAS = "), source.index("\nif __name__")
    assert len(source[start:end].strip().splitlines()) + 1 < 15  # and one import


@pytest.mark.slow
def test_own_parts_work_on_the_command_line(tmp_path: Path) -> None:
    """The action set, the reward and the agent of the examples, all in one run."""
    values = (
        f'reward.terms={{novelty = 1.0, "{EXAMPLES / "02_your_own_reward.py"}:concise" = 0.5}}',
        f"agent.name={EXAMPLES / '04_your_own_agent.py'}:NoRepeats",
        *("train.steps=32", "train.num_envs=2", "env.horizon=2", "evaluate.policies=['trained']"),
    )
    done = run_python(
        *("-m", "instructgym.cli", "run", "quickstart", "--out", "run", "--limit", "8"),
        *("--action-set", f"{EXAMPLES / '03_your_own_action_set.py'}:PERSONAS"),
        *(part for value in values for part in ("--set", value)),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lineage = (tmp_path / "run/lineage.jsonl").read_text("utf-8")
    operations = {json.loads(line)["operation"] for line in lineage.splitlines()}
    assert operations <= {"add_constraints", "deepen", "add_persona", "add_audience"}
    assert "concise" in lineage
