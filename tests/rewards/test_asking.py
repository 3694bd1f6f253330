"""Asking until a reply can be read: samples, counts and costs."""

import pytest

from instructgym.errors import CallTimeout, ConfigError
from instructgym.rewards.judging.asking import PARSE_RETRIES, Judgement, ask_until_read, check_retries
from instructgym.types import Completion, Message, Sampling, Usage
from tests.rewards.judges import judge

QUESTION = [Message("system", "You count."), Message("user", "How many?")]


def read(completion):
    return int(completion.text) if completion.text.isdigit() else None


async def ask(llm, **options):
    return await ask_until_read(llm, QUESTION, prompt_version="count/1", read=read, **options)


async def test_a_readable_reply_is_one_call_with_nothing_unparsable():
    llm = judge("7")
    assert await ask(llm) == Judgement(7, Usage(10, 2), 1, 0)
    (request,) = llm.backend.requests
    assert (request.prompt_version, request.sample, request.messages) == ("count/1", (0,), tuple(QUESTION))


async def test_unparsable_replies_are_counted_paid_for_and_asked_again_as_other_samples():
    llm = judge(["hm", "well", "7"])
    assert await ask(llm) == Judgement(7, Usage(30, 6), 3, 2)
    assert [request.sample for request in llm.backend.requests] == [(0,), (0, 1), (0, 2)]


async def test_each_draw_has_samples_of_its_own():
    samples = []
    for draw in range(3):
        llm = judge(["hm", "7"])
        await ask(llm, draw=draw)
        samples += [request.sample for request in llm.backend.requests]
    assert samples == [(0,), (0, 1), (1,), (1, 1), (2,), (2, 1)]


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_after_the_retries_the_value_is_missing(retries):
    llm = judge("hm")
    assert await ask(llm, retries=retries) == Judgement(
        None, Usage(10 * (retries + 1), 2 * (retries + 1)), retries + 1, retries + 1
    )


async def test_a_reply_that_was_cut_is_not_read():
    llm = judge([Completion("7", "length"), Completion("8", "stop")])
    assert await ask(llm) == Judgement(8, Usage(), 2, 1)


async def test_a_value_that_is_false_is_a_value():
    assert (await ask(judge("0"))).value == 0


async def test_the_sampling_is_the_llms_unless_another_is_given():
    llm = judge("7")
    await ask(llm)
    await ask(llm, sampling=Sampling(temperature=0.3, top_logprobs=4))
    assert [request.sampling for request in llm.backend.requests] == [
        Sampling(temperature=0.0),
        Sampling(temperature=0.3, top_logprobs=4),
    ]


async def test_a_call_that_fails_is_an_error_and_not_retried_here():
    llm = judge(lambda request, k: CallTimeout("no answer in 5 s"))
    with pytest.raises(CallTimeout, match=r"^no answer in 5 s$"):
        await ask(llm)
    assert len(llm.backend.requests) == 1


async def test_reports_of_no_usage_add_nothing():
    llm = judge([Completion("hm"), Completion("7", usage=Usage(3, 1))])
    assert (await ask(llm)).usage == Usage(3, 1)


@pytest.mark.parametrize("retries", [-1, 1.5, True, "2", None])
def test_retries_that_are_no_count_are_refused(retries):
    with pytest.raises(ConfigError, match=rf"^some_reward got parse_retries = {retries!r}; expected 0 or more\.$"):
        check_retries("some_reward", retries)


def test_retries_that_are_a_count_are_taken():
    assert [check_retries("some_reward", retries) for retries in (0, PARSE_RETRIES)] == [0, 2]
