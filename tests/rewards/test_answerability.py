import pytest

from instructgym.errors import ConfigError
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards.judging.answerability import answerability_messages, read_answerability
from instructgym.rewards.quality import Answerability
from instructgym.types import Completion, Instruction, Transition, Usage
from tests.rewards.judges import judge, simulated, tokens

CHILD = Instruction("Name three rivers of Asia, longest first.")


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("Answerable", 1.0),
        ("The table is missing.\nNot Answerable", 0.0),
        ("**Answerable.**", 1.0),
        ("It can be answered.", None),
        ("", None),
    ],
)
def test_the_verdict_is_read(reply, share):
    ruling = read_answerability(Completion(reply))
    assert (ruling and ruling.shares["Answerable"]) == share


def test_the_question_carries_the_instruction_inside_a_fence():
    system, user = answerability_messages(Instruction("Answerable", "Answerable"))
    assert system.content == "You check whether an instruction can be answered."
    assert fenced_blocks(user.content) == {"instruction": "Answerable\n\nAnswerable"}


async def test_of_a_transition_the_child_is_checked():
    reviewer = judge("It refers to nothing.\nAnswerable")
    score = await Answerability(reviewer).score(Transition(CHILD, CHILD, "deepen", CHILD, 0, 4))
    assert (score.value, score.usage, score.calls) == (1.0, Usage(10, 2), 1)
    assert score.terms == {"answerability": 1.0, "answerability/unparsable": 0.0}
    assert reviewer.backend.requests[0].prompt_version == "answerability/1"


async def test_logprobs_give_the_probability_at_the_verdicts_place():
    reply = tokens("It is all there.", "\n", {"Answer": 0.6, "Not": 0.3, "The": 0.1}, "able")
    score = await Answerability(judge(lambda *_: reply), logprobs=True).score_instruction(CHILD)
    assert score.value == pytest.approx(2 / 3)
    assert score.terms["answerability/from_logprobs"] == 1.0
    score = await Answerability(judge("Not Answerable"), logprobs=True).score_instruction(CHILD)
    assert (score.value, score.terms["answerability/from_logprobs"]) == (0.0, 0.0)


async def test_unparsable_replies_are_retried_and_then_missing():
    score = await Answerability(judge(["Yes.", "Not Answerable"])).score_instruction(CHILD)
    assert (score.value, score.calls, score.terms["answerability/unparsable"]) == (0.0, 2, 1.0)
    score = await Answerability(judge("Yes."), parse_retries=1).score_instruction(CHILD)
    assert (score.value, score.terms) == (None, {"answerability/unparsable": 2.0})


@pytest.mark.parametrize(
    ("text", "data", "answerable"),
    [
        ("Name three rivers of Asia, longest first.", "", True),
        ("Summarise the following passage in two sentences.", "", False),
        ("Summarise the following passage in two sentences.", "The library opened in 1902.", True),
        ("Write at least 300 words and at most 100 words about rivers.", "", False),
        ("The capital of France has been Paris since the tenth century.", "", False),
        ("I'm sorry, but I can't help with rewriting that.", "", False),
        ("flurb zint mopple drask vurn krell ostib wemp jandle", "", False),
    ],
)
async def test_on_the_simulated_backend(text, data, answerable):
    reward = Answerability(simulated(temperature=0.0), logprobs=True)
    score = await reward.score_instruction(Instruction(text, data))
    assert score.value == pytest.approx(0.99 if answerable else 0.01)


def test_bad_options_are_refused_with_words():
    with pytest.raises(ConfigError, match=r"^answerability got logprobs = None; expected true or false\.$"):
        Answerability(judge("1"), logprobs=None)
    with pytest.raises(ConfigError, match=r"^answerability got parse_retries = -2; expected 0 or more\.$"):
        Answerability(judge("1"), parse_retries=-2)
