"""Several models judge one rewrite: mean, majority, agreement, and members that cannot be read."""

import pytest

from instructgym.errors import CallTimeout, ConfigError
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards import make_reward
from instructgym.rewards.reviewers import ReviewerPanel
from instructgym.types import Instruction, Transition, Usage
from tests.rewards.judges import judge, tokens

PARENT, CHILD = Instruction("Name three rivers."), Instruction("Name three rivers of Asia, longest first.")
STEP = Transition(PARENT, PARENT, "add_constraints", CHILD, 0, 4)
YES, NO, HM = "Not Equal", "Equal", "Hm."
SPLIT = (YES, NO)
"""A member whose orders disagree: 0.5."""


def panel_of(*members):
    """(a reviewer whose model ``m0``, ``m1``... says what its member says, in each order; the models)."""

    def answer(request, k):
        said = members[int(request.model[1:])]
        forward = fenced_blocks(request.messages[1].content)["first"] == PARENT.text
        return (said[0] if forward else said[1]) if isinstance(said, tuple) else said

    return judge(answer), [f"m{number}" for number in range(len(members))]


async def test_the_members_are_models_of_the_reviewers_backend_and_their_mean_is_the_value():
    reviewer, models = panel_of(YES, NO, YES)
    score = await ReviewerPanel(reviewer, models).score(STEP)
    assert score.value == pytest.approx(2 / 3)
    assert score.terms == {
        "reviewer_panel": pytest.approx(2 / 3),
        "reviewer_panel/member_0": 1.0,
        "reviewer_panel/member_1": 0.0,
        "reviewer_panel/member_2": 1.0,
        "reviewer_panel/agreement": pytest.approx(1 / 3),
        "reviewer_panel/disagree": 0.0,
        "reviewer_panel/missing": 0.0,
        "reviewer_panel/unparsable": 0.0,
    }
    assert (score.usage, score.calls) == (Usage(60, 12), 6)
    requests = reviewer.backend.requests
    assert sorted(request.model for request in requests) == ["m0", "m0", "m1", "m1", "m2", "m2"]
    assert {(request.role, request.sampling, request.prompt_version) for request in requests} == {
        ("reviewer", reviewer.sampling, "equality/1")
    }


@pytest.mark.parametrize(
    ("members", "majority", "mean", "agreement"),
    [
        ((YES,), 1.0, 1.0, 1.0),
        ((NO,), 0.0, 0.0, 1.0),
        ((SPLIT,), 0.5, 0.5, 1.0),
        ((YES, YES), 1.0, 1.0, 1.0),
        ((YES, NO), 0.5, 0.5, 0.0),
        ((YES, SPLIT), 1.0, 0.75, 0.0),
        ((NO, SPLIT), 0.0, 0.25, 0.0),
        ((SPLIT, SPLIT), 0.5, 0.5, 1.0),
        ((YES, YES, NO), 1.0, 2 / 3, 1 / 3),
        ((YES, NO, SPLIT), 0.5, 0.5, 0.0),
        ((YES, YES, NO, NO), 0.5, 0.5, 1 / 3),
        ((YES, YES, YES, NO), 1.0, 0.75, 0.5),
    ],
)
async def test_majority_mean_and_agreement_by_hand(members, majority, mean, agreement):
    reviewer, models = panel_of(*members)
    for rule, value in (("majority", majority), ("mean", mean)):
        score = await ReviewerPanel(reviewer, models, rule=rule).score(STEP)
        assert score.value == pytest.approx(value)
        assert score.terms["reviewer_panel/agreement"] == pytest.approx(agreement)
        assert score.terms["reviewer_panel/disagree"] == members.count(SPLIT)


@pytest.mark.parametrize(
    ("members", "quorum", "value"),
    [
        ((YES, HM, NO), None, 0.5),
        ((YES, HM, HM), None, None),
        ((YES, HM, HM), 1, 1.0),
        ((YES, YES, HM), 3, None),
        ((YES, HM), None, None),
        ((HM, HM), 1, None),
    ],
)
async def test_a_panel_without_its_quorum_has_no_value(members, quorum, value):
    reviewer, models = panel_of(*members)
    score = await ReviewerPanel(reviewer, models, quorum=quorum, orders="forward", parse_retries=1).score(STEP)
    assert score.value == value
    assert ("reviewer_panel" in score.terms) == (value is not None)
    assert score.terms["reviewer_panel/missing"] == members.count(HM)
    assert score.terms["reviewer_panel/unparsable"] == 2 * members.count(HM)
    assert score.calls == len(members) + members.count(HM)
    for number, member in enumerate(members):
        assert (f"reviewer_panel/member_{number}" in score.terms) == (member != HM)


async def test_the_agreement_is_that_of_the_readable_members():
    reviewer, models = panel_of(YES, HM, YES)
    assert (await ReviewerPanel(reviewer, models).score(STEP)).terms["reviewer_panel/agreement"] == 1.0
    reviewer, models = panel_of(HM, HM)
    assert "reviewer_panel/agreement" not in (await ReviewerPanel(reviewer, models).score(STEP)).terms


async def test_a_panel_can_be_asked_for_the_gain():
    reviewer, models = panel_of(("Gain: 5", "Gain: 0"), ("Gain: 3", "Gain: 1"), ("Gain: 4", "Gain: 0"))
    score = await ReviewerPanel(reviewer, models, question="gain").score(STEP)
    assert score.value == pytest.approx((1.0 + 0.4 + 0.8) / 3)
    assert score.terms["reviewer_panel/agreement"] == pytest.approx(1 / 3)
    assert (await ReviewerPanel(reviewer, models, question="gain", rule="majority").score(STEP)).value == 1.0
    assert {request.prompt_version for request in reviewer.backend.requests} == {"gain/1"}


async def test_probabilities_vote_by_their_side():
    reviewer, models = panel_of(tokens({"Not": 0.6, "Equal": 0.4}, " Equal"), tokens({"Equal": 0.8, "Not": 0.2}), YES)
    mean = await ReviewerPanel(reviewer, models, logprobs=True).score(STEP)
    assert mean.value == pytest.approx((0.6 + 0.2 + 1.0) / 3)
    assert mean.terms["reviewer_panel/from_logprobs"] == 0.0
    assert (await ReviewerPanel(reviewer, models, rule="majority", logprobs=True).score(STEP)).value == 1.0
    assert {request.sampling.top_logprobs for request in reviewer.backend.requests} == {20}


async def test_a_member_that_fails_is_an_error_and_not_a_missing_member():
    reviewer, models = panel_of(YES, CallTimeout("no answer in 5 s"), YES)
    with pytest.raises(CallTimeout, match=r"^no answer in 5 s$"):
        await ReviewerPanel(reviewer, models).score(STEP)


async def test_a_rewrite_that_is_missing_has_no_value_and_costs_no_call():
    reviewer, models = panel_of(YES)
    assert (await ReviewerPanel(reviewer, models).score(Transition(PARENT, PARENT, "deepen", None, 0, 4))).value is None
    assert reviewer.backend.requests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^reviewer_panel got models = \(\); expected a list with one name of a model or more\.$"),
        ({"models": "a"}, r"^reviewer_panel got models = 'a'; expected a list with one name of a model or more\.$"),
        ({"models": 3}, r"^reviewer_panel got models = 3; expected a list with one name of a model or more\.$"),
        (
            {"models": ["a", ""]},
            r"^reviewer_panel got models = \['a', ''\]; expected a list with one name of a model or more\.$",
        ),
        ({"models": ["a", "a"]}, r"^reviewer_panel got models = \['a', 'a'\]; expected each model once\.$"),
        (
            {"models": ["a"], "question": "quality"},
            r"^reviewer_panel got question = 'quality'; expected 'equality' or 'gain'\.$",
        ),
        ({"models": ["a"], "rule": "median"}, r"^reviewer_panel got rule = 'median'; expected 'mean' or 'majority'\.$"),
        ({"models": ["a"], "quorum": 0}, r"^reviewer_panel got quorum = 0; expected a whole number of 1 or more\.$"),
        (
            {"models": ["a"], "quorum": 2},
            r"^reviewer_panel got quorum = 2 for 1 models; expected no more than those\.$",
        ),
        ({"models": ["a"], "orders": "none"}, r"^reviewer_panel got orders = 'none'; expected 'both' or 'forward'\.$"),
    ],
)
def test_bad_options_are_refused_with_words(options, message):
    with pytest.raises(ConfigError, match=message):
        make_reward({"type": "reviewer_panel", **options}, reviewer=judge(YES))
