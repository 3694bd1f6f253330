from __future__ import annotations

import json
from pathlib import Path

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
    assert "has no evolved/wizardlm_testset_150.jsonl" in missing.stderr
