from __future__ import annotations

import json
import tomllib
from pathlib import Path

from instructgym.cli.options import overrides_of
from instructgym.train.config_text import load_config

from .conftest import Invoke


def test_config_show_prints_every_value_and_can_be_read_back(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("config", "show", "quickstart", "--set", "train.steps=64")
    assert result.exit_code == 0
    assert tomllib.loads(result.stdout)["train"]["steps"] == 64
    path = tmp_path / "own.toml"
    path.write_text(result.stdout, "utf-8")
    assert load_config(path) == load_config("quickstart", ["train.steps=64"])


def test_config_schema_is_json(invoke: Invoke) -> None:
    result = invoke("config", "schema")
    assert result.exit_code == 0
    assert "train" in json.loads(result.stdout)["properties"]


def test_an_unknown_key_offers_the_nearest(invoke: Invoke) -> None:
    result = invoke("config", "show", "quickstart", "--set", "train.stepz=64")
    assert result.exit_code == 2
    assert "unknown key 'train.stepz'; did you mean 'train.steps'?" in result.stderr


def test_an_unknown_config_offers_the_nearest(invoke: Invoke) -> None:
    result = invoke("config", "show", "quickstrat")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no config 'quickstrat'; did you mean 'quickstart'?")


def test_options_come_through_as_values_whatever_they_hold() -> None:
    values = {"seeds.path": 'a "b" \\ 日本.jsonl', "env.horizon": 3, "reward.terms": {"novelty": 1.0}}
    config = load_config("quickstart", overrides_of(values, None))
    assert config.seeds.path == 'a "b" \\ 日本.jsonl'
    assert config.env.horizon == 3
    assert config.reward.terms == {"novelty": 1.0}
