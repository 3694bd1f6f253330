"""Intervals, and policies by name."""

from __future__ import annotations

import numpy as np
import pytest

from instructgym.envs.loading import load_action_set
from instructgym.train.evaluate import bootstrap_interval
from instructgym.train.policies import policy_names


def test_the_interval_covers_the_mean_and_repeats_itself() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.5, size=50)
    interval = bootstrap_interval(values, 1000, 7)
    assert interval == bootstrap_interval(values, 1000, 7)
    assert interval is not None
    low, high = interval
    assert low < values.mean() < high
    # The normal interval is the independent yardstick: 1.96 standard errors to either side.
    assert (high - low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / np.sqrt(50), rel=0.15)


def test_one_value_has_no_interval() -> None:
    assert bootstrap_interval(np.array([1.0]), 100, 0) is None


def test_fixed_stands_for_every_rewrite_and_not_for_stop() -> None:
    names = policy_names(("random", "fixed", "fixed:deepen"), load_action_set("core").with_stop())
    assert names == ["random", "fixed:add_constraints", "fixed:deepen", "fixed:concretize", "fixed:breadth"]
