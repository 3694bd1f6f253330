import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgym.errors import ConfigError, ServerError
from instructgym.llm_backends.limits import Limited, Limits, Rate, Slots

from .fakes import Scripted, answer, ask


async def test_never_more_in_flight_than_the_concurrency():
    transport = Scripted(latency_s=0.005)
    limited = Limited(transport, Limits(concurrency=4))
    await asyncio.gather(*(limited.complete(ask(str(i))) for i in range(40)))
    assert transport.max_in_flight == 4
    assert limited.slots.in_use == 0


async def test_slots_are_given_in_order_of_arrival():
    transport = Scripted(latency_s=0.001)
    limited = Limited(transport, Limits(concurrency=1))
    await asyncio.gather(*(limited.complete(ask(str(i))) for i in range(10)))
    assert [request.messages[0].content for request in transport.asked] == [str(i) for i in range(10)]


async def test_failure_and_cancellation_give_the_slot_back():
    limited = Limited(Scripted(ServerError("x"), latency_s=0.01), Limits(concurrency=1))
    with pytest.raises(ServerError):
        await limited.complete(ask())
    tasks = [asyncio.create_task(limited.complete(ask(str(i)))) for i in range(5)]
    await asyncio.sleep(0.001)
    for task in tasks[:4]:
        task.cancel()
    assert (await tasks[4]).text == "hi"
    assert limited.slots.in_use == 0


async def test_capacity_may_change_in_use():
    slots = Slots(1)
    assert slots.try_acquire()
    waiting = [asyncio.create_task(slots.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    slots.capacity = 3
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, True, False]
    slots.capacity = 1
    for _ in range(2):
        slots.release()
    assert slots.in_use == 1
    assert not slots.try_acquire()
    slots.release()
    await waiting[2]
    assert slots.in_use == 1


async def test_slot_that_arrives_with_the_cancellation_is_passed_on():
    slots = Slots(1)
    assert slots.try_acquire()
    first, second = asyncio.create_task(slots.acquire()), asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    slots.release()  # grants the first ...
    first.cancel()  # ... which is cancelled before it runs
    await second
    assert slots.in_use == 1


@given(
    st.integers(1, 5000),
    st.lists(st.floats(0.0, 20.0), min_size=1, max_size=200),
)
def test_no_minute_holds_more_than_the_rate(per_minute: int, gaps: list[float]):
    now = 0.0
    rate = Rate(per_minute, clock=lambda: now)
    used: list[float] = []
    for gap in gaps:
        now += gap
        used += [now + rate.take(1) for _ in range(7)]
    assert used == sorted(used)
    for i, start in enumerate(used):
        assert sum(start <= moment < start + 60.0 - 1e-6 for moment in used[i:]) <= per_minute


def test_amount_larger_than_the_bucket_passes_and_is_paid_off():
    rate = Rate(6000, clock=lambda: 0.0)
    assert rate.take(1000) == 0.0  # the bucket is full: it goes into debt
    assert rate.take(1) == pytest.approx(901 / 98.333333)
    rate.give_back(900)
    assert rate.take(1) == pytest.approx(2 / 98.333333)


async def test_requests_a_minute_space_the_sends():
    transport = Scripted()
    limited = Limited(transport, Limits(requests_per_minute=1200))
    start = asyncio.get_running_loop().time()
    await asyncio.gather(*(limited.complete(ask(str(i))) for i in range(25)))  # a burst of 20, then 19 a second
    assert asyncio.get_running_loop().time() - start >= 4 / 19


async def test_unused_tokens_are_given_back():
    limited = Limited(Scripted(*[answer() for _ in range(4)]), Limits(tokens_per_minute=60_000))
    start = asyncio.get_running_loop().time()
    for i in range(4):
        await limited.complete(ask("x" * 700 + str(i)))  # 775 at most, 15 in truth, 1000 in the bucket
    assert asyncio.get_running_loop().time() - start < 1.0


def test_nonsense_limits_are_refused():
    with pytest.raises(
        ConfigError, match=r"^limits.concurrency is 0; expected a positive whole number, or none at all$"
    ):
        Limits(concurrency=0)
