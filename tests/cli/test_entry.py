from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import instructgym
from instructgym.cli.docs import render

from .conftest import COMMAND, Invoke, run_process

ROOT = Path(__file__).resolve().parents[2]


def test_help_loads_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys\nfrom instructgym.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'([^']+)'", done.stdout.partition("LOADED")[2]))
    heavy = {"torch", "openai", "pandas", "transformers", "stable_baselines3", "sentence_transformers", "pyarrow"}
    assert not loaded & heavy


def seconds_of(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


def test_help_answers_in_under_half_a_second() -> None:
    best = min(seconds_of(*COMMAND, "--help") for _ in range(3))
    if best >= 0.5:
        floor = min(seconds_of(sys.executable, "-c", "import gymnasium, typer") for _ in range(3))
        if floor >= 0.35:
            pytest.skip(f"this machine is busy: importing gymnasium and typer alone takes {floor:.2f} s")
    assert best < 0.5


def test_help_names_every_command_and_ends_with_0() -> None:
    done = run_process("--help")
    assert done.returncode == 0
    names = re.findall(r"^  ([a-z]+) {2,}", done.stdout, re.M)
    assert names == [
        *("run", "train", "evolve", "respond", "filter", "export", "sft", "dpo", "evaluate", "show", "compare"),
        *("list", "describe", "doctor", "serve", "version", "align", "bench", "config", "ledger"),
    ]


def test_version_is_the_packages(invoke: Invoke) -> None:
    result = invoke("version")
    assert (result.exit_code, result.stdout) == (0, f"{instructgym.__version__}\n")


@pytest.mark.parametrize("arguments", [["rum"], ["run", "--no-such-option"], ["list", "nothing"], ["show"]])
def test_usage_errors_end_with_2(invoke: Invoke, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_docs_page_is_what_the_commands_say() -> None:
    page = ROOT / "docs" / "cli.md"
    assert page.read_text("utf-8") == render(), "run: python -m instructgym.cli.docs > docs/cli.md"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = " ".join([*COMMAND, "describe", "evol_instruct"])
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | head -1"], capture_output=True, text=True)
    assert done.stdout.startswith("action set evol_instruct")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
