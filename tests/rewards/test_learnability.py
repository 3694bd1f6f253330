import math

import numpy as np
import pytest

from instructgym.errors import ConfigError, RewardError
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards.judging.correctness import correctness_messages, read_correctness
from instructgym.rewards.quality import Learnability
from instructgym.types import Completion, Instruction, Transition, Usage
from tests.rewards.judges import judge, simulated

TASK = Instruction("What is 17 times 3?")


def student(right):
    """Its i-th answer is right for i < `right`."""
    return judge(lambda request, k: "51" if request.sample[1] < right else "54", "expert")


def is_51(instruction, answer):
    return answer == "51"


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Correct", True),
        ("17 * 3 = 51.\n**Incorrect**", False),
        ("Correct\nNo:\nincorrect.", False),
        ("It is Correct", None),
        ("not correct", None),
        ("", None),
    ],
)
def test_the_verdict_is_read(reply, right):
    assert read_correctness(Completion(reply)) is right


def test_the_question_carries_instruction_and_answer_in_fences_of_their_own():
    system, user = correctness_messages(TASK, "Correct")
    assert system.content == "You check whether an answer is right."
    assert fenced_blocks(user.content) == {"instruction": TASK.text, "answer": "Correct"}


@pytest.mark.parametrize(("right", "value"), [(0, 0.0), (2, 0.1875), (4, 0.25), (8, 0.0)])
async def test_the_value_is_p_times_one_minus_p(right, value):
    score = await Learnability(student(right), checker=is_51).score_instruction(TASK)
    assert score.value == value
    assert score.terms == {
        "learnability": value,
        "learnability/p": right / 8,
        "learnability/samples_valid": 8.0,
        "learnability/unparsable": 0.0,
    }
    assert (score.calls, score.usage) == (8, Usage(80, 16))


async def test_the_student_answers_the_child_as_samples_of_its_model_and_temperature():
    expert = student(1)
    reward = Learnability(expert, student_model="small", samples=3, checker=is_51, temperature=1.0)
    await reward.score(Transition(Instruction("Multiply."), Instruction("Multiply."), "deepen", TASK, 0, 4))
    requests = expert.backend.requests
    assert sorted(request.sample for request in requests) == [(0, 0), (0, 1), (0, 2)]
    assert {(request.model, request.sampling.temperature, request.role) for request in requests} == {
        ("small", 1.0, "expert")
    }
    assert {request.messages[-1].content for request in requests} == {TASK.text}


async def test_the_reviewer_judges_each_answer():
    reviewer = judge(
        lambda request, k: "Correct" if fenced_blocks(request.messages[1].content)["answer"] == "51" else "Incorrect"
    )
    score = await Learnability(student(1), reviewer, samples=4).score_instruction(TASK)
    assert (score.value, score.terms["learnability/p"], score.calls) == (0.1875, 0.25, 8)
    assert {request.prompt_version for request in reviewer.backend.requests} == {"correctness/1"}


async def test_answers_that_were_cut_or_not_judged_do_not_count():
    def reply(request, k):
        return Completion("51", finish_reason="length") if request.sample[1] == 0 else "51"

    def picky(instruction, answer):
        picky.seen += 1
        return None if picky.seen == 1 else picky.seen == 2

    picky.seen = 0
    score = await Learnability(judge(reply), samples=4, checker=picky).score_instruction(TASK)
    assert (score.value, score.terms["learnability/samples_valid"]) == (0.25, 2.0)


async def test_fewer_than_half_judged_is_a_missing_score():
    reviewer = judge("It may be.")
    score = await Learnability(student(4), reviewer, samples=4, parse_retries=1).score_instruction(TASK)
    assert (score.value, score.calls) == (None, 12)
    assert score.terms == {"learnability/samples_valid": 0.0, "learnability/unparsable": 8.0}


async def test_a_checker_may_be_async_or_stand_in_a_file(tmp_path):
    async def slow(instruction, answer):
        return np.bool_(answer == "51")

    assert (await Learnability(student(4), checker=slow).score_instruction(TASK)).value == 0.25
    file = tmp_path / "checks.py"
    file.write_text(
        "def is_51(instruction, answer):\n    return instruction.text.startswith('What') and answer == '51'\n"
    )
    assert (await Learnability(student(4), checker=f"{file}:is_51").score_instruction(TASK)).value == 0.25


async def test_a_checker_that_fails_or_says_something_else_is_an_error_with_words():
    def broken(instruction, answer):
        raise ValueError("no rule")

    message = (
        r"^reward 'learnability': its checker raised ValueError: no rule; expected True, False or None\. Instruction: "
        r"'What is 17 times 3\?'\.$"
    )
    with pytest.raises(RewardError, match=message):
        await Learnability(student(1), checker=broken).score_instruction(TASK)
    message = (
        r"^reward 'learnability': its checker returned 0\.5; expected True, False or None\. Instruction: "
        r"'What is 17 times 3\?'\.$"
    )
    with pytest.raises(RewardError, match=message):
        await Learnability(student(1), checker=lambda *_: 0.5).score_instruction(TASK)


async def test_on_the_simulated_backend_something_in_between_is_learned_most():
    reward = Learnability(simulated("expert"), simulated(temperature=0.0), samples=16)
    easy = await reward.score_instruction(Instruction("Name a river."))
    hard = await reward.score_instruction(
        Instruction(
            "Write a story set in Lisbon in 1934 about a lighthouse. It must contain a recurring image. Include a "
            "letter. Examine its pacing and go into its point of view."
        )
    )
    assert easy.terms["learnability/p"] > hard.terms["learnability/p"]
    assert hard.value > easy.value
    assert math.isfinite(hard.value)


def test_bad_options_are_refused_with_words():
    expert = student(1)
    with pytest.raises(ConfigError, match=r"^learnability got samples = 1; expected a whole number of 2 or more\.$"):
        Learnability(expert, checker=is_51, samples=1)
    with pytest.raises(ConfigError, match=r"^learnability got temperature = 0; expected a finite number above 0\.$"):
        Learnability(expert, checker=is_51, temperature=0)
    with pytest.raises(ConfigError, match=r"^learnability got student_model = None; expected a model's name, or ''\.$"):
        Learnability(expert, checker=is_51, student_model=None)
    message = r"^learnability got checker = 'reviewer', but no reviewer; pass one, or a function as the checker\.$"
    with pytest.raises(ConfigError, match=message):
        Learnability(expert)
    message = (
        r"^learnability got checker = 'exact'; expected 'reviewer' or 'path/to/file\.py:NAME' of a function "
        r"\(instruction, answer\) -> bool\.$"
    )
    with pytest.raises(ConfigError, match=message):
        Learnability(expert, checker="exact")
