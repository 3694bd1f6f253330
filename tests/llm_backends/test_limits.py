import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instructgym.errors import ConfigError, ServerError
from instructgym.llm_backends.limits import Limited, Limits, Rate
from instructgym.types import Completion, Sampling

from . import virtual_time
from .fakes import Held, Scripted, answer, ask
from .virtual_time import now


async def test_never_more_in_flight_than_the_concurrency():
    transport = Scripted(latency_s=0.005)
    limited = Limited(transport, Limits(concurrency=4))
    await asyncio.gather(*(limited.complete(ask(str(i))) for i in range(40)))
    assert transport.max_in_flight == 4
    assert limited.in_flight == 0


async def test_without_a_concurrency_all_go_at_once():
    transport = Scripted(latency_s=0.005)
    await asyncio.gather(*(Limited(transport, Limits()).complete(ask(str(i))) for i in range(40)))
    assert transport.max_in_flight == 40


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
    assert limited.in_flight == 0


async def test_slot_that_arrives_with_the_cancellation_is_passed_on():
    transport = Held()
    limited = Limited(transport, Limits(concurrency=1))
    _, first, second = (asyncio.create_task(limited.complete(ask(str(i)))) for i in range(3))
    await asyncio.sleep(0)
    transport.end("0")
    await asyncio.sleep(0)  # now the slot is the first one's, which has not yet run
    first.cancel()
    await asyncio.sleep(0.01)
    assert transport.texts == ["0", "2"]
    assert first.cancelled()
    transport.end("2")
    await second
    assert limited.in_flight == 0


@example(per_minute=3, arrivals=[(1.769675704412851, 1), (0.0, 1), (0.0, 3)])
@given(
    st.integers(1, 5000),
    st.lists(st.tuples(st.floats(0.0, 70.0), st.integers(1, 7)), min_size=1, max_size=60),
)
def test_no_minute_holds_more_than_the_rate(per_minute: int, arrivals: list[tuple[float, int]]):
    time = 0.0
    rate = Rate(per_minute, clock=lambda: time)
    used: list[tuple[float, int]] = []
    for gap, amount in arrivals:
        time += gap
        amount = min(amount, per_minute)
        while (delay_s := rate.delay_s(amount)) > 0.0:
            time += max(delay_s, 1e-6)
        rate.take(amount)
        used.append((time, amount))
    for i, (start, _) in enumerate(used):
        assert sum(amount for at, amount in used[i:] if at < start + 60.0) <= per_minute


def test_rate_spreads_a_minutes_worth_over_the_minute():
    time = 0.0
    rate = Rate(600, clock=lambda: time)
    used = []
    while time < 120.0:
        if delay_s := rate.delay_s(1):
            time += max(delay_s, 1e-6)
        else:
            rate.take(1)
            used.append(time)
    assert sum(at == 0.0 for at in used) == 10  # a second's worth at once, and then ten a second
    assert 19 <= sum(at < 1.0 for at in used) <= 20
    assert sum(at < 60.0 for at in used) == 600
    assert len(used) >= 1190


def test_amount_larger_than_the_bucket_waits_for_a_full_one_and_is_paid_off():
    time = 0.0
    rate = Rate(6000, clock=lambda: time)
    taken = rate.take(1000) if rate.delay_s(1000) == 0.0 else None
    assert taken is not None
    assert rate.delay_s(1) == pytest.approx(9.01)
    rate.settle(taken, 100)
    assert rate.delay_s(1) == pytest.approx(0.01)


def test_what_was_unused_is_forgotten_once():
    time = 0.0
    rate = Rate(100, clock=lambda: time)
    assert rate.delay_s(100) == 0.0
    rate.settle(rate.take(100), 10)
    time = 100.0
    assert rate.delay_s(100) == 0.0
    late = rate.take(100)
    assert rate.delay_s(1) == pytest.approx(60.0)  # not less for the 90 of long ago
    time = 161.0
    assert rate.delay_s(100) == 0.0
    rate.take(100)
    rate.settle(late, 0)  # out of the window: it frees nothing in this one
    assert rate.delay_s(1) == pytest.approx(60.0)


def test_when_the_one_in_front_gives_up_those_behind_it_are_asked_again():
    async def go() -> float:
        transport = Scripted(Completion("x", usage=None))
        limited = Limited(transport, Limits(tokens_per_minute=1200), clock=now)
        await limited.complete(ask("x" * 1000, sampling=Sampling(max_tokens=50)))
        large = asyncio.create_task(limited.complete(ask("x" * 1000)))
        await asyncio.sleep(0.0)
        small = asyncio.create_task(limited.complete(ask("x", sampling=Sampling(max_tokens=1))))
        await asyncio.sleep(58.0)
        assert len(transport.asked) == 1
        large.cancel()
        await small
        return now()

    assert virtual_time.run(go()) < 59.0


def test_amount_larger_than_a_minutes_worth_passes_alone():
    time = 0.0
    rate = Rate(100, clock=lambda: time)
    assert rate.delay_s(500) == 0.0
    rate.take(500)
    time = 59.0
    assert rate.delay_s(1) > 0.0
    time = 400.0
    assert rate.delay_s(500) == 0.0


def test_requests_a_minute_space_the_sends():
    async def go() -> float:
        limited = Limited(Scripted(), Limits(requests_per_minute=60), clock=now)
        await asyncio.gather(*(limited.complete(ask(str(i))) for i in range(31)))
        return now()

    assert virtual_time.run(go()) == pytest.approx(30.0, abs=0.1)


def test_unused_tokens_are_given_back():
    async def go() -> float:
        limited = Limited(Scripted(*[answer() for _ in range(4)]), Limits(tokens_per_minute=60_000), clock=now)
        for i in range(4):
            await limited.complete(ask("x" * 700 + str(i)))  # 775 at most, 15 in truth, 1000 in the bucket
        return now()

    assert virtual_time.run(go()) < 0.1


def test_unused_tokens_wake_one_that_waits_for_them():
    async def go() -> float:
        limited = Limited(Scripted(latency_s=0.5), Limits(tokens_per_minute=60_000), clock=now)
        await asyncio.gather(*(limited.complete(ask("x" * 3000 + str(i))) for i in range(2)))
        return now()

    assert virtual_time.run(go()) == pytest.approx(1.0, abs=0.05)  # and not after 3 s, when the bucket is full


def test_one_that_waits_for_the_rate_holds_no_slot_and_gives_nothing_up_when_cancelled():
    async def go() -> None:
        transport = Scripted()
        limited = Limited(transport, Limits(concurrency=5, requests_per_minute=1), clock=now)
        await limited.complete(ask("first"))
        waiting = [asyncio.create_task(limited.complete(ask(str(i)))) for i in range(3)]
        await asyncio.sleep(1.0)
        assert limited.in_flight == 0
        waiting[0].cancel()
        await waiting[1]
        assert 59.9 < now() < 60.1
        waiting[2].cancel()
        assert len(transport.asked) == 2

    virtual_time.run(go())


def test_nonsense_limits_are_refused():
    with pytest.raises(
        ConfigError, match=r"^limits.concurrency is 0; expected a positive whole number, or none at all$"
    ):
        Limits(concurrency=0)
    with pytest.raises(ConfigError) as caught:
        Limits(adaptive=False)
    assert str(caught.value) == (
        "limits.adaptive is false and there is no limits.concurrency; "
        "say how many requests may be in flight, or leave the limit adaptive"
    )
