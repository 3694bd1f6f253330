"""Agreement of raters, by hand and against scikit-learn; the public verdicts are in tests/train."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from instructgym.metrics import agreement
from instructgym.metrics.agreement import (
    cohen_kappa,
    llmbar_published_kappa,
    llmbar_published_order_kappa,
    order_agreement,
    preference_accuracy,
    side,
)

# Shrout and Fleiss (1979), table 2: six targets, four judges.
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_accuracy_keeps_ties_missing_verdicts_and_tied_labels_apart() -> None:
    found = preference_accuracy([0.9, 0.1, 0.5, None, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.5, 0.0])
    assert (found.right, found.ties, found.read, found.n) == (2, 1, 4, 5)
    assert found.strict == 2 / 4
    assert found.half == 2.5 / 4
    assert found.tie_rate == 1 / 4
    assert found.coverage == 4 / 5
    assert found.of_all == 2 / 5


def test_accuracy_of_nothing_read_is_undefined_not_zero() -> None:
    found = preference_accuracy([None, None], [1.0, 0.0])
    assert (found.strict, found.half, found.tie_rate) == (None, None, None)
    assert (found.coverage, found.of_all) == (0.0, 0.0)
    nothing = preference_accuracy([1.0], [0.5])
    assert (nothing.n, nothing.strict, nothing.coverage, nothing.of_all) == (0, None, None, None)


@pytest.mark.parametrize(("preference", "expected"), [(0.0, 0.0), (0.49, 0.0), (0.5, 0.5), (0.51, 1.0), (1.0, 1.0)])
def test_side_of_a_preference(preference: float, expected: float) -> None:
    assert side(preference) == expected


@pytest.mark.parametrize("preference", [float("nan"), float("inf"), -0.1, 2.0])
def test_what_is_no_preference_is_refused_and_never_counted(preference: float) -> None:
    message = f"^a preference is a number from 0 to 1, or None; got {preference}.$"
    with pytest.raises(ValueError, match=message):
        preference_accuracy([preference], [1.0])
    with pytest.raises(ValueError, match=message):
        order_agreement([preference], [1.0])


def test_sides_of_different_lengths_are_refused() -> None:
    message = "^got 1 and 2 ratings; expected as many of one as of the other.$"
    for call in (preference_accuracy, cohen_kappa, order_agreement, llmbar_published_kappa):
        with pytest.raises(ValueError, match=message):
            call([1], [1, 0])


def test_kappa_by_hand() -> None:
    # 50 items; 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4, abs=1e-15)


@pytest.mark.parametrize("categories", [2, 3, 5])
def test_kappa_is_that_of_scikit_learn(categories: int) -> None:
    rng = np.random.default_rng(categories)
    for _ in range(20):
        first = rng.integers(categories, size=40)
        second = np.where(rng.random(40) < 0.5, first, rng.integers(categories, size=40))
        assert cohen_kappa(first.tolist(), second.tolist()) == pytest.approx(
            cohen_kappa_score(first, second), abs=1e-12
        )


def test_kappa_leaves_out_what_either_side_did_not_rate() -> None:
    assert cohen_kappa([1, 2, None, 1, 2], [1, 2, 1, None, 1]) == cohen_kappa([1, 2, 2], [1, 2, 1])


def test_kappa_is_undefined_without_items_or_with_one_category() -> None:
    assert cohen_kappa([], []) is None
    assert cohen_kappa([None, 1], [1, None]) is None
    assert cohen_kappa([1, 1, 1], [1, 1, 1]) is None
    assert cohen_kappa([1, 1, 1], [2, 2, 2]) == 0.0


def test_published_kappa_of_a_perfect_judge_shows_its_fault() -> None:
    labels = [1, 2, 1, 2, 2]
    assert cohen_kappa(labels, labels) == 1.0
    # Winners become 1, 0, 1, 0, 0: agreement 2/5 on "1" alone, by chance 4/25.
    assert llmbar_published_kappa(labels, labels) == pytest.approx((0.4 - 0.16) / (1 - 0.16))
    assert llmbar_published_kappa([1, None, 1, 2, None], labels) == llmbar_published_kappa(labels, labels)


def test_published_kappa_of_the_orders_is_right_until_something_was_not_read() -> None:
    forward, backward = [1, 2, 1, 2], [1, 2, 2, 2]
    assert llmbar_published_order_kappa(forward, backward) == cohen_kappa(forward, backward)
    assert llmbar_published_order_kappa([1, None], [1, 2]) == 1.0
    assert cohen_kappa([1, None], [1, 2]) is None


def test_agreement_of_the_orders() -> None:
    forward, backward = [1.0, 0.8, 0.5, None, None, 0.0], [1.0, 0.3, 0.5, None, 1.0, 0.1]
    assert order_agreement(forward, backward) == 3 / 4
    assert order_agreement(forward, backward, unread_agrees=True) == 4 / 6
    assert order_agreement([None], [1.0]) is None
    assert order_agreement([], [], unread_agrees=True) is None


def test_icc_is_that_of_shrout_and_fleiss() -> None:
    assert agreement.test_retest(SHROUT_FLEISS).icc == pytest.approx(0.29, abs=0.005)


def test_retest_by_hand_with_a_missing_rating() -> None:
    found = agreement.test_retest([[1, 1], [2, 3], [4, None], [5, 5]])
    assert found.exact == 2 / 3
    assert found.correlation == pytest.approx(np.corrcoef([1, 2, 5], [1, 3, 5])[0, 1])
    assert (found.items, found.complete, found.missing) == (4, 3, 1)
    assert found.icc == agreement.test_retest([[1, 1], [2, 3], [5, 5]]).icc


def test_retest_correlation_is_the_mean_over_pairs_of_rounds() -> None:
    rounds = np.array(SHROUT_FLEISS).T
    pairs = [np.corrcoef(rounds[i], rounds[j])[0, 1] for i in range(4) for j in range(i)]
    assert agreement.test_retest(SHROUT_FLEISS).correlation == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("ratings", [[], [[1], [2]], [[3, 3], [3, 3]], [[None, None]], [[1, 2]]])
def test_retest_is_undefined_without_rounds_or_variance(ratings: list[list[float | None]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement.test_retest(ratings)
    assert (found.correlation, found.icc) == (None, None)


def test_identical_rounds_agree_wholly() -> None:
    found = agreement.test_retest([[1, 1, 1], [4, 4, 4], [5, 5, 5]])
    assert found.exact == 1.0
    assert found.correlation == pytest.approx(1.0)
    assert found.icc == pytest.approx(1.0)


def test_ratings_that_are_ragged_or_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^test_retest got rows of \[1, 2\] ratings; expected as many a row.$"):
        agreement.test_retest([[1], [1, 2]])
    with pytest.raises(ValueError, match=r"^test_retest got a rating that is not finite; a missing one is None.$"):
        agreement.test_retest([[1, float("nan")]])
