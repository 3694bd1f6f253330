import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from instructgym.train.alignment.gate import AnchorResult, check_gate, exact_interval
from instructgym.train.alignment.records import Judgement
from instructgym.train.alignment.settings import GateSettings

GOOD = [1.0, 2.0, 3.0, 4.0, 5.0] * 4


def judged(scores, unread=0):
    found = [Judgement(f"p{place}", 0, "j", score, (score,)) for place, score in enumerate(scores)]
    return found + [Judgement(f"u{place}", 0, "j", None, (None,)) for place in range(unread)]


def anchors(right=0, wrong=0, ties=0, unread=0):
    kinds = ((right, 4.0, 1.0), (wrong, 1.0, 4.0), (ties, 3.0, 3.0), (unread, None, 3.0))
    return [AnchorResult(better, worse) for count, better, worse in kinds for _ in range(count)]


def checked(judgements, found=None, **options):
    found = anchors(right=20) if found is None else found
    return check_gate(judgements, scale=(0, 5), anchors=found, settings=GateSettings(**options))


def test_a_good_judge_passes():
    report = checked(judged(GOOD), anchors(right=26, wrong=4, ties=10))
    assert (report.passed, report.reasons, report.notes) == (True, (), ())
    assert report.parse_rate == 1.0
    assert report.agreement == 26 / 30
    assert report.tie_rate == 0.25
    assert (report.same_score, report.common_score) == (0.2, 1.0)
    assert report.spread == pytest.approx(2**0.5)
    assert report.explain() == (
        "The judge passed: 100.0% of its replies could be read; it agrees with 86.7% of the anchors it decided (69.3% "
        "to 96.2%)."
    )
    assert json.loads(json.dumps(report.numbers))["anchors_read"] == 40


@pytest.mark.parametrize(
    ("judgements", "found", "reason"),
    [
        (judged(GOOD, unread=2), None, "90.9% of its 22 replies could be read (at least 95% expected)"),
        (
            judged(GOOD),
            anchors(right=60, wrong=45),
            "its agreement with people is at chance: 60 of 105 anchor pairs, 57.1% (interval 47.1% to 66.8%; expected "
            "all of it above 50%)",
        ),
        (
            judged(GOOD),
            anchors(right=2, wrong=20),
            "its agreement with people is against people: 2 of 22 anchor pairs, 9.1% (interval 1.1% to 29.2%; expected "
            "all of it above 50%)",
        ),
        (
            judged(GOOD),
            anchors(right=8, ties=42),
            "it gave equal scores in 42 of 50 anchor pairs (at most 80% expected)",
        ),
        (judged(GOOD), anchors(right=9, unread=11), "9 of 20 anchor pairs could be read (at least half expected)"),
        (
            judged([5.0] * 18 + [4.0, 3.0]),
            None,
            "its scores saturate: 90.0% of 20 answers got 5 (less than 90% expected)",
        ),
        (
            judged([4.0, 4.2, 4.1, 3.9] * 5),
            None,
            "its scores hardly differ: their standard deviation is 0.112 points (at least 0.25 expected)",
        ),
    ],
)
def test_a_judge_that_cannot_be_believed_halts_the_run(judgements, found, reason):
    report = checked(judgements, found)
    assert (report.passed, report.reasons) == (False, (reason,))
    assert report.explain() == f"The judge did not pass: {reason}."


def test_every_reason_is_given():
    report = checked(judged([], unread=20), anchors(unread=20))
    assert report.reasons == (
        "0.0% of its 20 replies could be read (at least 95% expected)",
        "none of its 20 judgements has a score",
        "0 of 20 anchor pairs could be read (at least half expected)",
    )
    assert (report.agreement, report.interval, report.tie_rate, report.spread) == (None, None, None, None)


def test_nothing_judged_does_not_pass():
    assert checked([]).reasons == ("it gave no judgement",)


def test_ties_alone_decide_nothing():
    report = checked(judged(GOOD), anchors(ties=30), max_tie_rate=1.0)
    assert report.reasons == ("it decided none of 30 anchor pairs",)


def test_few_anchors_say_nothing_and_the_report_says_so():
    report = checked(judged(GOOD), anchors(wrong=19))
    assert report.passed
    assert report.notes == ("agreement is not checked (19 anchors; 20 or more expected)",)
    assert report.agreement == 0.0
    assert report.explain() == (
        "The judge passed: 100.0% of its replies could be read; it agrees with 0.0% of the anchors it decided (0.0% to "
        "17.6%); agreement is not checked (19 anchors; 20 or more expected)."
    )


def test_the_spread_is_measured_on_the_scale():
    scores = judged([0.5, 0.6, 0.7, 0.4] * 5)
    assert checked(scores).reasons[0].startswith("its scores hardly differ")
    assert check_gate(scores, scale=(0, 1)).passed


def test_a_single_score_is_neither_saturated_nor_collapsed():
    assert checked(judged([5.0])).passed


def test_a_judge_at_chance_rarely_passes_and_a_good_one_mostly_does():
    rng = np.random.default_rng(0)

    def passes(reliability):
        right = rng.binomial(100, reliability, size=200).tolist()
        return sum(checked(judged(GOOD), anchors(right=each, wrong=100 - each)).passed for each in right) / 200

    assert passes(0.5) <= 0.06
    assert passes(0.75) >= 0.95


@given(st.integers(0, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
@settings(max_examples=60, deadline=None)
def test_the_interval_is_clopper_and_pearsons(counts, confidence):
    successes, n = counts
    found = exact_interval(successes, n, confidence)
    if n == 0:
        assert found is None
    else:
        assert found == pytest.approx(
            tuple(binomtest(successes, n).proportion_ci(confidence, method="exact")), abs=1e-9
        )


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"exact_interval got 3 of 2; expected 0 <= successes <= n\."):
        exact_interval(3, 2)
    with pytest.raises(ValueError, match=r"check_gate got the scale 5 to 5; expected low < high\."):
        check_gate([], scale=(5, 5))
