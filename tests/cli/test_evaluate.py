"""`instructgym evaluate`: by new chains, and by chains that are already there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructgym.train.off_policy import OFF_POLICY

from .conftest import TINY, Invoke


@pytest.fixture
def logged(invoke: Invoke, tmp_path: Path, seeds_file: Path) -> Path:
    """Eight uniform random chains a seed."""
    out = tmp_path / "logged"
    options = ("--policy", "random", "--seeds", seeds_file, "--set", "evolve.chains_per_seed=8")
    result = invoke("evolve", "quickstart", *options, "--out", out, *TINY)
    assert result.exit_code == 0, result.stderr
    return out


def said(text: str) -> str:
    return " ".join(text.split())


def test_evaluate_compares_policies_on_the_held_out_seeds(invoke: Invoke, tmp_path: Path, seeds_file: Path) -> None:
    out = tmp_path / "run"
    options = ("--seeds", seeds_file, "--out", out, *TINY)
    result = invoke("evaluate", "quickstart", "--policies", "random, greedy", *options)
    assert result.exit_code == 0, result.stderr
    assert "Policies at equal numbers of expert calls" in result.stdout
    found = json.loads((out / "stages/evaluation.json").read_text("utf-8"))
    assert list(found["policies"]) == ["random", "greedy"]
    nothing = invoke("evaluate", "quickstart", "--policies", ",", *options)
    assert (nothing.exit_code, nothing.stderr) == (2, "error: --policies names no policy; expected at least one.\n")


def test_off_policy_values_are_printed_and_kept_and_nobody_is_asked(
    invoke: Invoke, logged: Path, tmp_path: Path, seeds_file: Path
) -> None:
    ledger = (logged / "ledger.sqlite").stat().st_mtime_ns
    first = invoke("evaluate", "--off-policy", logged)
    assert first.exit_code == 0, first.stderr
    assert f"wrote {logged / OFF_POLICY}" in first.stdout
    assert "On held-out seeds; nobody was asked." in said(first.stdout)
    assert "SIMULATED: expert, reviewer; nothing here is said of a language model." in said(first.stdout)
    document = json.loads((logged / OFF_POLICY).read_text("utf-8"))
    row = document["policies"]["random"]
    assert (row["chains"], row["effective_sample_size"]) == (16, 16.0)  # two held-out seeds
    assert row["interval_95"][0] <= row["value"] <= row["interval_95"][1]
    assert document["logs"] == [str(logged)]
    before = (logged / OFF_POLICY).read_bytes()
    assert invoke("evaluate", logged, "--off-policy", logged, "--policies", "random").exit_code == 0
    assert (logged / OFF_POLICY).read_bytes() == before
    assert (logged / "ledger.sqlite").stat().st_mtime_ns == ledger

    fitted = tmp_path / "fitted"
    own = [part for part in TINY if part != "--set" and not part.startswith("agent.")]
    options = [
        part for value in (*own, "agent.name='fitted_q'", "agent.kwargs={temperature=0.5}") for part in ("--set", value)
    ]
    trained = invoke("train", "quickstart", "--from-ledger", logged, "--seeds", seeds_file, "--out", fitted, *options)
    assert trained.exit_code == 0, trained.stderr
    both = invoke("evaluate", fitted, "--off-policy", logged)
    assert both.exit_code == 0, both.stderr
    judged = json.loads((fitted / OFF_POLICY).read_text("utf-8"))["policies"]
    assert list(judged) == ["trained", "random"]
    assert judged["random"] == row


def test_what_logs_cannot_judge_is_refused(invoke: Invoke, logged: Path, tmp_path: Path) -> None:
    def refusal(*arguments: str | Path) -> str:
        result = invoke("evaluate", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        return said(result.stderr)

    judge = ("--off-policy", logged)
    assert refusal(*judge, "--policies", "greedy") == (
        "error: policy 'greedy' asks before it chooses; logs cannot evaluate it. Name an agent."
    )
    assert refusal(*judge, "--policies", "trained") == (
        f"error: policy 'trained': nothing is trained in '{logged}'. Name the folder of a saved agent."
    )
    assert refusal("--off-policy", tmp_path) == (
        f"error: '{tmp_path}' is no run's folder: there is no config.toml in it. Give the folder of a run."
    )
    assert refusal("quickstart", "--off-policy", tmp_path / "none", "--out", logged) == (
        f"error: '{tmp_path / 'none'}' is no run's folder: there is no run.json in it. Give the folder of a run."
    )
    assert refusal("quickstart", *judge, "--out", tmp_path / "new").startswith(f"error: '{tmp_path / 'new'}' is no run")
    assert refusal(*judge, "--dry-run") == (
        "error: --off-policy asks nobody: --dry-run and --retry-failed mean nothing with it."
    )
    assert refusal(*judge, "--set", "env.horizon=3").startswith(
        f"error: the chains in '{logged}' were made with env.horizon = 2, this run has 3."
    )
    assert refusal("quickstart", *judge, "--policies", "random").startswith(
        f"error: the chains in '{logged}' were made with env.horizon = 2, this run has 4."
    )
    own = tmp_path / "silent.py"
    own.write_text("from instructgym.agents import Agent\nclass Silent(Agent):\n    '''Says nothing.'''\n")
    assert "does not say with which probability it chooses" in refusal(*judge, "--policies", f"{own}:Silent")
    assert not (logged / OFF_POLICY).exists()
