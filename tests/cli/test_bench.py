from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructgym.cli.bench import _print_hacking
from instructgym.errors import ConfigError
from instructgym.train.reward_bench import HackingMatrix
from instructgym.train.reward_bench.label_files import FILES

from .conftest import Invoke


def test_bench_rewards_prints_cards_and_writes_json_and_a_figure(invoke: Invoke, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("def concise(transition):\n    return -len(transition.child.text.split())\n")
    result = invoke(
        "bench",
        "rewards",
        "--rewards",
        f"novelty,reviewer_gain,{own}:concise",
        "--hacking",
        "32",
        "--set",
        "evaluate.seeds=4",
        "--json",
        tmp_path / "out" / "bench.json",
        "--figure",
        tmp_path / "out" / "bench.svg",
    )
    assert result.exit_code == 0, result.stderr
    assert "reviewer_gain (simulated)" in result.stdout
    assert "novelty (simulated)" not in result.stdout
    assert "SIMULATED: expert, reviewer" in result.stdout
    assert "Hacking: what 32 steps of training on each reward do to the others" in result.stdout
    assert "probing concise" in result.stderr
    found = json.loads((tmp_path / "out" / "bench.json").read_text("utf-8"))
    assert [card["reward"] for card in found["cards"]] == ["novelty", "reviewer_gain", "concise"]
    assert set(found["cards"][0]["halves"]) == {"tuned", "held_out"}
    assert (tmp_path / "out" / "bench.svg").read_text("utf-8").startswith("<?xml")


def test_bench_rewards_takes_definitions_from_a_config(invoke: Invoke) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "rewards.toml"
    result = invoke("bench", "rewards", example, "--rewards", "curious,thrifty", "--hacking", "0")
    assert result.exit_code == 0, result.stderr
    assert "thrifty (simulated)" in result.stdout
    assert "Hacking" not in result.stdout


def test_bench_rewards_names_what_is_wrong(invoke: Invoke, tmp_path: Path) -> None:
    unknown = invoke("bench", "rewards", "--rewards", "noveltty")
    assert unknown.exit_code == 2
    assert "unknown reward 'noveltty'; did you mean 'novelty'?" in unknown.stderr
    empty = invoke("bench", "rewards", "--rewards", ",")
    assert empty.exit_code == 2
    assert "no reward is named" in empty.stderr
    missing = invoke("bench", "rewards", "--rewards", "length_cap", "--hacking", "0", "--data", tmp_path)
    assert missing.exit_code == 2
    names = ", ".join(FILES)
    said = f"error: the folder of label sets {tmp_path} has no {names}; docs/rewards.md says what it holds."
    assert missing.stderr.rstrip() == said  # before anything is probed


def test_a_figure_of_an_unknown_kind_is_refused_before_anything_is_measured(invoke: Invoke, tmp_path: Path) -> None:
    figure = tmp_path / "bench.jpeg2"
    result = invoke("bench", "rewards", "--rewards", "length_cap", "--hacking", "0", "--figure", figure)
    assert result.exit_code == 2
    error = f"error: --figure is '{figure}'; expected a name that ends with .png, .svg, .pdf."
    assert "".join(result.stderr.split()) == "".join(error.split())
    assert not result.stdout


def test_training_is_left_out_where_one_llm_is_real(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def bench_rewards(*arguments: object, hacking_steps: int, **more: object) -> None:
        asked.append(hacking_steps)
        raise ConfigError("enough")

    monkeypatch.setattr("instructgym.train.reward_bench.bench_rewards", bench_rewards)
    monkeypatch.setattr("instructgym.train.runtime.Runtime.check_endpoints", lambda runtime: None)
    real = "llm.reviewer={backend='openai', base_url='http://127.0.0.1:9/v1', model='judge'}"
    for options in ((), ("--set", real), ("--set", real, "--hacking", "64")):
        result = invoke("bench", "rewards", "--rewards", "length_cap", *options)
        assert result.stderr.splitlines()[-1] == "error: enough"
    assert asked == [2048, 0, 64]


def test_what_does_not_fall_is_not_called_falling_and_nothing_is_minus_zero(capsys: pytest.CaptureFixture[str]) -> None:
    totals = {name: {"a": 0.0, "b": 0.0, "eliminated": 0.0, "true_gain": 1.0} for name in ("random", "a", "b")}
    lifts = {"a": {"a": -0.001, "b": -0.04, "true_gain": -0.002}, "b": {"a": -0.36, "b": 0.5, "true_gain": 0.25}}
    _print_hacking(HackingMatrix(totals, lifts, {}, chains=8, steps=64))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "+0.00", "+0.00", "1.00", "0.00"] in rows
    assert ["b", "a", "-0.4", "+0.50", "+0.25", "1.00", "0.00"] in rows


def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = invoke("bench", "rewards", "--json", tmp_path)
    assert (folder.exit_code, folder.stderr) == (
        2,
        f"error: --json is '{tmp_path}', which is a folder; expected a file.\n",
    )
    below = tmp_path / "file" / "bench.png"
    nowhere = invoke("bench", "rewards", "--figure", below)
    assert nowhere.exit_code == 2
    assert nowhere.stderr.startswith(f"error: --figure is '{below}', whose folder cannot be made: ")


def test_bench_policies_prints_a_leaderboard_and_writes_it(invoke: Invoke, tmp_path: Path, seeds_file: Path) -> None:
    out = tmp_path / "bench"
    arguments = ["bench", "policies", "--policies", "random,greedy,fixed", "--action-sets", "core", "--seeds", "1"]
    arguments += ["--optimum", "1", "--out", str(out), "--set", "env.horizon=2", "--set", "evaluate.draws=1"]
    result = invoke(*arguments, "--set", f"seeds.path={json.dumps(str(seeds_file))}")
    assert result.exit_code == 0, result.stderr
    assert "SIMULATED: expert, reviewer; nothing here is said of a language model." in " ".join(result.stdout.split())
    assert "fixed:deepen" in result.stdout
    assert "The set that each makes with equal numbers of expert calls" in result.stdout
    assert "6 of 6 cells to run, 0 of them with training" in result.stderr
    assert f"wrote {out / 'leaderboard.md'}" in result.stdout
    assert len(json.loads((out / "results.json").read_text("utf-8"))["cells"]) == 6
    again = invoke(*arguments, "--set", f"seeds.path={json.dumps(str(seeds_file))}")
    assert "all 6 cells are finished" in again.stderr


def test_bench_policies_names_what_is_wrong(invoke: Invoke, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "bench")
    unknown = invoke("bench", "policies", "--policies", "randm", *out)
    assert unknown.exit_code == 2
    assert "unknown policy 'randm'; expected trained, random," in unknown.stderr
    empty = invoke("bench", "policies", "--policies", ",", *out)
    assert empty.exit_code == 2
    assert "a comparison needs at least one policy, one reward and one action set" in empty.stderr
    assert not (tmp_path / "bench").exists()


def test_the_dry_run_of_policies_says_what_is_asked_and_writes_nothing(
    invoke: Invoke, tmp_path: Path, seeds_file: Path
) -> None:
    out = tmp_path / "bench"
    arguments = ["bench", "policies", "--policies", "random,greedy,ppo", "--action-sets", "core", "--seeds", "2"]
    arguments += ["--rewards", "novelty", "--budget-calls", "100", "--out", str(out), "--dry-run", "--optimum", "1"]
    arguments += ["--set", "env.horizon=2", "--set", "evaluate.draws=1", "--backend", "openai", "--model", "m"]
    arguments += ["--base-url", "http://127.0.0.1:9/v1", "--set", f"seeds.path={json.dumps(str(seeds_file))}"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    assert not out.exists()
    rows = [line.split() for line in result.stdout.splitlines()]
    # Two held-out seeds and two steps are 4 calls a cell; greedy tries four operations at each; two cells a policy.
    assert [row[:5] for row in rows if row and row[0] in ("random", "greedy", "ppo", "total")] == [
        ["random", "2", "0", "8", "0"],
        ["greedy", "2", "0", "32", "0"],
        ["ppo", "2", "200", "8", "0"],
        ["total", "6", "200", "48", "0"],
    ]
    assert "Dry run, on novelty on core: nothing was asked, nothing was written" in " ".join(result.stdout.split())
    assert "US$" not in result.stdout
    assert 'no cost: set budget.prices."MODEL" = {prompt = ..., completion = ...}' in result.stderr
    priced = invoke(*arguments, "--set", "budget.prices.m={prompt=1.0,completion=2.0}", "--set", "budget.max_calls=50")
    assert "US$" in priced.stdout
    assert "no cost" not in priced.stderr
    told = "a cell of ppo: budget.max_calls is 50, and the run will need about 104: it will stop there, and go on with"
    assert told in " ".join(priced.stderr.split())
    wrong = invoke("bench", "policies", "--policies", "randm", "--dry-run", "--out", out)
    assert wrong.exit_code == 2
    assert "unknown policy 'randm'" in wrong.stderr
