from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from instructgym.cli.app import app

from .conftest import TINY, Invoke


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the main job, as small as it gets."""
    out = tmp_path_factory.mktemp("runs") / "first"
    result = CliRunner().invoke(app, ["run", "quickstart", "--out", str(out), "--limit", "8", *TINY])
    assert result.exit_code == 0, result.stderr
    (out.parent / "said.txt").write_text(f"{result.stdout}\f{result.stderr}", "utf-8")
    return out


def test_run_ends_with_the_table_and_the_paths_of_what_it_wrote(finished: Path) -> None:
    stdout, stderr = (finished.parent / "said.txt").read_text("utf-8").split("\f")
    assert "Policies at equal numbers of expert calls" in stdout
    assert re.search(r"^ trained +-?\d\.\d{3} \+- ", stdout, re.M)
    assert re.search(r"^ \w+ \(best fixed\)", stdout, re.M)
    assert "SIMULATED backend" in stdout
    written = re.findall(r"^wrote (\S+)", stdout, re.M)
    assert f"{finished}/dataset/" in written
    assert all(Path(path).exists() for path in written)
    assert stderr.count("seeds: default (alpaca JSONL, 8 instructions") == 1
    assert stderr.count("encoder: hashing:256") == 1
    for stage in ("train", "evaluate", "evolve", "respond", "filter", "export"):
        assert len(re.findall(rf"^{stage}: ", stderr, re.M)) == 1


def test_the_same_command_again_does_nothing_twice(invoke: Invoke, finished: Path) -> None:
    before = {path: path.read_bytes() for path in (finished / "dataset").iterdir()}
    result = invoke("run", "quickstart", "--out", finished, "--limit", "8", *TINY)
    assert result.exit_code == 0
    assert result.stderr.count("already done") == 6
    assert {path: path.read_bytes() for path in (finished / "dataset").iterdir()} == before


def test_the_folder_of_another_run_is_refused(invoke: Invoke, finished: Path) -> None:
    result = invoke("run", "quickstart", "--out", finished, "--limit", "8", *TINY, "--set", "env.horizon=3")
    assert result.exit_code == 2
    assert result.stderr.endswith(
        f"error: '{finished}' holds another run: its env.horizon is 2, here it is 3 (stage 'train' has begun there). "
        "Choose another folder, or give the same config.\n"
    )


def test_show_a_run(invoke: Invoke, finished: Path) -> None:
    result = invoke("show", finished)
    assert result.exit_code == 0
    assert "train finished, evaluate finished, evolve finished" in result.stdout
    assert "8 chains" in result.stdout
    assert "sft_alpaca.jsonl" in result.stdout


def test_show_a_chain_with_operations_verdicts_rewards_calls_and_answer(invoke: Invoke, finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "lineage.jsonl").read_text("utf-8").splitlines()]
    steps = [row for row in rows if row["chain"] == 2]
    result = invoke("show", finished, "--chain", "chain-000002")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"chain 2, seed {steps[0]['seed_id']}\n")
    for row in steps:
        verdict = "accepted" if row["accepted"] else f"eliminated: {row['eliminated']}"
        assert f"\nstep {row['step']}: {row['operation']}: {verdict}" in result.stdout
        assert f"\n  reward {row['reward']:+.3f}" in result.stdout
    assert result.stdout.count("calls: expert 1, reviewer ") == len(steps)
    assert "answer to chain-000002" in result.stdout or not any(row["accepted"] for row in steps)


def test_show_an_unknown_chain_says_which_there_are(invoke: Invoke, finished: Path) -> None:
    result = invoke("show", finished, "--chain", "99")
    assert result.exit_code == 2
    assert result.stderr == f"error: no chain '99' in '{finished}'; expected a number from 0 to 7.\n"


def test_show_what_is_no_run(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("show", tmp_path)
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: '{tmp_path}' is no run's folder (it holds no config.toml); expected what --out of `instructgym run` "
        "named.\n"
    )


def test_stages_one_by_one_make_a_dataset_and_compare_lays_runs_side_by_side(
    invoke: Invoke, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "second"
    options = ("--policy", "round_robin", "--reviewer", "none", "--steps", "2", "--concurrency", "4", "--limit", "6")
    result = invoke("evolve", *options, "--out", out)
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in (out / "lineage.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 12
    assert [row["calls"]["reviewer"] for row in rows] == [0] * 12
    for command in ("respond", "filter", "export"):
        assert invoke(command, out).exit_code == 0
    exported = len((out / "dataset" / "sft_alpaca.jsonl").read_text("utf-8").splitlines())
    assert 0 < exported <= 6

    result = invoke("compare", finished, out)
    assert result.exit_code == 0
    assert re.search(r'^ evolve\.policy +"trained" +"round_robin"', result.stdout, re.M)
    assert "second did not come to stage 'evaluate'" in result.stdout
    assert re.search(rf"^ sft_alpaca\.jsonl +\d+ +{exported}", result.stdout, re.M)


def test_evolve_goes_on_in_the_folder_of_a_training(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("train", "--out", tmp_path / "out", "--limit", "4", *TINY).exit_code == 0
    result = invoke("evolve", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert len((tmp_path / "out" / "lineage.jsonl").read_text("utf-8").splitlines()) == 8


def test_evolve_takes_the_instructor_of_another_run(invoke: Invoke, finished: Path, tmp_path: Path) -> None:
    result = invoke("evolve", "--policy", finished, "--steps", "2", "--limit", "3", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert len((tmp_path / "out" / "lineage.jsonl").read_text("utf-8").splitlines()) == 6


def test_a_policy_saved_for_another_action_set_is_refused(invoke: Invoke, finished: Path, tmp_path: Path) -> None:
    arguments = ("--policy", finished / "agent", "--action-set", "core", "--steps", "2", "--limit", "3")
    result = invoke("evolve", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"error: the agent in {finished}/agent was saved for action set " in result.stderr
    assert result.stderr.endswith("Run with the set that it was saved for, or train an agent for this one.\n")


def test_a_stage_whose_inputs_are_missing_says_what_to_run(invoke: Invoke, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke("evolve", "--policy", "random", "--steps", "1", "--limit", "2", "--out", out).exit_code == 0
    result = invoke("filter", out)
    assert result.exit_code == 2
    assert result.stderr.endswith(
        f"error: stage 'filter' needs stage 'respond', which is not finished in '{out}'. Run 'respond' there first.\n"
    )
    assert invoke("respond", tmp_path).stderr == (
        f"error: '{tmp_path}' is no run's folder (it holds no config.toml). Start with `instructgym run`.\n"
    )


def test_the_ledger_counts_shows_and_exports_calls(invoke: Invoke, finished: Path, tmp_path: Path) -> None:
    stats = invoke("ledger", "stats", finished)
    assert stats.exit_code == 0
    assert re.search(r"^ expert +respond +simulated-\d+ ", stats.stdout, re.M)
    listed = invoke("ledger", "show", finished, "--stage", "respond", "--limit", "2")
    assert listed.exit_code == 0
    keys = re.findall(r"^ ([0-9a-f]{10}) +expert +respond ", listed.stdout, re.M)
    assert len(keys) == 2
    assert "more; --limit shows them." in listed.stderr
    one = invoke("ledger", "show", finished, keys[0])
    assert one.stdout.startswith(keys[0])
    assert "\n  answer:\n" in one.stdout
    exported = invoke("ledger", "export", finished, "--out", tmp_path / "calls.jsonl", "--stage", "respond")
    assert exported.exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text("utf-8").splitlines()]
    assert {row["role"] for row in rows} == {"expert"}
    assert all(row["request"]["messages"] and row["completion"]["text"] for row in rows)
    assert exported.stderr == f"wrote {len(rows)} calls to {tmp_path / 'calls.jsonl'}\n"


def test_a_folder_without_a_ledger_is_said(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("ledger", "stats", tmp_path)
    assert result.exit_code == 2
    assert f"there is no ledger at {tmp_path}/ledger.sqlite" in result.stderr
