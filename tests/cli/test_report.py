from __future__ import annotations

from typing import Any

import pytest

from instructgym.cli.report import chosen_policies, interval, print_policies


def row(reward: float, low: float, high: float) -> dict[str, Any]:
    return {
        "mean_episode_reward": reward,
        "interval_95": [low, high],
        "transitions": 200,
        "eliminated": {"copy": 10, "refusal": 13},
        "mean_pairwise_distance": 0.8125,
        "distinct_2": 0.5,
        "mean_words": 41.26,
        "expert_calls": 1200,
        "reviewer_calls": 2210,
    }


EVALUATION = {
    "seeds": 50,
    "held_out": True,
    "policies": {
        "trained": row(2.5, 2.4, 2.6),
        "random": row(1.5, 1.3, 1.7),
        "fixed:deepen": row(1.7, 1.6, 1.8),
        "fixed:breadth": row(1.1, 1.0, 1.2),
    },
    "best_fixed": "fixed:deepen",
}


def test_of_the_fixed_operations_only_the_best_is_in_the_short_table() -> None:
    assert chosen_policies(EVALUATION) == ["trained", "random", "fixed:deepen"]


def test_the_table_holds_what_was_measured_and_calls_the_simulation_one(capsys: pytest.CaptureFixture[str]) -> None:
    print_policies(EVALUATION, chosen_policies(EVALUATION), title="Policies", simulated=True)
    out, err = capsys.readouterr()
    assert err == ""
    cells = {line.split("  ")[0].strip(): line.split() for line in out.splitlines()}
    assert cells["trained"] == [
        *("trained", "2.500", "+-", "0.100", "11.5%", "0.812", "41.3", "1,200", "2,210"),
    ]
    assert cells["deepen (best fixed)"][3] == "1.700"
    assert "50 held-out seeds; +- is half of the 95% interval (bootstrap over seeds)" in " ".join(out.split())
    assert "SIMULATED backend: the numbers compare policies" in " ".join(out.split())


def test_without_simulation_nothing_is_called_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    print_policies(EVALUATION, ["trained"], title="Policies", simulated=False)
    assert "SIMULATED" not in capsys.readouterr().out


def test_what_was_not_measured_is_left_empty() -> None:
    assert interval({"interval_95": None}) == ""


def test_where_nothing_was_compared_a_line_says_so_instead_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_policies({"policies": {}, "seeds": 0}, [], title="Policies", simulated=True)
    assert capsys.readouterr().out == "Policies: none was compared (evaluate.policies is empty).\n"
