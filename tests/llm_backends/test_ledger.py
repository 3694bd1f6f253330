import asyncio
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from instructgym.errors import AuthenticationFailed, BadRequest, ServerError, UsageError
from instructgym.llm_backends.ledger import CallStats
from instructgym.llm_backends.ledger_memory import MemoryStore
from instructgym.llm_backends.ledger_rows import CallRow, completion_from_json, completion_to_json, request_key
from instructgym.llm_backends.limits import Limits
from instructgym.llm_backends.stack import BackendStack, open_stack
from instructgym.types import Completion, Message, Sampling, TokenLogprob, Usage

from .fakes import Scripted, answer, ask


@pytest.fixture(params=["file", "memory"])
def opened(request, tmp_path: Path):
    stacks: list[BackendStack] = []

    def open_(transport, **options) -> BackendStack:
        path = tmp_path / "ledger.sqlite" if request.param == "file" else None
        stacks.append(open_stack(transport, ledger_path=path, **{"max_attempts": 1, **options}))
        return stacks[-1]

    yield open_
    for stack in stacks:
        stack.store.close()


async def test_same_request_is_paid_once_whatever_its_stage(opened):
    transport = Scripted()
    stack = opened(transport)
    first = await stack.backend.complete(ask(stage="train"))
    again = await stack.backend.complete(ask(stage="evolve"))
    assert first == again
    assert len(transport.asked) == 1
    assert stack.stats() == {
        ("expert", "evolve"): CallStats(hits=1),
        ("expert", "train"): CallStats(calls=1, attempts=1, prompt_tokens=10, completion_tokens=5),
    }


@pytest.mark.parametrize(
    "other",
    [
        ask("hello!"),
        ask(role="reviewer"),
        ask(model="other"),
        ask(sample=(0, 1)),
        ask(prompt_version="test/2"),
        ask(sampling=Sampling(max_tokens=51)),
        ask(sampling=Sampling(max_tokens=50, temperature=0.1)),
        ask(sampling=Sampling(max_tokens=50, stop=("x",))),
        ask(sampling=Sampling(max_tokens=50, top_logprobs=3)),
        ask(sampling=Sampling(max_tokens=50, extra=(("n", "2"),))),
    ],
)
def test_identity_holds_all_that_can_change_the_answer(other):
    assert request_key(other)[0] != request_key(ask())[0]


def test_identity_is_the_same_in_every_process_and_for_every_order_of_extra_fields():
    assert request_key(ask())[0].hex() == "c30d8bbc41d61062a962a1dc6357c689"
    one = ask(sampling=Sampling(extra=(("a", "1"), ("b", "2"))))
    two = ask(sampling=Sampling(extra=(("b", "2"), ("a", "1"))))
    assert request_key(one) == request_key(two)


async def test_equal_requests_in_flight_are_one_call_that_no_waiter_can_cancel(opened):
    transport = Scripted(latency_s=0.05)
    stack = opened(transport)
    tasks = [asyncio.create_task(stack.backend.complete(ask())) for _ in range(5)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError)
    assert ends[1:] == [answer()] * 4
    assert len(transport.asked) == 1
    assert stack.ledger.in_flight == 0


async def test_call_whose_waiters_have_all_gone_is_still_recorded(opened):
    transport = Scripted(latency_s=0.02)
    stack = opened(transport)
    task = asyncio.create_task(stack.backend.complete(ask()))
    await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.sleep(0.1)
    assert await stack.backend.complete(ask()) == answer()
    assert len(transport.asked) == 1


async def test_final_failure_is_recorded_and_raised_again_word_for_word(opened):
    transport = Scripted(BadRequest("no such thing", status=400), ServerError("died", status=500))
    stack = opened(transport)
    for text, kind, message in (
        ("a", BadRequest, "no such thing"),
        ("b", ServerError, "died (gave up after 1 attempt)"),
    ):
        for _ in range(2):
            with pytest.raises(kind) as caught:
                await stack.backend.complete(ask(text))
            assert str(caught.value) == message
            assert caught.value.status in (400, 500)
    assert len(transport.asked) == 2
    assert stack.stats()["expert", "evolve"] == CallStats(hits=2, failed=2, attempts=2)


async def test_failures_that_say_nothing_of_the_request_are_not_recorded(opened):
    transport = Scripted(AuthenticationFailed("no key"))
    stack = opened(transport)
    with pytest.raises(AuthenticationFailed):
        await stack.backend.complete(ask())
    assert await stack.backend.complete(ask()) == answer()


async def test_retry_failed_asks_again_and_the_failure_is_gone(opened):
    transport = Scripted(BadRequest("no"))
    stack = opened(transport, retry_failed=True)
    with pytest.raises(BadRequest):
        await stack.backend.complete(ask(stage="train"))
    assert await stack.backend.complete(ask()) == answer()
    assert await stack.backend.complete(ask()) == answer()
    stats = stack.stats()
    assert stats["expert", "train"] == CallStats(failed=0, attempts=1)
    assert stats["expert", "evolve"] == CallStats(hits=1, calls=1, attempts=1, prompt_tokens=10, completion_tokens=5)


async def test_one_items_failure_is_that_items_alone(opened):
    stack = opened(Scripted(BadRequest("no"), latency_s=0.01))
    ends = await asyncio.gather(*(stack.backend.complete(ask(str(i))) for i in range(10)), return_exceptions=True)
    assert sum(isinstance(end, BadRequest) for end in ends) == 1
    assert sum(end == answer() for end in ends) == 9


async def test_closing_tells_those_who_wait(opened):
    transport = Scripted(latency_s=60.0)
    stack = opened(transport, limits=Limits(concurrency=1))
    tasks = [asyncio.create_task(stack.backend.complete(ask(str(i)))) for i in range(3)]
    await asyncio.sleep(0.01)
    await stack.aclose()
    await stack.aclose()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        assert (type(end), str(end)) == (UsageError, "the backend was closed while this call was in flight")
    assert transport.closed == 2
    assert stack.stats()["expert", "evolve"].attempts == 1  # the one that was sent


@pytest.mark.parametrize(
    "text", ["مرحبا بالعالم", "指令演化", "👩‍🔬 e\u0301", "a\x00b", "half \ud83d pair", "line\u2028end", ""]
)
async def test_every_text_comes_back_unchanged(opened, text: str):
    reply = Completion(text, "length", Usage(1, 2), "m", (TokenLogprob(text, -0.5, ((text, -0.5), ("b", -1.25))),))
    stack = opened(Scripted(reply))
    request = ask(text)
    assert await stack.backend.complete(request) == reply
    assert await stack.backend.complete(request) == reply
    (row,) = stack.store.rows()
    assert row.request == request
    assert row.outcome == reply


def test_completion_survives_its_json():
    for completion in (answer(), Completion("x", usage=None), Completion("", "length", Usage(0, 0))):
        assert completion_from_json(completion_to_json(completion)) == completion


async def test_counts_and_answers_outlive_the_process(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    stack = open_stack(Scripted(ServerError("x")), ledger_path=path)
    await asyncio.gather(*(stack.backend.complete(ask(str(i))) for i in range(300)))
    before = stack.stats()
    await stack.aclose()
    transport = Scripted()
    stack = open_stack(transport, ledger_path=path)
    assert stack.stats() == before
    assert before["expert", "evolve"] == CallStats(0, 300, 0, 301, 3000, 1500)
    await asyncio.gather(*(stack.backend.complete(ask(str(i))) for i in range(300)))
    assert transport.asked == []
    await stack.aclose()
    with sqlite3.connect(path) as connection:
        statuses = connection.execute("SELECT status, count(*) FROM attempts GROUP BY status").fetchall()
    connection.close()
    assert sorted(statuses) == [("ServerError", 1), ("ok", 300)]


async def test_memory_ledger_forgets_what_was_used_longest_ago():
    store = MemoryStore(max_rows=2)
    rows = [CallRow(bytes([i]), "r", "s", "m", "[]", answer(str(i))) for i in range(3)]
    await store.put(rows[0], ())
    await store.put(rows[1], ())
    assert store.get(b"\x00") == answer("0")
    await store.put(rows[2], ())
    assert [store.get(bytes([i])) for i in range(3)] == [answer("0"), None, answer("2")]


def test_message_roles_are_part_of_the_identity():
    other = replace(ask("x"), messages=(Message("system", "x"),))
    assert request_key(other)[0] != request_key(ask("x"))[0]
