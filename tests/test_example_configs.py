"""The example configs are read, and their rewards are swapped by one word."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructgym.train.config_text import load_config, to_toml
from instructgym.train.runtime import Runtime

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.parametrize("word", ["curious", "demanding", "thrifty", "reviewer_gain"])
def test_one_word_swaps_the_reward_of_a_run(word: str, tmp_path: Path) -> None:
    config = load_config(EXAMPLES / "rewards.toml", [f"reward.terms={{{word}=1.0}}"])
    (tmp_path / "again.toml").write_text(to_toml(config), "utf-8")
    assert load_config(tmp_path / "again.toml") == config
    runtime = Runtime(config)
    runtime.connect(None)
    try:
        runtime.check_names()
        assert "encoder" in runtime.reward_needs(config.reward.spec)
        assert runtime.reward_for("train").state_dict() if word in ("curious", "demanding", "thrifty") else True
    finally:
        runtime.close()
