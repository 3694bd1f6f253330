import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.errors import CallTimeout, ConfigError
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards.judging.additive import additive_messages
from instructgym.train.alignment.anchors import anchor_pairs, split_anchors
from instructgym.train.alignment.eft import (
    JudgeExample,
    agrees_with_ranks,
    examples_from_ranks,
    examples_from_score,
    on_scale,
    rebalance,
    to_scale,
    written_reply,
)
from instructgym.train.alignment.eft_files import RankedAnswers, ScoredAnswer, read_eft, row_of
from instructgym.train.alignment.judgements import ADDITIVE, JudgeQuestion
from instructgym.types import Instruction, Message
from tests.rewards.judges import judge

TASK = Instruction("Name a river.", "Asia")
RANKED = RankedAnswers("r", TASK, ("Lena", "Thames", "no"), (0.0, 1.0, 2.0))


def scoring(*draws):
    """A judge that gives each answer, by its text, the scores of its draws."""

    def script(request, k):
        answer = fenced_blocks(request.messages[-1].content)["answer"]
        score = draws[request.sample[0]][RANKED.answers.index(answer)]
        return "no idea" if score is None else f"Because.\nScore: {score}"

    return judge(script)


async def test_the_first_draw_that_agrees_with_people_is_kept():
    llm = scoring((1, 2, 3), (5, 3, 1), (4, 3, 2))
    found = await examples_from_ranks(llm, RANKED)
    assert found.dropped is None
    assert [example.score for example in found.examples] == [5.0, 3.0, 1.0]
    assert found.examples[1].messages == (
        *additive_messages(TASK, "Thames"),
        Message("assistant", "Because.\nScore: 3"),
    )
    row = found.examples[1].as_row()
    assert (row["prompt"], row["answer"], row["score"]) == ("r", 1, 3.0)
    assert row["messages"][-1] == {"role": "assistant", "content": "Because.\nScore: 3"}
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize(
    ("draws", "order", "dropped"),
    [
        (((1, 2, 3),) * 3, "strict", "disagrees"),
        (((5, 5, 1),) * 3, "strict", "disagrees"),
        (((5, 5, 1),) * 3, "weak", None),
        (((3, 3, 3),) * 3, "weak", "disagrees"),
        (((5, None, 1),) * 3, "strict", "unparsed"),
        (((5, None, 1), (1, 1, 1), (None, 1, 1)), "weak", "disagrees"),
    ],
)
async def test_draws_that_do_not_agree_are_dropped(draws, order, dropped):
    found = await examples_from_ranks(scoring(*draws), RANKED, order=order)
    assert found.dropped == dropped
    assert bool(found.examples) == (dropped is None)


async def test_equal_ranks_are_no_order_and_ask_nothing():
    llm = judge("Score: 1")
    found = await examples_from_ranks(llm, RankedAnswers("r", TASK, ("a", "b"), (1.0, 1.0)))
    assert (found.examples, found.dropped, llm.backend.requests) == ((), "no_order", [])


async def test_a_failed_call_is_raised():
    with pytest.raises(CallTimeout):
        await examples_from_ranks(judge(lambda request, k: CallTimeout("late")), RANKED)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=5))
@settings(max_examples=100, deadline=None)
def test_agreement_is_what_its_definition_says(rows):
    scores, ranks = zip(*rows, strict=True)
    unequal = [(a, b) for a, b in combinations(range(len(rows)), 2) if ranks[a] != ranks[b]]
    signs = [(scores[a] - scores[b]) * (ranks[b] - ranks[a]) for a, b in unequal]
    assert agrees_with_ranks(scores, ranks) == (bool(signs) and all(sign > 0 for sign in signs))
    assert agrees_with_ranks(scores, ranks, "weak") == (all(s >= 0 for s in signs) and any(s > 0 for s in signs))
    assert not agrees_with_ranks([None, *scores[1:]], ranks)


def test_agreement_needs_as_many_ranks_as_scores():
    with pytest.raises(ValueError, match=r"got 1 scores and 2 ranks; expected as many of one as of the other\."):
        agrees_with_ranks([1.0], [0.0, 1.0])


async def test_the_first_reply_with_the_labelled_score_is_kept():
    replies = ["Hm.\nScore: 2", "Score: 4", "Fine.\nScore: 4"]
    row = ScoredAnswer("s", TASK, "Lena", 4.0)
    found = await examples_from_score(judge(lambda request, k: replies[request.sample[0]]), row)
    assert [example.messages[-1].content for example in found.examples] == ["Score: 4"]
    assert (await examples_from_score(judge("Score: 3"), row)).dropped == "disagrees"
    assert (await examples_from_score(judge("who knows"), row)).dropped == "unparsed"


async def test_a_label_with_reasons_needs_no_judge():
    llm = judge("Score: 1")
    found = await examples_from_score(llm, ScoredAnswer("s", TASK, "Lena", 4.0, "It is right. "))
    assert found.examples[0].messages[-1] == Message("assistant", "It is right.\n\nScore: 4")
    assert llm.backend.requests == []


async def test_a_label_out_of_the_scale_is_refused():
    with pytest.raises(ConfigError) as error:
        await examples_from_score(judge("Score: 1"), ScoredAnswer("s", TASK, "Lena", 7.0))
    assert str(error.value) == (
        "the score of answer 's' is 7; expected 0 to 5, the scale of question 'additive'. Set eft.label_scale to the "
        "scale of the labels."
    )


def test_a_files_labels_are_carried_over_and_its_ranks_left_alone():
    rows = [RANKED, ScoredAnswer("s", TASK, "Lena", 10.0)]
    assert on_scale(rows, (1, 10), (0, 5)) == [RANKED, ScoredAnswer("s", TASK, "Lena", 5.0)]
    with pytest.raises(ConfigError) as error:
        on_scale(rows, None, (0, 5))
    assert str(error.value) == (
        "the score of answer 's' is 10; expected 0 to 5. Set eft.label_scale to the scale of the labels."
    )


def test_a_reply_is_only_written_in_a_format_that_the_question_reads():
    assert written_reply(ADDITIVE, "", 2.0) == "Score: 2"
    other = JudgeQuestion("stars", "stars/1", (1, 5), additive_messages, lambda completion: None)
    with pytest.raises(ConfigError, match=r"question 'stars' reads 'Good.*Score: 2' as None; expected 2"):
        written_reply(other, "Good.", 2.0)


@pytest.mark.parametrize(
    ("score", "labels", "expected"),
    [(1, (1, 10), 0), (10, (1, 10), 5), (5.5, (1, 10), 3), (0.29, (0, 1), 1), (3, (0, 5), 3)],
)
def test_labels_of_another_scale_are_carried_over(score, labels, expected):
    assert to_scale(score, labels, (0, 5)) == expected


def test_labels_outside_their_scale_are_refused():
    with pytest.raises(ConfigError, match=r"a label is 11; expected 1 to 10\."):
        to_scale(11, (1, 10), (0, 5))
    with pytest.raises(ConfigError, match=r"the labels' scale is 3 to 3; expected low < high\."):
        to_scale(3, (3, 3), (0, 5))


def example(number, score):
    return JudgeExample(f"p{number}", 0, (), score)


@given(st.lists(st.integers(0, 3), max_size=30), st.sampled_from([1.0, 1.5, 3.0]))
@settings(max_examples=100, deadline=None)
def test_the_commonest_score_is_thinned_and_nothing_else(scores, most):
    given_ones = [example(number, float(score)) for number, score in enumerate(scores)]
    kept, dropped = rebalance(given_ones, np.random.default_rng(0), most=most)
    counts = sorted((scores.count(score) for score in set(scores)), reverse=True)
    assert len(kept) + dropped == len(given_ones)
    assert dropped == (max(counts[0] - int(most * counts[1]), 0) if len(counts) > 1 else 0)
    assert [each for each in given_ones if each in kept] == kept  # in order
    assert len({each.score for each in given_ones if each not in kept}) <= 1
    assert rebalance(given_ones, np.random.default_rng(0), most=most) == (kept, dropped)


def test_rebalancing_below_one_is_refused():
    with pytest.raises(ValueError, match=r"rebalance got most = 0\.5; expected 1 or more\."):
        rebalance([], np.random.default_rng(0), most=0.5)


def ranked(name, answers=("a", "b"), ranks=(1.0, 0.0)):
    return RankedAnswers(name, Instruction(name), answers, ranks)


def test_an_anchor_is_the_best_and_the_worst_of_a_prompt():
    rows = [
        ranked("one", ("a", "b", "c"), (1.0, 0.0, 2.0)),
        ranked("equal", ("a", "b"), (1.0, 1.0)),
        ranked("same", ("a", " a"), (0.0, 1.0)),
        ScoredAnswer("x", Instruction("two"), "low", 1.0),
        ScoredAnswer("y", Instruction("two"), "high", 4.0),
        ScoredAnswer("z", Instruction("three"), "alone", 4.0),
    ]
    assert anchor_pairs(rows) == [
        {"instruction": "one", "input": "", "better": "b", "worse": "c"},
        {"instruction": "two", "input": "", "better": "high", "worse": "low"},
    ]


def test_a_judge_is_measured_on_prompts_that_it_did_not_learn_from():
    rows = [ranked(f"p{number}") for number in range(20)]
    learned, held_out = split_anchors(rows, 5, np.random.default_rng(1))
    assert (len(learned), len(held_out)) == (15, 5)
    assert {row.instruction.text for row in learned}.isdisjoint(pair["instruction"] for pair in held_out)
    assert [row for row in rows if row in learned] == learned
    assert split_anchors(rows, 5, np.random.default_rng(1)) == (learned, held_out)
    assert len(split_anchors(rows, 500, np.random.default_rng(1))[1]) == 10  # half at most
    assert split_anchors([], 5, np.random.default_rng(1)) == ([], [])


@pytest.mark.parametrize(
    ("value", "row"),
    [
        (
            {"id": 7, "prompt": "p", "input": "i", "answers": ["a", "b"], "ranks": [1, 0]},
            RankedAnswers("7", Instruction("p", "i"), ("a", "b"), (1.0, 0.0)),
        ),
        (
            {"instruction": "p", "chosen": "a", "rejected": "b"},
            RankedAnswers("here", Instruction("p"), ("a", "b"), (0.0, 1.0)),
        ),
        (
            {"instruction": "p", "response": "a", "score": 3, "rationale": "Why."},
            ScoredAnswer("here", Instruction("p"), "a", 3.0, "Why."),
        ),
    ],
)
def test_ranked_preferred_and_scored_answers_are_read(value, row):
    assert row_of(value, "here") == row


FORMS = (
    "expected 'answers' with 'ranks' (the lowest is the best), 'chosen' with 'rejected', or 'answer' with 'score', "
    "beside 'instruction' or 'prompt'"
)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1], f"the record is a list; {FORMS}"),
        ({"answers": ["a", "b"], "ranks": [0, 1]}, f"the record has no 'instruction' or 'prompt'; {FORMS}"),
        ({"prompt": "p", "output": "a"}, f"the record has the fields prompt, output; {FORMS}"),
        ({"prompt": " ", "output": "a"}, "'prompt' is ' '; expected a text"),
        (
            {"prompt": "p", "answers": ["a"], "ranks": [0]},
            "expected 'answers' and 'ranks' to be lists of as many entries, two or more",
        ),
        ({"prompt": "p", "answers": ["a", ""], "ranks": [0, 1]}, "answer 1 is ''; expected a text"),
        ({"prompt": "p", "answers": ["a", "b"], "ranks": [0, "x"]}, "rank 1 is 'x'; expected a number"),
        ({"prompt": "p", "answer": "a", "score": True}, "'score' is True; expected a number"),
    ],
)
def test_a_bad_row_says_what_is_wrong(value, message):
    with pytest.raises(ValueError, match=r".") as error:
        row_of(value, "here")
    assert str(error.value) == message


def test_a_file_is_read_line_by_line(tmp_path):
    path = tmp_path / "eft.jsonl"
    lines = [
        {"prompt": "p", "answers": ["a", "b"], "ranks": [0, 1]},
        {"prompt": "p"},
        {"id": "x", "prompt": "q", "answer": "a", "score": 1},
        {"id": "x", "prompt": "q", "answer": "b", "score": 2},
    ]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    found = read_eft(path, skip_bad=True)
    assert [row.id for row in found.rows] == ["row-1", "x"]
    assert found.skipped == (
        (2, f"the record has the fields prompt; {FORMS}"),
        (4, "the id 'x' is that of a row before"),
    )
    assert len(read_eft(path, limit=1).rows) == 1
    with pytest.raises(ConfigError) as error:
        read_eft(path)
    assert str(error.value) == (
        f"the EFT file {path}, line 2: the record has the fields prompt; {FORMS}. Mend it, or set eft.skip_bad."
    )


def test_a_file_without_rows_is_refused(tmp_path):
    path = tmp_path / "eft.jsonl"
    with pytest.raises(ConfigError) as error:
        read_eft(path)
    assert str(error.value) == f"the EFT file {path} cannot be read: No such file or directory."
    path.write_text(" \n")
    with pytest.raises(ConfigError) as error:
        read_eft(path)
    assert str(error.value) == f"the EFT file {path} is empty; expected a line with answers and ranks or a score."
    path.write_text("{}\n")
    with pytest.raises(ConfigError) as error:
        read_eft(path, skip_bad=True)
    assert str(error.value) == (
        f"the EFT file {path} has no usable row; 1 are bad, the first: the record has no 'instruction' or 'prompt'; "
        f"{FORMS}."
    )
    path.write_text("[]")
    with pytest.raises(ConfigError) as error:
        read_eft(path)
    assert str(error.value) == f"the EFT file {path} has no usable row."


def test_rows_of_one_line_have_names_of_their_own(tmp_path):
    path = tmp_path / "eft.json"
    path.write_text(json.dumps([{"prompt": "q", "answer": answer, "score": 1} for answer in "ab"]))
    assert [row.id for row in read_eft(path).rows] == ["row-1", "row-2"]
