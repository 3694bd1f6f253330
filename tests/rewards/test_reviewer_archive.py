"""The reviewer compares a rewrite with the nearest that were kept."""

import pytest

from instructgym.errors import ConfigError
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards import HashingEncoder, make_reward
from instructgym.rewards.reviewers import ReviewerArchive
from instructgym.types import Elimination, Instruction, Transition
from tests.rewards.judges import judge, tokens

SEED, PARENT = Instruction("Rivers?"), Instruction("Name three rivers.")
CHILD = Instruction("Name three rivers of Asia, longest first.")
NEAR, NEXT, FAR = (
    Instruction("Name three rivers of Asia, shortest first."),
    Instruction("Name three long rivers."),
    Instruction("Bake bread at home."),
)
ENCODER = HashingEncoder()


def step(child, **more):
    return Transition(SEED, PARENT, "add_constraints", child, 1, 4, **more)


def kept_in(reviewer, *children, **options):
    reward = ReviewerArchive(reviewer, ENCODER, **options)
    if children:
        reward.commit([step(child) for child in children])
    return reward


def compared(reviewer):
    """What each request compared, as sets of texts."""
    asked = (fenced_blocks(request.messages[1].content) for request in reviewer.backend.requests)
    return [frozenset((blocks["first"], blocks["second"])) for blocks in asked]


def says_equal_to(*texts):
    def answer(request, k):
        blocks = fenced_blocks(request.messages[1].content)
        return "Equal" if {blocks["first"], blocks["second"]} & {text.render() for text in texts} else "Not Equal"

    return judge(answer)


async def test_an_empty_archive_compares_with_the_parent():
    reviewer = judge("Not Equal")
    score = await kept_in(reviewer).score(step(CHILD))
    assert score.value == 1.0
    assert score.terms == {
        "reviewer_archive": 1.0,
        "reviewer_archive/member_0": 1.0,
        "reviewer_archive/disagree": 0.0,
        "reviewer_archive/unparsable": 0.0,
        "reviewer_archive/version": 0.0,
        "reviewer_archive/size": 0.0,
    }
    assert compared(reviewer) == [frozenset((PARENT.text, CHILD.text))] * 2


async def test_the_nearest_members_are_compared_and_the_smallest_value_counts():
    reviewer = says_equal_to(NEXT)
    reward = kept_in(reviewer, FAR, NEXT, NEAR, k=2)
    score = await reward.score(step(CHILD))
    assert score.value == 0.0
    assert (score.terms["reviewer_archive/member_0"], score.terms["reviewer_archive/member_1"]) == (1.0, 0.0)
    assert (score.terms["reviewer_archive/version"], score.terms["reviewer_archive/size"]) == (1.0, 3.0)
    assert 0.5 < score.terms["reviewer_archive/nearest"] < 1.0
    assert set(compared(reviewer)) == {frozenset((CHILD.text, NEAR.text)), frozenset((CHILD.text, NEXT.text))}
    assert score.calls == 4
    assert (await kept_in(says_equal_to(FAR), FAR, NEXT, NEAR, k=2).score(step(CHILD))).value == 1.0


async def test_fewer_members_than_asked_for_are_all_compared_once():
    reviewer = judge("Not Equal")
    await kept_in(reviewer, NEAR, k=5, orders="forward").score(step(CHILD))
    assert compared(reviewer) == [frozenset((CHILD.text, NEAR.text))]


async def test_inputs_belong_to_what_is_compared():
    with_input = Instruction("Sum up.", "a,b\n1,2")
    reviewer = judge("Equal")
    assert (await kept_in(reviewer, with_input, orders="forward").score(step(with_input))).value == 0.0
    assert compared(reviewer) == [frozenset((with_input.render(),))]


async def test_one_member_that_cannot_be_read_makes_the_value_missing():
    reviewer = judge(lambda request, k: "Hm." if NEXT.text in request.messages[1].content else "Not Equal")
    score = await kept_in(reviewer, NEXT, NEAR, k=2, parse_retries=1).score(step(CHILD))
    assert score.value is None
    assert score.terms["reviewer_archive/unparsable"] == 4.0
    assert score.terms["reviewer_archive/member_0"] == 1.0
    assert not {"reviewer_archive", "reviewer_archive/member_1"} & set(score.terms)


async def test_only_accepted_rewrites_are_kept_and_only_by_a_commit():
    reward = kept_in(judge("Not Equal"))
    reward.commit([step(NEAR, elimination=Elimination("copy")), step(None), step(FAR)])
    before = (await reward.score(step(CHILD))).terms
    await reward.score(step(NEXT))
    assert (await reward.score(step(CHILD))).terms == before
    assert (before["reviewer_archive/version"], before["reviewer_archive/size"]) == (1.0, 1.0)


async def test_the_memory_is_saved_with_its_texts():
    reward = kept_in(judge("Not Equal"), NEAR)
    reviewer = says_equal_to(NEAR)
    again = ReviewerArchive(reviewer, ENCODER)
    again.load_state_dict(reward.state_dict())
    assert (await again.score(step(CHILD))).value == 0.0


async def test_probabilities_are_taken_at_the_verdict():
    reply = tokens("Reasons.\n", {"Not": 0.9, "Equal": 0.1}, " Equal")
    score = await kept_in(judge(lambda request, k: reply), NEAR, logprobs=True).score(step(CHILD))
    assert (score.value, score.terms["reviewer_archive/from_logprobs"]) == (pytest.approx(0.9), 1.0)


async def test_a_rewrite_that_is_missing_has_no_value_and_costs_no_call():
    reviewer = judge("Not Equal")
    assert (await kept_in(reviewer, NEAR).score(step(None))).value is None
    assert reviewer.backend.requests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"^reviewer_archive got k = 0; expected a whole number of 1 or more\.$"),
        ({"orders": 2}, r"^reviewer_archive got orders = 2; expected 'both' or 'forward'\.$"),
        ({"logprobs": 1}, r"^reviewer_archive got logprobs = 1; expected true or false\.$"),
        ({"parse_retries": -1}, r"^reviewer_archive got parse_retries = -1; expected 0 or more\.$"),
    ],
)
def test_bad_options_are_refused_with_words(options, message):
    with pytest.raises(ConfigError, match=message):
        make_reward({"type": "reviewer_archive", **options}, reviewer=judge("Equal"), encoder=ENCODER)
