"""The area under the ROC curve, by hand and against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from instructgym.metrics.ranking import auc


def test_by_hand_with_ties_at_half() -> None:
    assert auc([3, 2], [1, 2]) == (1 + 1 + 1 + 0.5) / 4
    assert auc([1, 1], [1, 1, 1]) == 0.5
    assert auc([2.0], [1.0]) == 1.0
    assert auc([0.0], [1.0]) == 0.0


def test_is_that_of_scikit_learn_and_of_the_u_statistic() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        good, bad = rng.integers(8, size=30) + 1.0, rng.integers(8, size=50) + 0.0
        labels = [1] * len(good) + [0] * len(bad)
        assert auc(good, bad) == pytest.approx(roc_auc_score(labels, np.concatenate([good, bad])), abs=1e-12)
        assert auc(good, bad) == pytest.approx(stats.mannwhitneyu(good, bad).statistic / 1500, abs=1e-12)


def test_an_empty_side_is_undefined() -> None:
    assert auc([], [1.0]) is None
    assert auc([1.0], []) is None


def test_infinities_are_ordered_and_nan_is_refused() -> None:
    assert auc([float("inf")], [float("-inf"), 0.0]) == 1.0
    with pytest.raises(ValueError, match=r"^auc got a score that is NaN; leave missing scores out.$"):
        auc([float("nan")], [1.0])
