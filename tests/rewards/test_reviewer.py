import asyncio

import pytest

from instructgym.errors import CallTimeout, ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards import ReviewerEquality, ask_equality
from instructgym.types import Completion, Instruction, Sampling, Transition, Usage
from tests.rewards.judges import tokens

PARENT, CHILD = Instruction("Name three rivers."), Instruction("Name three rivers of Asia, longest first.")


class Reviewer:
    """Answers by `answer(order, sample)`; remembers the requests and how many were in flight at once."""

    name = "scripted"

    def __init__(self, answer):
        self.answer, self.requests, self.in_flight, self.most_in_flight = answer, [], 0, 0

    async def complete(self, request):
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0)
        self.in_flight -= 1
        first = fenced_blocks(request.messages[1].content)["first"]
        reply = self.answer("forward" if first == PARENT.render() else "backward", request.sample[-1])
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Completion) else Completion(reply, usage=Usage(10, 2))

    async def aclose(self):
        pass


def llm(answer, **sampling):
    return LLM(Reviewer(answer), "reviewer", "some-model", Sampling(temperature=0.0, **sampling))


def step(child=CHILD):
    return Transition(PARENT, PARENT, "add_constraints", child, 0, 4)


async def test_both_orders_are_asked_at_once_and_averaged():
    reviewer = llm(lambda order, sample: "Not Equal")
    score = await ReviewerEquality(reviewer).score(step())
    assert score.value == 1.0
    assert score.terms == {
        "reviewer_equality": 1.0,
        "reviewer_equality/forward": 1.0,
        "reviewer_equality/backward": 1.0,
        "reviewer_equality/disagree": 0.0,
        "reviewer_equality/unparsable": 0.0,
    }
    assert (score.usage, score.calls) == (Usage(20, 4), 2)
    assert reviewer.backend.most_in_flight == 2
    assert {request.prompt_version for request in reviewer.backend.requests} == {"equality/1"}


@pytest.mark.parametrize(
    ("forward", "backward", "value", "disagree"), [("Equal", "Equal", 0.0, 0.0), ("Equal", "Not Equal", 0.5, 1.0)]
)
async def test_orders_that_disagree_give_one_half(forward, backward, value, disagree):
    score = await ReviewerEquality(llm(lambda order, _: forward if order == "forward" else backward)).score(step())
    assert score.value == value
    assert score.terms["reviewer_equality/disagree"] == disagree


async def test_forward_asks_once_with_the_parent_first():
    reviewer = llm(lambda order, _: "Not Equal" if order == "forward" else "Equal")
    score = await ReviewerEquality(reviewer, "forward", parse_retries=0).score(step())
    assert (score.value, score.calls) == (1.0, 1)
    assert "reviewer_equality/disagree" not in score.terms


async def test_unparsable_replies_are_asked_for_again_as_other_samples():
    reviewer = llm(lambda order, sample: "Hmm" if order == "forward" and sample < 2 else "Not Equal")
    score = await ReviewerEquality(reviewer).score(step())
    assert (score.value, score.calls) == (1.0, 4)
    samples = sorted(request.sample for request in reviewer.backend.requests)
    assert samples == [(0,), (0,), (0, 1), (0, 2)]


async def test_a_reviewer_that_cannot_be_read_gives_a_missing_value_and_is_counted():
    score = await ReviewerEquality(llm(lambda order, _: "Equal" if order == "forward" else "Hmm")).score(step())
    assert (score.value, score.calls) == (None, 4)
    assert score.terms == {"reviewer_equality/forward": 0.0, "reviewer_equality/unparsable": 3.0}


async def test_a_verdict_that_was_cut_is_none():
    reviewer = llm(lambda order, sample: Completion("Equal\nbut", finish_reason="length"))
    assert (await ask_equality(reviewer, PARENT, CHILD, parse_retries=1)).not_equal is None
    assert len(reviewer.backend.requests) == 2


async def test_a_failed_call_is_an_error_and_never_a_verdict():
    reviewer = llm(lambda order, _: CallTimeout("no answer in 5 s") if order == "backward" else "Equal")
    with pytest.raises(CallTimeout, match=r"^no answer in 5 s$"):
        await ReviewerEquality(reviewer).score(step())


async def test_a_rewrite_that_is_missing_has_no_value_and_costs_no_call():
    reviewer = llm(lambda order, _: "Equal")
    assert (await ReviewerEquality(reviewer).score(step(None))).value is None
    assert reviewer.backend.requests == []


async def test_the_seed_can_be_what_the_child_is_compared_with():
    reviewer = llm(lambda order, _: "Not Equal")
    seed = Instruction("Rivers?")
    transition = Transition(seed, PARENT, "add_constraints", CHILD, 1, 4)
    assert (await ReviewerEquality(reviewer, against="seed").score(transition)).value == 1.0
    asked = [fenced_blocks(request.messages[1].content) for request in reviewer.backend.requests]
    assert sorted(asked, key=str) == sorted(
        [{"first": "Rivers?", "second": CHILD.text}, {"first": CHILD.text, "second": "Rivers?"}], key=str
    )


async def test_logprobs_are_asked_for_and_give_a_probability_even_after_reasons():
    reply = tokens("They differ", ".\n", {"Not": 0.8, "Equal": 0.2}, " Equal")
    reviewer = llm(lambda *_: reply)
    score = await ReviewerEquality(reviewer, logprobs=True).score(step())
    assert score.value == pytest.approx(0.8)
    assert score.terms["reviewer_equality/from_logprobs"] == 1.0
    assert {request.sampling.top_logprobs for request in reviewer.backend.requests} == {20}
    plain = await ReviewerEquality(reviewer).score(step())
    assert plain.value == 1.0
    assert "reviewer_equality/from_logprobs" not in plain.terms
    assert reviewer.backend.requests[-1].sampling.top_logprobs is None


async def test_an_endpoint_without_logprobs_is_read_as_written():
    score = await ReviewerEquality(llm(lambda *_: "Not Equal"), logprobs=True).score(step())
    assert (score.value, score.terms["reviewer_equality/from_logprobs"]) == (1.0, 0.0)


async def test_the_orders_probabilities_are_averaged():
    replies = {"forward": tokens({"Not": 0.9, "Equal": 0.1}, " Equal"), "backward": tokens({"Equal": 0.7, "Not": 0.3})}
    score = await ReviewerEquality(llm(lambda order, _: replies[order]), logprobs=True).score(step())
    assert score.value == pytest.approx(0.6)
    assert score.terms["reviewer_equality/disagree"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": "twice"}, r"^reviewer_equality got orders = 'twice'; expected 'both' or 'forward'\.$"),
        ({"parse_retries": -1}, r"^reviewer_equality got parse_retries = -1; expected 0 or more\.$"),
        ({"against": "child"}, r"^reviewer_equality got against = 'child'; expected 'parent' or 'seed'\.$"),
        (
            {"against": "archive"},
            r"^reviewer_equality got against = 'archive'; expected 'parent' or 'seed'\. The reward 'reviewer_archive' "
            r"compares with the archive\.$",
        ),
        ({"logprobs": 5}, r"^reviewer_equality got logprobs = 5; expected true or false\.$"),
    ],
)
def test_bad_options_are_refused_with_words(options, message):
    with pytest.raises(ConfigError, match=message):
        ReviewerEquality(llm(str), **options)
