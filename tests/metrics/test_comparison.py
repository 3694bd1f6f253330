"""The statistics of a comparison, against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from instructgym.metrics.comparison import (
    interquartile_mean,
    mean_score,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)

ONE = [np.array([0.0, 1.0, 2.0, 9.0]), np.array([3.0, 4.0, 5.0, 100.0])]


def test_the_interquartile_mean_leaves_out_a_quarter_of_all_runs_at_each_end() -> None:
    assert interquartile_mean(ONE) == pytest.approx((2 + 3 + 4 + 5) / 4)  # 0, 1 and 9, 100 are out
    assert interquartile_mean([np.array([1.0, 2.0, 6.0])]) == 3.0  # fewer than four: the mean
    assert (
        interquartile_mean([np.array([0.0, 1.0, 2.0, 3.0, 50.0])]) == 2.0
    )  # 1.25 rounded down, as in the paper's code
    assert interquartile_mean([]) is interquartile_mean([np.zeros(0)]) is None


def test_mean_and_optimality_gap() -> None:
    scores = [np.array([0.5, 1.5]), np.array([0.1])]
    assert mean_score(scores) == pytest.approx(0.7)
    assert optimality_gap(scores) == pytest.approx(1 - (0.5 + 1.0 + 0.1) / 3)  # 1.5 counts as 1
    assert optimality_gap(scores, target=2.0) == pytest.approx(2 - 0.7)
    assert optimality_gap([]) is mean_score([]) is None


def test_the_profile_weighs_tasks_alike_and_counts_what_is_above() -> None:
    scores = [np.array([0.2, 0.8]), np.array([0.5]), np.zeros(0)]
    profile = performance_profile(scores, np.array([0.0, 0.5, 0.8]))
    np.testing.assert_allclose(profile, [1.0, (0.5 + 0.0) / 2, 0.0])
    assert np.isnan(performance_profile([], np.array([0.0]))).all()


def test_the_probability_of_improvement_is_mann_whitney_with_halves_for_ties() -> None:
    ours, theirs = [np.array([1.0, 2.0]), np.array([0.0])], [np.array([1.0, 0.0]), np.array([5.0])]
    # task 1: pairs (1,1) tie, (1,0), (2,1), (2,0) won: 3.5 of 4; task 2: lost
    assert probability_of_improvement(ours, theirs) == pytest.approx(3.5 / 4 / 2)
    assert probability_of_improvement(theirs, ours) == pytest.approx(1 - 3.5 / 4 / 2)
    assert probability_of_improvement([np.zeros(0)], [np.array([1.0])]) is None
    with pytest.raises(ValueError, match=r"^probability_of_improvement got 1 and 2 tasks; expected as many.$"):
        probability_of_improvement(ours[:1], theirs)


def test_the_interval_resamples_within_tasks_only() -> None:
    # Within each task the runs are equal, so nothing varies, however far the tasks are apart.
    rng = np.random.default_rng(0)
    constant = [np.full(5, 0.0), np.full(5, 10.0)]
    assert stratified_interval(mean_score, constant, rng=rng) == (5.0, 5.0)


def test_the_interval_is_that_of_the_mean_for_many_runs() -> None:
    runs = np.random.default_rng(1).normal(0.4, 0.2, 200)
    found = stratified_interval(mean_score, [runs], rng=np.random.default_rng(2))
    assert found is not None
    half = 1.96 * runs.std() / np.sqrt(len(runs))
    assert found == pytest.approx((runs.mean() - half, runs.mean() + half), abs=0.005)


def test_two_groups_are_resampled_apart_and_equal_seeds_give_equal_intervals() -> None:
    ours, theirs = [np.array([1.0, 3.0])], [np.array([2.0, 0.0])]
    first = stratified_interval(probability_of_improvement, ours, theirs, rng=np.random.default_rng(3))
    assert first == stratified_interval(probability_of_improvement, ours, theirs, rng=np.random.default_rng(3))
    assert first == (0.0, 1.0)  # ours drawn as (1, 1) and theirs as (2, 2) loses all


def test_there_is_no_interval_of_one_run_a_task() -> None:
    assert stratified_interval(mean_score, [np.array([1.0]), np.array([2.0])], rng=np.random.default_rng(0)) is None
    assert stratified_interval(mean_score, [], rng=np.random.default_rng(0)) is None
    with pytest.raises(ValueError, match=r"^stratified_interval got resamples = 0, level = 0.95; expected"):
        stratified_interval(mean_score, ONE, rng=np.random.default_rng(0), resamples=0)
