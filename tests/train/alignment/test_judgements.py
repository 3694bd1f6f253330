import pytest

from instructgym.errors import CallTimeout
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.llm_backends.seeding import messages_index
from instructgym.rewards.judging.additive import additive_messages
from instructgym.train.alignment.judgements import (
    ADDITIVE,
    JudgeQuestion,
    Question,
    break_ties,
    judge,
    panel,
    question_messages,
)
from instructgym.train.alignment.records import Candidate, Judgement, Prompt
from instructgym.types import Completion, Instruction, Message
from tests.rewards.judges import judge as llm_that_says
from tests.rewards.judges import tokens

PROMPT = Prompt("p", "Name three rivers.", "Asia")
ANSWER = Candidate("p", 2, "Yangtze, Mekong, Indus.", "M1")


async def judged(script, **options):
    llm = llm_that_says(script, role="judge")
    return llm.backend, await judge(llm, PROMPT, ANSWER, **options)


def by_draw(*replies):
    """A script by the sample, so that the order of the calls does not matter."""
    return lambda request, k: replies[request.sample[0]]


async def test_the_score_is_the_mean_of_the_draws():
    backend, found = await judged(by_draw("Score: 3", "Good.\nScore: 4", "Score: 4"))
    assert found == Judgement(
        "p", 2, "some-model", 11 / 3, (3.0, 4.0, 4.0), ("Score: 3", "Good.\nScore: 4", "Score: 4")
    )
    draws, (own,) = [request.sample[0] for request in backend.requests], {each.sample[1] for each in backend.requests}
    assert sorted(draws) == [0, 1, 2]
    assert own == messages_index(backend.requests[0].messages)  # another answer is judged with other noise
    assert {request.prompt_version for request in backend.requests} == {"additive/1"}
    assert list(backend.requests[0].messages) == additive_messages(PROMPT.as_instruction, ANSWER.text)


async def test_what_cannot_be_read_is_missing_and_never_a_number():
    _, found = await judged(by_draw("no idea", "Score: 4", "Score: 9"))
    assert (found.score, found.samples, found.valid) == (None, (None, 4.0, None), 1)
    _, found = await judged(by_draw("no idea", "Score: 4", "Score: 5"))
    assert (found.score, found.samples) == (4.5, (None, 4.0, 5.0))
    _, found = await judged(by_draw("no idea", "Score: 4", "Score: 9"), min_valid=1)
    assert found.score == 4.0


async def test_one_draw_has_to_be_one_that_was_read():
    assert (await judged("Score: 2", samples=1))[1].score == 2.0
    assert (await judged("nothing", samples=1))[1].score is None


async def test_a_cut_reply_is_not_read():
    _, found = await judged(lambda request, k: Completion("Score: 4", "length"), samples=2)
    assert (found.score, found.samples, found.replies) == (None, (None, None), ("Score: 4", "Score: 4"))


async def test_an_unread_draw_is_asked_for_again_where_that_is_wanted():
    script = lambda request, k: "Score: 5" if len(request.sample) == 3 else "nothing"  # noqa: E731
    backend, found = await judged(script, samples=2, parse_retries=1, first_draw=3)
    assert (found.score, found.replies) == (5.0, ("Score: 5", "Score: 5"))
    samples = [(each.sample[0], *each.sample[2:]) for each in backend.requests]
    assert sorted(samples) == [(3,), (3, 1), (4,), (4, 1)]


async def test_the_expectation_is_over_the_score_tokens():
    reply = tokens("Score", ":", " ", {"4": 0.5, "5": 0.25, "3": 0.25})
    backend, found = await judged(lambda request, k: reply, logprobs=True)
    assert found.score == pytest.approx(4.0)
    assert backend.requests[0].sampling.top_logprobs == 20
    backend, found = await judged("Score: 4", logprobs=True)  # a reply that carries none
    assert found.score == 4.0
    backend, found = await judged(lambda request, k: reply)
    assert (found.score, backend.requests[0].sampling.top_logprobs) == (4.0, None)


async def test_a_known_answer_stands_before_the_question():
    backend, _ = await judged("Score: 1", reference="Indus, Lena, Ob.")
    request = backend.requests[0]
    assert request.prompt_version == "additive/1+reference/1"
    assert fenced_blocks(request.messages[-1].content) == {
        "reference": "Indus, Lena, Ob.",
        "instruction": "Name three rivers.\n\nAsia",
        "answer": ANSWER.text,
    }
    assert request.messages[-1].content.endswith(additive_messages(PROMPT.as_instruction, ANSWER.text)[-1].content)
    backend, _ = await judged("Score: 1", reference="")
    assert backend.requests[0].prompt_version == "additive/1"


async def test_another_question_is_asked_and_read_in_its_own_way():
    short = JudgeQuestion(
        "short",
        "short/1",
        (1, 3),
        lambda instruction, answer: [Message("user", f"{instruction.text}|{answer}|?")],
        lambda completion: float(completion.text) if completion.text.isdigit() else None,
    )
    assert isinstance(short, Question)
    assert isinstance(ADDITIVE, Question)
    backend, found = await judged(by_draw("2", "3", "4"), question=short)
    assert (found.score, found.samples) == (2.5, (2.0, 3.0, None))  # 4 is not on its scale
    assert backend.requests[0].messages == (Message("user", "Name three rivers.|Yangtze, Mekong, Indus.|?"),)
    messages, version = question_messages(short, Instruction("a"), "b", "c")
    assert (len(messages), version) == (1, "short/1+reference/1")


async def test_a_failed_call_is_a_failure_and_no_score():
    with pytest.raises(CallTimeout):
        await judged(lambda request, k: CallTimeout("late"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"samples": 0},
            "judge got samples = 0, min_valid = None, parse_retries = 0, first_draw = 0; expected 1 or more samples, "
            "min_valid from 1 to as many, and the others 0 or more.",
        ),
        (
            {"samples": 2, "min_valid": 3},
            "judge got samples = 2, min_valid = 3, parse_retries = 0, first_draw = 0; expected 1 or more samples, "
            "min_valid from 1 to as many, and the others 0 or more.",
        ),
    ],
)
async def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match="judge got") as error:
        await judged("Score: 1", **options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            Candidate("p", 1, "Yang", "M1", cut=True),
            "answer 1 to prompt 'p' was cut; expected a whole answer to judge.",
        ),
        (
            Candidate("p", 1, "", "M1", failure="CallTimeout: late"),
            "answer 1 to prompt 'p' was never given (CallTimeout: late); expected a whole answer to judge.",
        ),
    ],
)
async def test_only_whole_answers_are_judged(answer, message):
    with pytest.raises(ValueError, match="answer 1") as error:
        await judge(llm_that_says("Score: 1"), PROMPT, answer)
    assert str(error.value) == message


def said(candidate, score, by="M1", **more):
    return Judgement("p", candidate, by, score, **more)


def test_a_panel_is_the_mean_of_the_judges_that_gave_a_score():
    found = panel(
        [
            said(0, 4.0, "a", samples=(4.0, 4.0), replies=("x", "y")),
            said(0, 1.0, "b", samples=(1.0,), replies=("z",)),
            said(0, None, "c", samples=(None,), replies=("?",)),
        ]
    )
    assert found == Judgement("p", 0, "panel(a, b, c)", 2.5, (4.0, 4.0, 1.0, None), ("x", "y", "z", "?"))
    assert panel([said(0, 4.0, "a"), said(0, None, "b")], min_judges=2).score is None
    assert panel([said(0, None, "a")]).score is None


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        ([], "panel got 0 judgements and min_judges = 1; expected 1 or more."),
        ([said(0, 1.0, "a"), said(1, 1.0, "b")], "panel got judgements of 2 answers; expected those of one."),
        (
            [said(0, 1.0, "a"), said(0, 2.0, "a")],
            "panel got two judgements of one judge, among a, a; expected one of each.",
        ),
    ],
)
def test_a_panel_is_of_one_answer_and_of_different_judges(judgements, message):
    with pytest.raises(ValueError, match="panel got") as error:
        panel(judgements)
    assert str(error.value) == message


def prefers(*order):
    """A judge that prefers texts by their place in `order`, whatever the place in the question."""

    def script(request, k):
        blocks = fenced_blocks(request.messages[-1].content)
        one, two = (order.index(blocks[name]) for name in ("answer_a", "answer_b"))
        return "A" if one < two else "B"

    return llm_that_says(script)


ANSWERS = [Candidate("p", index, text, "M1") for index, text in enumerate(["a", "b", "c", "d"])]


async def test_equal_scores_are_told_apart_by_comparison():
    judgements = [said(index, 3.0) for index in range(4)]
    found = await break_ties(prefers("c", "a", "d", "b"), PROMPT, ANSWERS, judgements)
    assert [each.score for each in found] == pytest.approx([3 + 1 / 12, 2.75, 3.25, 3 - 1 / 12])
    assert {each.judge for each in found} == {"M1+some-model"}


async def test_only_the_best_and_the_worst_are_compared_and_other_orders_stay():
    judgements = [said(0, 4.0), said(1, 4.0), said(2, 3.9), said(3, 1.0)]
    llm = prefers("b", "a", "c", "d")
    found = await break_ties(llm, PROMPT, ANSWERS, judgements)
    assert len(llm.backend.requests) == 2  # one comparison, in both orders
    scores = [each.score for each in found]
    assert scores[1] > scores[0] > scores[2] > scores[3]
    assert found[2:] == judgements[2:]


async def test_a_judge_that_favours_a_place_tells_nothing_apart():
    judgements = [said(0, 3.0), said(1, 3.0)]
    found = await break_ties(llm_that_says("A"), PROMPT, ANSWERS, judgements)
    assert [each.score for each in found] == [3.0, 3.0]
    found = await break_ties(llm_that_says("no idea"), PROMPT, ANSWERS, judgements, parse_retries=0)
    assert [each.score for each in found] == [3.0, 3.0]


async def test_equal_texts_and_missing_scores_ask_nothing():
    same = [Candidate("p", 0, "a", "M1"), Candidate("p", 1, " a\n", "M1"), Candidate("p", 2, "b", "M1")]
    judgements = [said(0, 3.0), said(1, 3.0), said(2, None)]
    llm = prefers("a")
    assert await break_ties(llm, PROMPT, same, judgements) == judgements
    assert llm.backend.requests == []
    assert await break_ties(llm, PROMPT, same, []) == []


async def test_break_ties_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"break_ties got points = 0; expected above 0\."):
        await break_ties(prefers("a"), PROMPT, ANSWERS, [], points=0)
    with pytest.raises(ValueError, match="an answer to prompt 'p' that is judged twice; expected once"):
        await break_ties(prefers("a"), PROMPT, ANSWERS, [said(0, 1.0), said(0, 1.0)])
