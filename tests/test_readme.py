"""Every code block of the README runs, in one folder and section by section, as a reader would run it.

A comment right after a block says what the test does with it (without one, ``bash`` and ``python`` blocks are run, and
``text`` blocks are only read):

    <!-- test: file NAME -->      the block is saved under NAME, for the blocks that follow
    <!-- test: skip, REASON -->   the block is not run

Runs are made small and quick by a stand-in for the command ``instructgym``, which adds ``--set`` values to ``run`` and
``evolve``; what a block says is run as it stands otherwise.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n(?:<!-- test: (\w+),? ?(.*?) -->\n)?", re.M | re.S)
TINY = "seeds.limit=12 train.steps=64 train.num_envs=2 env.horizon=2 evaluate.seeds=2 evaluate.draws=1".split()


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    code: str
    action: str  # "", "file" or "skip"
    argument: str


BLOCKS = [
    Block(README.count("\n", 0, found.start()) + 1, found[1], found[2], found[3] or "", found[4] or "")
    for found in BLOCK.finditer(README)
]
RUN = [block for block in BLOCKS if block.language in ("bash", "python") and not block.action]


@pytest.fixture(scope="module")
def port() -> int:
    """One that is free now, in place of the page's 8000."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, port: int) -> Path:
    """Where a reader stands: the checkout's examples, the page's files, and a quick `instructgym`."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", place / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for block in BLOCKS:
        if block.action == "file":
            (place / block.argument).write_text(block.code, "utf-8")
    small = " ".join(f"--set {value}" for value in TINY)
    stand_in = f"""\
#!/usr/bin/env bash
case " $* " in *" --base-url "*)  # wait for the server that the block has started
  for _ in $(seq 300); do (exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && break; sleep 0.1; done ;;
esac
case "$1" in run | evolve) set -- "$@" {small} ;; esac
exec {sys.executable} -W error -m instructgym.cli "$@"
"""
    commands = place / "bin"
    commands.mkdir()
    for name, text in (
        ("instructgym", stand_in),
        ("python", f'#!/usr/bin/env bash\nexec {sys.executable} -W error "$@"\n'),
    ):
        (commands / name).write_text(text, "utf-8")
        (commands / name).chmod(0o755)
    return place


def run_block(block: Block, folder: Path, port: int) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    env.pop("OPENAI_API_KEY", None)
    code = block.code.replace("8000", str(port)).replace("sleep 3", "true").replace("--steps 2048", "--steps 512")
    code = f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{code}" if block.language == "bash" else code
    command = ["bash", "-euc", code] if block.language == "bash" else [str(folder / "bin/python"), "-c", code]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200)


def headed(blocks: list[Block]) -> Iterator[tuple[str, list[Block]]]:
    """The blocks by the heading that they stand under."""
    headings = [
        (README.count("\n", 0, found.start()) + 1, found[1]) for found in re.finditer(r"^#+ (.+)$", README, re.M)
    ]
    for index, (line, title) in enumerate(headings):
        end = headings[index + 1][0] if index + 1 < len(headings) else sys.maxsize
        if own := [block for block in blocks if line < block.line < end]:
            yield title, own


SECTIONS = dict(headed(RUN))
BUILDS_ON = {"Look at a run": ["Evolve your own instructions"]}


@pytest.mark.slow
@pytest.mark.parametrize("title", list(SECTIONS))
def test_blocks_run(title: str, folder: Path, port: int) -> None:
    for block in [block for name in (*BUILDS_ON.get(title, ()), title) for block in SECTIONS[name]]:
        done = run_block(block, folder, port)
        said = f"README.md:{block.line} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == 0, said
        assert done.stdout.strip(), said
        assert "Traceback" not in done.stderr, said


def test_a_recipe_is_ten_lines() -> None:
    for title, blocks in headed(BLOCKS):
        for block in blocks:
            if block.language in ("bash", "python"):
                assert block.code.count("\n") <= 12, f"README.md:{block.line} ({title}) is long for a recipe"


def test_every_block_is_understood() -> None:
    assert len(BLOCKS) == len(re.findall(r"^```\w", README, re.M))
    assert {block.language for block in BLOCKS} <= {"bash", "python", "text"}
    assert {block.action for block in BLOCKS} <= {"", "file", "skip"}
    assert README.count("<!-- test:") == sum(bool(block.action) for block in BLOCKS)
    assert all(block.argument for block in BLOCKS if block.action)


def test_the_quickstart_excerpt_is_there() -> None:
    """A real run's output, which says that it is simulated."""
    excerpt = README.partition("<!-- quickstart-output -->")[2].partition("<!-- /quickstart-output -->")[0]
    assert "trained" in excerpt
    assert "SIMULATED" in excerpt


def test_links_lead_somewhere() -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", README)]
    assert targets
    assert [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()] == []
