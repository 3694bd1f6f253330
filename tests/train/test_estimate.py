from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructgym.errors import ConfigError
from instructgym.train.estimate import over_budget
from instructgym.train.pipeline import dry_run
from tests.train.conftest import small_config


def test_a_dry_run_foretells_what_the_run_asks(finished_run: Path, seeds_file: Path) -> None:
    found = dry_run(small_config(seeds_file))
    foretold = {(row.stage, row.role): row for row in found.rows}
    asked = json.loads((finished_run / "summary.json").read_text("utf-8"))["queries"]["rows"]
    assert {(row["stage"], row["role"]) for row in asked} == set(foretold)
    for row in asked:
        estimate = foretold[row["stage"], row["role"]]
        if row["role"] == "expert" and row["stage"] != "respond":
            assert estimate.calls == row["calls"]  # nothing ends a chain early here, so it is no estimate
        assert estimate.calls == pytest.approx(row["calls"], rel=0.35, abs=3)
        assert estimate.prompt_tokens == pytest.approx(row["prompt_tokens"], rel=0.35, abs=500)
        assert estimate.completion_tokens == pytest.approx(row["completion_tokens"], rel=0.5, abs=500)
        assert estimate.tokens_at_most > estimate.prompt_tokens + estimate.completion_tokens


def test_a_dry_run_asks_and_writes_nothing(tmp_path: Path, seeds_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint = ("llm.backend=openai", "llm.base_url=http://127.0.0.1:9/v1", "llm.model=m")
    prices = "budget.prices.m={prompt = 1.0, completion = 2.0}"
    found = dry_run(small_config(seeds_file, *endpoint, prices, "budget.max_calls=1"), stages=("evolve",))
    (expert, reviewer) = found.rows
    assert (expert.stage, expert.role, expert.model, expert.calls) == ("evolve", "expert", "m", 16)
    assert expert.cost_usd == pytest.approx((expert.prompt_tokens + 2 * expert.completion_tokens) / 1e6)
    assert expert.cost_usd_at_most is not None
    assert expert.cost_usd_at_most > expert.cost_usd
    assert found.cost_usd == pytest.approx(expert.cost_usd + (reviewer.cost_usd or 0.0))
    assert list(tmp_path.iterdir()) == []


def test_without_prices_there_is_no_cost(seeds_file: Path) -> None:
    found = dry_run(small_config(seeds_file, "llm.backend=openai", "llm.model=m"), stages=("evolve",))
    assert found.cost_usd is None


def test_what_the_budget_does_not_allow_is_named(seeds_file: Path) -> None:
    config = small_config(seeds_file, "budget.max_calls=20", "budget.expert.max_calls=10", "budget.max_tokens=10000000")
    found = dry_run(config, stages=("evolve",))
    reviewer = found.calls - 16
    assert over_budget(found, config) == [
        f"budget.max_calls is 20, and the run will need about {16 + reviewer}",
        "budget.expert.max_calls is 10, and the run will need about 16",
    ]


def test_what_the_run_would_refuse_the_dry_run_refuses(seeds_file: Path) -> None:
    with pytest.raises(ConfigError, match="unknown policy 'randm'"):
        dry_run(small_config(seeds_file, "evolve.policy=randm"))
