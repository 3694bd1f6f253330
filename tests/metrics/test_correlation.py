"""Rank correlations, by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from instructgym.metrics.correlation import kendall, spearman, spearman_interval


def test_by_hand() -> None:
    # Ranks 1..5 against 2 1 4 3 5: squared differences sum to 4, 1 - 6 * 4 / 120; 8 concordant and 2 discordant pairs.
    x, y = [10, 20, 30, 40, 50], [2, 1, 4, 3, 5]
    assert spearman(x, y) == pytest.approx(0.8)
    assert kendall(x, y) == pytest.approx(0.6)


def test_ties_by_hand() -> None:
    # x has one tied pair: 5 concordant pairs of 6, tau-b = 5 / sqrt(5 * 6).
    assert kendall([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(5 / np.sqrt(30))
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3, 4])[0, 1])


@pytest.mark.parametrize("measure", [spearman, kendall])
def test_undefined_is_none_and_warns_of_nothing(measure) -> None:
    assert measure([], []) is None
    assert measure([1.0], [2.0]) is None
    assert measure([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert measure([1.0, 2.0, 3.0], [7.0, 7.0, 7.0]) is None


@pytest.mark.parametrize("measure", [spearman, kendall])
def test_values_that_are_no_numbers_are_refused(measure) -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=r"^a correlation got a value that is not finite; leave missing values out.$"
        ):
            measure([1.0, bad], [1.0, 2.0])
    with pytest.raises(
        ValueError, match=r"^a correlation got 1 and 2 values; expected as many of one as of the other.$"
    ):
        measure([1.0], [1.0, 2.0])


def test_extreme_values_keep_their_ranks() -> None:
    assert spearman([-1e308, 0.0, 1e308], [1, 2, 3]) == pytest.approx(1.0)


def test_interval_is_that_of_resampled_scipy() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(6, size=40).astype(float)
    y = x + rng.normal(size=40) * 2
    rows = np.random.default_rng(7).integers(40, size=(200, 40))
    slow = [stats.spearmanr(x[row], y[row]).statistic for row in rows]
    found = spearman_interval(x.tolist(), y.tolist(), resamples=200, rng=np.random.default_rng(7))
    assert found == pytest.approx(tuple(np.percentile(slow, [2.5, 97.5])), abs=1e-12)


def test_interval_is_the_same_twice_and_holds_the_estimate() -> None:
    x, y = list(range(30)), [value + (-1) ** value * 8 for value in range(30)]
    first, second = (spearman_interval(x, y, rng=np.random.default_rng(3)) for _ in range(2))
    assert first == second
    rho = spearman(x, y)
    assert first is not None
    assert rho is not None
    assert first[0] < rho < first[1]


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.5 / 2)  # Spearman's rho of two normals with correlation 0.5
    covered = 0
    for _ in range(100):
        x = rng.normal(size=80)
        y = 0.5 * x + np.sqrt(0.75) * rng.normal(size=80)
        low, high = spearman_interval(x, y, resamples=300, rng=rng)
        covered += low <= truth <= high
    assert 87 <= covered <= 100


def test_interval_is_none_where_there_is_no_correlation_to_resample() -> None:
    rng = np.random.default_rng(0)
    assert spearman_interval([], [], rng=rng) is None
    assert spearman_interval([1.0, 2.0], [1.0, 2.0], rng=rng) is None
    assert spearman_interval([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], rng=rng) is None
    assert spearman_interval([0.0, 0.0, 1.0], [0.0, 0.0, 1.0], rng=rng) == (pytest.approx(1.0), pytest.approx(1.0))
