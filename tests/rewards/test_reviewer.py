import asyncio
import math

import pytest

from instructgym.errors import CallTimeout, ConfigError
from instructgym.llm_backends.base import LLM
from instructgym.llm_backends.prompting import fenced_blocks
from instructgym.rewards import ReviewerEquality, ask_equality
from instructgym.types import Completion, Instruction, Sampling, TokenLogprob, Transition, Usage

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
        reply = self.answer("forward" if first == PARENT.render() else "backward", request.sample[0])
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
    assert samples == [(0,), (0,), (1,), (2,)]


async def test_a_reviewer_that_cannot_be_read_gives_a_missing_value_and_is_counted():
    score = await ReviewerEquality(llm(lambda order, _: "Equal" if order == "forward" else "Hmm")).score(step())
    assert (score.value, score.calls) == (None, 4)
    assert score.terms == {"reviewer_equality/forward": 0.0, "reviewer_equality/unparsable": 1.0}


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


async def test_logprobs_give_a_probability_where_the_reply_is_a_bare_verdict():
    top = (("Not", math.log(0.8)), ("Equal", math.log(0.2)))
    reply = Completion("Not Equal", logprobs=(TokenLogprob("Not", math.log(0.8), top),))
    reviewer = llm(lambda *_: reply, top_logprobs=5)
    assert (await ReviewerEquality(reviewer, use_logprobs=True).score(step())).value == pytest.approx(0.8)
    assert (await ReviewerEquality(reviewer).score(step())).value == 1.0


def test_bad_arguments_are_refused_with_words():
    with pytest.raises(ConfigError, match=r"^reviewer_equality got orders = 'twice'; expected 'both' or 'forward'\.$"):
        ReviewerEquality(llm(str), "twice")
    with pytest.raises(ConfigError, match=r"^reviewer_equality got parse_retries = -1; expected 0 or more\.$"):
        ReviewerEquality(llm(str), parse_retries=-1)
    with pytest.raises(ConfigError, match=r"the reviewer's sampling\.top_logprobs is None; set it to 5 or so"):
        ReviewerEquality(llm(str), use_logprobs=True)
