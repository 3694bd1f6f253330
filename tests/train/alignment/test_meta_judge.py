import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards.judging.additive import additive_messages
from instructgym.train.alignment.judgements import ADDITIVE
from instructgym.train.alignment.meta_judge import (
    Comparison,
    compare_judgements,
    elo_ratings,
    judge_pair,
    meta_judge_messages,
    most_disputed,
    most_judge_pairs,
    position_weights,
    read_meta_judge,
)
from instructgym.train.alignment.records import Candidate, Judgement, Prompt
from instructgym.types import Completion
from tests.rewards.judges import judge

PROMPT = Prompt("p", "Name a river.")
ANSWER = Candidate("p", 0, "Lena", "M1")
REPLIES = ("Poor.\nScore: 1", "??", "Right.\nScore: 4", "Perfect.\nScore: 5")
JUDGED = Judgement("p", 0, "M1", 10 / 3, (1.0, None, 4.0, 5.0), REPLIES)


def prefers(*order):
    def script(request, k):
        blocks = fenced_blocks(request.messages[-1].content)
        one, two = (order.index(blocks[name]) for name in ("judgement_a", "judgement_b"))
        return "A" if one < two else "B"

    return judge(script)


def test_the_question_shows_what_was_asked_and_both_replies():
    asked = additive_messages(PROMPT.as_instruction, "Lena")
    system, user = meta_judge_messages(asked, "one", "two")
    assert system.content == "You compare two judgements of an answer."
    blocks = fenced_blocks(user.content)
    assert list(blocks) == ["question", "judgement_a", "judgement_b"]
    assert blocks["question"] == f"{asked[0].content}\n\n{asked[1].content}"
    assert (blocks["judgement_a"], blocks["judgement_b"]) == ("one", "two")


@pytest.mark.parametrize(
    ("reply", "verdict"), [("A", True), ("Because.\n**B**", False), ("Tie", None), ("A is better", None), ("", None)]
)
def test_the_verdict_is_read(reply, verdict):
    assert read_meta_judge(Completion(reply)) is verdict


async def test_every_two_valid_judgements_are_compared_in_both_orders():
    llm = prefers(REPLIES[2], REPLIES[3], REPLIES[0])
    found = await compare_judgements(llm, PROMPT, ANSWER, JUDGED, question=ADDITIVE)
    assert found == [Comparison(0, 2, False, False), Comparison(0, 3, False, False), Comparison(2, 3, True, True)]
    assert len(llm.backend.requests) == 6
    assert {request.prompt_version for request in llm.backend.requests} == {"meta_judge/1"}
    assert len(await compare_judgements(llm, PROMPT, ANSWER, JUDGED, question=ADDITIVE, most=2)) == 1


async def test_orders_that_disagree_and_replies_that_cannot_be_read_are_kept_apart():
    found = await compare_judgements(judge("A"), PROMPT, ANSWER, JUDGED, question=ADDITIVE, most=2)
    assert found == [Comparison(0, 2, True, False)]
    found = await compare_judgements(judge("both"), PROMPT, ANSWER, JUDGED, question=ADDITIVE, most=2)
    assert found == [Comparison(0, 2, None, None)]


async def test_equal_replies_are_not_compared():
    same = Judgement("p", 0, "M1", 1.0, (1.0, 1.0), ("Score: 1", "Score: 1 "))
    llm = judge("A")
    assert await compare_judgements(llm, PROMPT, ANSWER, same, question=ADDITIVE) == []
    assert llm.backend.requests == []


async def test_a_judgement_of_another_answer_is_refused():
    other = Candidate("p", 1, "Ob", "M1")
    with pytest.raises(ValueError, match="the judgement is of answer 0 to prompt 'p'; expected answer 1 to 'p'"):
        await compare_judgements(judge("A"), PROMPT, other, JUDGED, question=ADDITIVE)


def test_a_place_that_wins_more_counts_less():
    # A wins three of four: forward True is a win of A, and so is backward False.
    found = [Comparison(0, 1, True, False), Comparison(0, 2, True, True)]
    assert position_weights(found) == (0.25, 0.75)
    assert position_weights([]) == (0.5, 0.5)
    assert position_weights([Comparison(0, 1, None, None)]) == (0.5, 0.5)


def test_ratings_are_the_most_likely_ones():
    found = [Comparison(0, 1, True, True), Comparison(0, 1, True, False)]
    # 1.5 wins to 0.5, each with precision `prior`: the gradient vanishes where 1.5 - 2 sigmoid(2 r) = prior r.
    ratings = elo_ratings(found, prior=0.01)
    r = ratings[0]
    assert ratings[1] == pytest.approx(-r)
    assert 1.5 - 2 / (1 + math.exp(-2 * r)) == pytest.approx(0.01 * r, abs=1e-9)
    assert elo_ratings([]) == {}


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.sampled_from([True, False, None]), st.booleans()),
        max_size=12,
    )
)
def test_ratings_are_finite_centred_and_do_not_hang_on_the_order(rows):
    found = [Comparison(one, two, forward, backward) for one, two, forward, backward in rows if one != two]
    weights = position_weights(found)
    ratings = elo_ratings(found, weights)
    assert all(map(math.isfinite, ratings.values()))
    assert math.fsum(ratings.values()) == pytest.approx(0, abs=1e-9)
    turned = [
        Comparison(each.second, each.first, None if each.backward is None else not each.backward,
                   None if each.forward is None else not each.forward)
        for each in found[::-1]
    ]  # fmt: skip
    assert position_weights(turned) == pytest.approx(weights)
    assert elo_ratings(turned, weights) == pytest.approx(ratings, abs=1e-8)


def test_ratings_find_the_true_order():
    rng = np.random.default_rng(0)
    truth = [2.0, 0.0, 1.0, -1.0]
    odds = lambda one, two: 1 / (1 + math.exp(truth[two] - truth[one]))  # noqa: E731
    found = [
        Comparison(one, two, bool(rng.random() < odds(one, two)), bool(rng.random() < odds(one, two)))
        for _ in range(200)
        for one in range(4)
        for two in range(one)
    ]
    ratings = elo_ratings(found)
    assert [ratings[draw] for draw in range(4)] == pytest.approx([each - 0.5 for each in truth], abs=0.35)


def test_a_prior_that_is_not_above_zero_is_refused():
    with pytest.raises(ValueError, match=r"elo_ratings got prior = 0; expected above 0\."):
        elo_ratings([], prior=0)


async def test_the_best_judgement_is_preferred_to_the_worst():
    llm = prefers(REPLIES[2], REPLIES[3], REPLIES[0])
    found = await compare_judgements(llm, PROMPT, ANSWER, JUDGED, question=ADDITIVE)
    pair = judge_pair(ADDITIVE, PROMPT, ANSWER, JUDGED, elo_ratings(found))
    assert (pair.chosen, pair.rejected) == (REPLIES[2], REPLIES[0])
    assert (pair.chosen_draw, pair.rejected_draw) == (2, 0)
    assert pair.messages == tuple(additive_messages(PROMPT.as_instruction, "Lena"))
    assert pair.chosen_rating > 0 > pair.rejected_rating


def test_judgements_that_are_no_better_than_each_other_make_no_pair():
    assert judge_pair(ADDITIVE, PROMPT, ANSWER, JUDGED, {}) is None
    assert judge_pair(ADDITIVE, PROMPT, ANSWER, JUDGED, {0: 0.0, 2: 0.0}) is None
    same = Judgement("p", 0, "M1", 1.0, (1.0, 1.0), ("Score: 1", "Score: 1 "))
    assert judge_pair(ADDITIVE, PROMPT, ANSWER, same, {0: 1.0, 1: -1.0}) is None


def test_the_most_disputed_answer_of_a_prompt_is_taken():
    rows = [
        Judgement("p", 0, "j", 3.0, (3.0, 3.0)),
        Judgement("p", 1, "j", 3.0, (2.0, 4.0)),
        Judgement("p", 2, "j", 3.0, (4.0, 2.0)),
        Judgement("q", 0, "j", 3.0, (0.0, 5.0, None)),
        Judgement("r", 0, "j", None, (0.0, None)),
        Judgement("s", 0, "j", 3.0, (3.0, 3.0)),
    ]
    assert most_disputed(rows, 10) == [rows[3], rows[1]]
    assert most_disputed(rows, 1) == [rows[3]]
    assert most_disputed([], 3) == []


@given(st.integers(0, 500), st.sampled_from([0.0, 0.05, 0.15, 0.2, 0.25, 0.5, 0.9]))
def test_judge_pairs_are_as_many_as_the_share_allows_and_no_more(pairs, share):
    count = most_judge_pairs(pairs, share)
    assert count <= share * (pairs + count) + 1e-9
    assert count + 1 > share * (pairs + count + 1) - 1e-9


def test_seventeen_of_a_hundred_and_seventeen_are_at_most_fifteen_percent():
    assert most_judge_pairs(100) == 17
    assert most_judge_pairs(85) == 15  # exactly 15 of 100
    with pytest.raises(ValueError, match=r"most_judge_pairs got pairs = -1 and share = 0\.15; expected 0 or more"):
        most_judge_pairs(-1)
