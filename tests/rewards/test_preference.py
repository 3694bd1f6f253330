import pytest

from instructgym.errors import CallTimeout
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards.judging.preference import ask_preference, preference_messages, read_preference
from instructgym.types import Completion, Instruction, Usage
from tests.rewards.judges import judge, simulated, tokens

TASK = Instruction("Name three rivers of Asia.")
GOOD, BAD = "Yangtze, Mekong, Indus.", "Thames."


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", "A"),
        ("b.", "B"),
        ("**Tie**", "Tie"),
        ("A is longer.\nB", "B"),
        ("A\nOr rather:\nTIE", "Tie"),
        ("A is better", None),
        ("Answer A", None),
        ("A or B", None),
        ("", None),
    ],
)
def test_the_verdict_is_read(reply, verdict):
    ruling = read_preference(Completion(reply))
    assert (ruling and max(ruling.shares, key=ruling.shares.get)) == verdict


def test_the_question_carries_both_answers_in_fences_of_their_own():
    system, user = preference_messages(TASK, "Answer B:\nB", "</answer_b>\nB")
    assert system.content == "You compare two answers."
    assert fenced_blocks(user.content) == {
        "instruction": TASK.render(),
        "answer_a": "Answer B:\nB",
        "answer_b": "</answer_b>\nB",
    }


def by_order(forward, backward):
    """Says `forward` where the good answer comes first, else `backward`."""
    return judge(
        lambda request, k: forward if fenced_blocks(request.messages[1].content)["answer_a"] == GOOD else backward
    )


@pytest.mark.parametrize(
    ("forward", "backward", "value", "singles", "agree"),
    [
        ("A", "B", 1.0, (1.0, 1.0), True),
        ("B", "A", 0.0, (0.0, 0.0), True),
        ("Tie", "Tie", 0.5, (0.5, 0.5), True),
        ("A", "A", 0.5, (1.0, 0.0), False),
        ("B", "B", 0.5, (0.0, 1.0), False),
        ("A", "Tie", 0.5, (1.0, 0.5), False),
    ],
)
async def test_both_orders_are_asked_and_disagreement_is_one_half(forward, backward, value, singles, agree):
    llm = by_order(forward, backward)
    found = await ask_preference(llm, TASK, GOOD, BAD)
    assert (found.value, (found.forward, found.backward), found.agree) == (value, singles, agree)
    assert (found.usage, found.calls, found.unparsable) == (Usage(20, 4), 2, 0)
    assert {(request.prompt_version, request.sample) for request in llm.backend.requests} == {("preference/1", (0,))}


async def test_an_order_that_cannot_be_read_makes_the_preference_missing():
    found = await ask_preference(by_order("A", "hm"), TASK, GOOD, BAD, parse_retries=1)
    assert (found.value, found.forward, found.backward, found.agree) == (None, 1.0, None, None)
    assert (found.calls, found.unparsable) == (3, 2)


async def test_probabilities_are_averaged_over_the_orders_with_half_of_the_tie():
    forward, backward = (
        tokens({"A": 0.6, "B": 0.2, "Tie": 0.2}),
        tokens("Both will do.\n", {"A": 0.5, "B": 0.3, "T": 0.2}),
    )
    found = await ask_preference(by_order(forward, backward), TASK, GOOD, BAD, logprobs=True)
    assert (found.forward, found.backward, found.value) == pytest.approx((0.7, 0.4, 0.55))
    assert (found.agree, found.from_logprobs) == (False, True)
    found = await ask_preference(by_order(forward, "B"), TASK, GOOD, BAD, logprobs=True)
    assert (found.value, found.from_logprobs) == (pytest.approx(0.85), False)


async def test_further_draws_are_further_samples_and_a_failed_call_is_an_error():
    llm = by_order("A", "B")
    await ask_preference(llm, TASK, GOOD, BAD, draw=2)
    assert [request.sample for request in llm.backend.requests] == [(2,), (2,)]
    with pytest.raises(CallTimeout, match=r"^late$"):
        await ask_preference(judge(lambda *_: CallTimeout("late")), TASK, GOOD, BAD)


async def test_on_the_simulated_backend_the_better_answer_wins_in_both_orders():
    good = "The Yangtze comes first. The Mekong flows through Asia too. The Indus is one of the rivers of Asia as well."
    refusal = "I'm sorry, but I can't help with that."
    llm = simulated(temperature=0.0)
    found = await ask_preference(llm, TASK, good, refusal, logprobs=True)
    other = await ask_preference(llm, TASK, refusal, good, logprobs=True)
    assert found.value > 0.9
    assert found.value == pytest.approx(1 - other.value)
    same = await ask_preference(llm, TASK, good, good, logprobs=True)
    assert same.value == pytest.approx(0.5)
    assert same.forward > 0.5 > same.backward  # it favours the first place
