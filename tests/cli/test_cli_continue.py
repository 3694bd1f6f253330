"""`instructgym train --continue`."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import TINY, Invoke


def test_a_trained_agent_learns_on_in_its_folder(invoke: Invoke, tmp_path: Path, seeds_file: Path) -> None:
    out = tmp_path / "out"
    assert invoke("train", "--out", out, "--seeds", seeds_file, *TINY).exit_code == 0
    assert invoke("evolve", out).exit_code == 0
    steps = []
    for command in (("train", out, "--continue"), ("train", "--continue", "--out", out)):
        result = invoke(*command)
        assert result.exit_code == 0, result.stderr
        assert "train: 32 of 32 in " in result.stderr
        steps.append(json.loads((out / "summary.json").read_text("utf-8"))["train"]["steps"])
    assert steps == [64, 96]
    shown = invoke("show", out).stdout
    assert "train finished, evaluate not begun, evolve not begun" in shown
    result = invoke("evolve", out)
    assert result.exit_code == 0
    assert "evolve: 8 of 8 in " in result.stderr  # with the agent of now, and not "already done"


def test_without_a_trained_agent_it_is_refused_and_nothing_is_made(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("train", "--continue", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: '{tmp_path / 'out'}' holds no trained agent to continue. Train one there first: the same command "
        "without --continue.\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_config_that_is_given_has_to_be_the_runs(invoke: Invoke, tmp_path: Path, seeds_file: Path) -> None:
    out = tmp_path / "out"
    assert invoke("train", "--out", out, "--seeds", seeds_file, *TINY).exit_code == 0
    result = invoke("train", "quickstart", "--out", out, "--continue")
    assert result.exit_code == 2
    assert f"error: '{out}' holds another run: its " in result.stderr
    result = invoke("train", out, "--continue", "--set", "agent.kwargs.learning_rate=0.5")
    assert result.exit_code == 2
    assert "its agent.kwargs.learning_rate is " in result.stderr


def test_logs_and_going_on_exclude_each_other(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("train", "--continue", "--from-ledger", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: --continue and --from-ledger exclude each other: an agent learns from logs all at once.\n"
    )


def test_a_dry_run_says_what_going_on_would_ask(invoke: Invoke, tmp_path: Path, seeds_file: Path) -> None:
    out = tmp_path / "out"
    assert invoke("train", "--out", out, "--seeds", seeds_file, *TINY).exit_code == 0
    before = (out / "stages/train.json").read_bytes()
    result = invoke("train", out, "--continue", "--dry-run")
    assert result.exit_code == 0
    assert "train" in result.stdout
    assert (out / "stages/train.json").read_bytes() == before
