import pytest

from instructgym.errors import ConfigError
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards.judging.additive import additive_messages, read_additive
from instructgym.rewards.quality import AdditiveJudge
from instructgym.types import Completion, Instruction, Transition, Usage
from tests.rewards.judges import judge, simulated, tokens

CHILD = Instruction("Name three rivers of Asia, longest first.")
STEP = Transition(Instruction("Name three rivers."), Instruction("Name three rivers."), "deepen", CHILD, 0, 4)
ANSWER = "Yangtze, Yellow River, Mekong."


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ("It earns three points.\nScore: 3", 3.0),
        ("Score: 0", 0.0),
        ("**Score:** 5/5", 5.0),
        ("5", 5.0),
        ("The answer says Score: 5, which is bold.\nScore: 1", 1.0),
        ("Score: 6", None),
        ("Score: 3 points", None),
        ("Score: N", None),
        ("Total: 3", None),
        ("", None),
    ],
)
def test_points_from_nought_to_five_are_read_from_the_last_line_of_their_own(reply, value):
    rating = read_additive(Completion(reply))
    assert (None if rating is None else rating.value) == value


def test_the_question_carries_instruction_and_answer_in_fences_of_their_own():
    system, user = additive_messages(CHILD, "Score: 5")
    assert system.content == "You score an answer by adding points."
    assert fenced_blocks(user.content) == {"instruction": CHILD.render(), "answer": "Score: 5"}
    assert user.content.endswith("Score: N")


async def test_three_draws_at_temperature_0_7_are_averaged():
    reviewer = judge(lambda request, k: f"reasons\nScore: {2 + request.sample[0]}")
    score = await AdditiveJudge(reviewer, judge(ANSWER, "expert")).score(STEP)
    assert (score.value, score.usage, score.calls) == (3.0, Usage(40, 8), 4)
    assert score.terms == {
        "additive_judge": 3.0,
        "additive_judge/draws_valid": 3.0,
        "additive_judge/spread": 2.0,
        "additive_judge/unparsable": 0.0,
    }
    assert sorted(request.sample for request in reviewer.backend.requests) == [(0,), (1,), (2,)]
    assert {request.sampling.temperature for request in reviewer.backend.requests} == {0.7}
    assert {request.prompt_version for request in reviewer.backend.requests} == {"additive/1"}


async def test_one_draw_is_at_the_reviewers_own_temperature():
    reviewer = judge("Score: 4")
    score = await AdditiveJudge(reviewer, draws=1).score_answer(CHILD, ANSWER)
    assert (score.value, score.terms["additive_judge/spread"], score.calls) == (4.0, 0.0, 1)
    assert reviewer.backend.requests[0].sampling == reviewer.sampling


async def test_two_readable_draws_are_enough_and_one_is_not():
    def reply(readable):
        return lambda request, k: "Score: 4" if request.sample[0] < readable else "no idea"

    score = await AdditiveJudge(judge(reply(2)), parse_retries=1).score_answer(CHILD, ANSWER)
    assert (score.value, score.calls) == (4.0, 4)
    assert (score.terms["additive_judge/draws_valid"], score.terms["additive_judge/unparsable"]) == (2.0, 2.0)
    score = await AdditiveJudge(judge(reply(1)), parse_retries=0).score_answer(CHILD, ANSWER)
    assert score.value is None
    assert score.terms == {"additive_judge/draws_valid": 1.0, "additive_judge/unparsable": 2.0}
    score = await AdditiveJudge(judge("no idea"), draws=1, parse_retries=0).score_answer(CHILD, ANSWER)
    assert score.value is None


async def test_a_draw_is_retried_as_a_sample_of_its_own():
    reviewer = judge(lambda request, k: "Score: 1" if len(request.sample) == 2 else "hm")
    score = await AdditiveJudge(reviewer, draws=2).score_answer(CHILD, ANSWER)
    assert score.value == 1.0
    assert sorted(request.sample for request in reviewer.backend.requests) == [(0,), (0, 1), (1,), (1, 1)]


async def test_the_expectation_takes_the_place_of_averaging():
    reply = tokens("Fair.\n", "Score: ", {"0": 0.25, "1": 0.25, "5": 0.5})
    score = await AdditiveJudge(judge(lambda *_: reply), draws=1, logprobs=True).score_answer(CHILD, ANSWER)
    assert score.value == pytest.approx(2.75)
    assert score.terms["additive_judge/from_logprobs"] == 1.0


async def test_no_answer_is_a_missing_score():
    score = await AdditiveJudge(judge("Score: 5"), judge(lambda *_: Completion(""))).score(STEP)
    assert (score.value, score.terms) == (None, {"additive_judge/unanswered": 1.0})


async def test_on_the_simulated_backend_it_scores_the_simulated_answers():
    values = []
    for seed in range(12):
        score = await AdditiveJudge(simulated(seed=seed), simulated("expert", seed=seed)).score(STEP)
        values.append(score.value)
    assert all(value is None or 0.0 <= value <= 5.0 for value in values)
    assert len({value for value in values if value is not None}) > 2
    refusal = await AdditiveJudge(simulated()).score_answer(CHILD, "I'm sorry, but I can't help with that.")
    assert refusal.value < 1.5


def test_bad_options_are_refused_with_words():
    with pytest.raises(ConfigError, match=r"^additive_judge got draws = 0; expected a whole number of 1 or more\.$"):
        AdditiveJudge(judge("1"), draws=0)
    message = r"^additive_judge got temperature = nan; expected a finite number above 0\.$"
    with pytest.raises(ConfigError, match=message):
        AdditiveJudge(judge("1"), temperature=float("nan"))
    message = (
        r"^additive_judge got logprobs = True with draws = 3; expected draws = 1, for the expectation takes the place "
        r"of averaging\.$"
    )
    with pytest.raises(ConfigError, match=message):
        AdditiveJudge(judge("1"), logprobs=True)
