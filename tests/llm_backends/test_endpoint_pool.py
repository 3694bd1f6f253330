import asyncio
import itertools
import math
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from instructgym.errors import (
    AuthenticationFailed,
    BackendError,
    BadRequest,
    ConfigError,
    ConnectionLost,
    EndpointUnreachable,
    ModelNotFound,
    RateLimited,
    ServerError,
)
from instructgym.llm_backends.base import LLMBackend
from instructgym.llm_backends.clock import Deadlines, current_clock
from instructgym.llm_backends.endpoint_pool import EndpointPool
from instructgym.llm_backends.limits import Limits
from instructgym.llm_backends.retry import Retry
from instructgym.llm_backends.stack import open_stack
from instructgym.types import Completion, Request, Sampling

from . import virtual_time
from .fakes import Held, Scripted, answer, ask
from .virtual_time import now


class Server:
    """Takes `latency_s` a call, at most `capacity` of them at once; `fails` says what is wrong with it now."""

    def __init__(self, name: str = "server", *, latency_s: float = 0.5, capacity: float = math.inf) -> None:
        self.name = self.url = name
        self.latency_s = latency_s
        self.capacity = capacity
        self.retry_after_s: float | None = 1.0
        self.fails: BackendError | None = None
        self.headers: dict[str, str] = {}
        self.on_headers: Callable[[dict[str, str]], None] | None = None
        self.busy = 0
        self.most_busy = 0
        self.asked: list[float] = []
        self.answered: list[float] = []
        self.refused: list[float] = []
        self.closed = False

    async def complete(self, request: Request) -> Completion:
        self.asked.append(now())
        if isinstance(self.fails, EndpointUnreachable):
            raise self.fails
        await asyncio.sleep(0.001)
        if self.busy >= self.capacity:
            self.refused.append(now())
            self.tell()
            raise RateLimited("busy", status=429, retry_after_s=self.retry_after_s)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            await asyncio.sleep(self.latency_s)
        finally:
            self.busy -= 1
        if self.fails is not None:
            raise self.fails
        await asyncio.sleep(0.001)
        self.answered.append(now())
        self.tell()
        return answer()

    def tell(self) -> None:
        if self.on_headers is not None and self.headers:
            self.on_headers(self.headers)

    async def aclose(self) -> None:
        self.closed = True


def pool_of(*servers: LLMBackend, **limits: Any) -> EndpointPool:
    return EndpointPool(servers, Limits(**limits), clock=now)


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        virtual_time.run(test())

    run.__name__ = test.__name__
    return run


async def asked_at(backend: LLMBackend, at_s: float, **fields: Any) -> Completion | BaseException:
    await asyncio.sleep(at_s - now())
    return (await asyncio.gather(backend.complete(ask(**fields)), return_exceptions=True))[0]


# --- one endpoint -----------------------------------------------------------------------------------------------------
@in_virtual_time
async def test_whole_stack_finds_the_capacity_of_an_endpoint_and_loses_no_call():
    server = Server(capacity=64)
    stack = open_stack(pool_of(server))

    async def chain(i: int) -> None:
        for step in range(8):
            await stack.backend.complete(ask(str(i), sample=(i, step)))

    await asyncio.gather(*(chain(i) for i in range(600)))
    end = now()
    assert len(server.answered) == 4800
    assert 4800 / end >= 0.9 * 64 / 0.5
    late = sum(at > 10.0 for at in server.refused)
    assert late / sum(at > 10.0 for at in server.asked) < 0.02
    attempts = stack.stats()["expert", "evolve"].attempts
    assert attempts == len(server.asked) == 4800 + len(server.refused)
    await stack.aclose()
    assert server.closed


@in_virtual_time
async def test_stated_concurrency_is_used_from_the_start():
    server = Server()
    pool = pool_of(server, concurrency=50)
    await asyncio.gather(*(pool.complete(ask(str(i))) for i in range(400)))
    assert server.most_busy == 50
    assert now() == pytest.approx(8 * 0.5, abs=0.1)


@in_virtual_time
async def test_limit_that_is_not_adaptive_stays():
    server = Server(capacity=2)
    pool = pool_of(server, concurrency=8, adaptive=False)
    await asyncio.gather(*(pool.complete(ask(str(i))) for i in range(40)), return_exceptions=True)
    row = pool.stats()[0]
    assert (row.name, row.limit, row.in_flight) == ("server", 8, 0)
    assert row.overloads > 0


@in_virtual_time
async def test_single_endpoint_never_rests():
    server = Server()
    server.fails = EndpointUnreachable("nobody")
    pool = pool_of(server)
    for _ in range(5):
        with pytest.raises(EndpointUnreachable, match=r"^nobody$"):
            await pool.complete(ask())
    assert now() < 0.1
    assert pool.stats()[0].paused_s == 0.0


@in_virtual_time
async def test_waiting_for_a_slot_is_not_in_the_deadline():
    server = Server(latency_s=1.0)
    retry = Retry(pool_of(server, concurrency=1), deadline_s=1.5)
    await asyncio.gather(*(retry.complete(ask(str(i))) for i in range(10)))
    assert len(server.answered) == 10


@in_virtual_time
async def test_call_that_waits_is_not_sent():
    pool = pool_of(Server(latency_s=10.0), concurrency=1)
    other = asyncio.create_task(pool.complete(ask("first")))
    await asyncio.sleep(0)
    clock = Deadlines().clock(100.0)
    current_clock.set(clock)
    waiting = asyncio.create_task(pool.complete(ask("second")))
    await asyncio.sleep(0.1)
    assert not clock.sent
    assert pool.waiting == 1
    waiting.cancel()
    await other
    assert pool.in_flight == pool.waiting == 0


# --- which endpoint ---------------------------------------------------------------------------------------------------
@in_virtual_time
async def test_calls_go_where_most_is_free_and_in_turn_where_it_is_the_same():
    servers = [Server(str(i)) for i in range(3)]
    pool = pool_of(*servers, concurrency=10)
    await asyncio.gather(*(pool.complete(ask(str(i))) for i in range(15)))
    assert [len(server.asked) for server in servers] == [5, 5, 5]
    for i in range(3):
        await pool.complete(ask(str(i)))
    assert [len(server.asked) for server in servers] == [6, 6, 6]


@in_virtual_time
async def test_fast_endpoint_gets_more_than_a_slow_one():
    fast, slow = Server("fast", latency_s=0.1), Server("slow", latency_s=1.0)
    pool = pool_of(fast, slow, concurrency=4)
    await asyncio.gather(*(pool.complete(ask(str(i))) for i in range(220)))
    assert len(fast.asked) == pytest.approx(10 * len(slow.asked), rel=0.2)
    assert now() == pytest.approx(5.0, abs=1.0)


@in_virtual_time
async def test_calls_wait_in_order_of_arrival():
    endpoints = [Held(), Held()]
    pool = pool_of(*endpoints, concurrency=1)
    tasks = [asyncio.create_task(pool.complete(ask(str(i)))) for i in range(6)]
    order = []
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.01)
        for endpoint in endpoints:
            for text in list(endpoint.calls):
                order.append(int(text))
                endpoint.end(text)
    assert order == sorted(order)


# --- endpoints that fail ----------------------------------------------------------------------------------------------
@in_virtual_time
async def test_call_that_reached_nobody_is_sent_to_the_next_endpoint_in_the_same_attempt():
    gone, there = Server("gone"), Server("there")
    gone.fails = EndpointUnreachable("nobody")
    attempts = []
    retry = Retry(pool_of(gone, there), on_attempt=lambda request, attempt: attempts.append(attempt.status))
    await asyncio.gather(*(retry.complete(ask(str(i))) for i in range(20)))
    assert attempts == ["ok"] * 20
    assert len(there.answered) == 20
    assert len(gone.asked) == 1  # and then it rests


@in_virtual_time
async def test_unreachable_is_raised_when_all_have_been_tried():
    servers = [Server(str(i)) for i in range(3)]
    for server in servers:
        server.fails = EndpointUnreachable(f"nobody at {server.name}")
    pool = pool_of(*servers)
    for times in (1, 2):
        with pytest.raises(EndpointUnreachable, match=r"^nobody at "):
            await pool.complete(ask())
        assert [len(server.asked) for server in servers] == [times] * 3
    assert pool.in_flight == 0


@in_virtual_time
async def test_endpoint_rests_longer_each_time_that_one_call_finds_it_still_failing():
    bad, good = Server("bad", latency_s=0.01), Server("good", latency_s=0.01)
    bad.fails = ServerError("500", status=500)
    pool = pool_of(bad, good, concurrency=100)
    await asyncio.gather(*(asked_at(pool, 0.02 * i, text=str(i)) for i in range(2000)))
    while_failing = len(bad.asked)
    gaps = [round(b - a) for a, b in itertools.pairwise(bad.asked[2:])]
    assert gaps == [1, 2, 4, 8, 16]
    assert pool.stats()[0].paused_s > 10.0
    bad.fails = None
    await asyncio.sleep(40.0)
    await asyncio.gather(*(pool.complete(ask(f"again {i}")) for i in range(20)))
    assert len(bad.asked) == while_failing + 1  # first one call tries it
    await asyncio.gather(*(pool.complete(ask(f"again {i}")) for i in range(20)))
    assert len(bad.asked) == while_failing + 11


@in_virtual_time
async def test_failures_with_successes_between_them_are_no_reason_to_rest():
    rng = random.Random(1)

    class Flaky(Server):
        async def complete(self, request: Request) -> Completion:
            self.fails = ConnectionLost("reset") if rng.random() < 0.2 else None
            return await super().complete(request)

    flaky, good = Flaky("flaky", latency_s=0.01), Server("good", latency_s=0.01)
    pool = pool_of(flaky, good, concurrency=5)
    for i in range(100):
        await asyncio.gather(pool.complete(ask(str(i))), pool.complete(ask(f"{i} too")), return_exceptions=True)
    assert len(flaky.asked) > 60


@in_virtual_time
async def test_where_all_rest_none_does():
    servers = [Server("a"), Server("b")]
    pool = pool_of(*servers)
    for server in servers:
        server.fails = ConnectionLost("reset")
    await asyncio.gather(*(pool.complete(ask(str(i))) for i in range(40)), return_exceptions=True)
    for server in servers:
        server.fails = None
    start = now()
    await asyncio.gather(*(pool.complete(ask(str(i))) for i in range(40)))
    assert now() - start < 0.6


@in_virtual_time
async def test_server_that_dies_and_comes_back_loses_no_call():
    server = Server(latency_s=0.1)
    retry = Retry(pool_of(server, concurrency=10), deadline_s=300.0)

    async def outage() -> None:
        await asyncio.sleep(2.0)
        server.fails = EndpointUnreachable("connection refused")
        await asyncio.sleep(60.0)
        server.fails = None

    outage_task = asyncio.create_task(outage())
    ends = await asyncio.gather(*(asked_at(retry, 0.05 * i, text=str(i)) for i in range(200)))
    assert all(isinstance(end, Completion) for end in ends)
    await outage_task


@pytest.mark.parametrize("error", [AuthenticationFailed, ModelNotFound, BadRequest])
def test_errors_that_are_not_the_endpoints_load_are_raised_as_they_are(error: type[BackendError]):
    async def go() -> None:
        servers = [Server("a"), Server("b")]
        servers[0].fails = servers[1].fails = error("no", status=400)
        pool = pool_of(*servers)
        for _ in range(10):
            with pytest.raises(error, match=r"^no$"):
                await pool.complete(ask())
        assert sum(len(server.asked) for server in servers) == 10
        assert [(row.limit, row.paused_s, row.overloads) for row in pool.stats()] == [(32, 0.0, 0)] * 2

    virtual_time.run(go())


# --- endpoints that ask for patience ----------------------------------------------------------------------------------
@in_virtual_time
async def test_single_429_holds_up_its_own_call_alone():
    server = Server(latency_s=0.1)
    retry = Retry(pool_of(server))
    server.capacity, server.retry_after_s = 0, 30.0
    first = asyncio.create_task(retry.complete(ask("first")))
    await asyncio.sleep(0.05)
    server.capacity = 100
    await retry.complete(ask("second"))
    assert now() < 1.0
    await first
    assert now() > 30.0


@in_virtual_time
async def test_three_429_in_a_row_hold_up_the_endpoint_until_the_latest_retry_after():
    server = Server(latency_s=0.1, capacity=0)
    server.retry_after_s = 20.0
    pool = pool_of(server)
    ends = await asyncio.gather(*(asked_at(pool, 0.1 * i, text=str(i)) for i in range(3)))
    assert all(isinstance(end, RateLimited) for end in ends)
    server.capacity = 100
    await pool.complete(ask())
    assert now() == pytest.approx(20.3, abs=0.2)


@in_virtual_time
async def test_success_of_a_call_in_flight_ends_that_pause():
    server = Server(latency_s=5.0)
    server.retry_after_s = 60.0
    pool = pool_of(server)
    long = asyncio.create_task(pool.complete(ask("long")))
    await asyncio.sleep(0.1)
    server.capacity = 1
    await asyncio.gather(*(asked_at(pool, 0.1 * i, text=str(i)) for i in range(3)))
    assert pool.stats()[0].paused_s > 50.0
    waiting = asyncio.create_task(pool.complete(ask("waiting")))
    await long
    server.capacity = 100
    await waiting
    assert now() < 11.0


@in_virtual_time
async def test_retry_after_of_an_hour_holds_up_nobody_else():
    server = Server(latency_s=0.1, capacity=0)
    server.retry_after_s = 3600.0
    pool = pool_of(server)
    await asyncio.gather(*(asked_at(pool, 0.1 * i, text=str(i)) for i in range(9)))
    assert now() < 2.0


@in_virtual_time
async def test_no_request_left_by_the_headers_means_waiting_for_their_reset():
    server = Server(latency_s=0.1)
    server.headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12s"}
    pool = pool_of(server)
    await pool.complete(ask("first"))
    server.headers = {}
    assert pool.stats()[0].paused_s == pytest.approx(12.0, abs=0.1)
    await asyncio.gather(*(pool.complete(ask(str(i))) for i in range(5)))
    assert len([at for at in server.asked if at < 12.0]) == 1


@in_virtual_time
async def test_requests_left_are_counted_down_until_the_next_reply_says_more():
    server = Server(latency_s=1.0)
    server.headers = {"ratelimit-remaining": "3", "ratelimit-reset": "50"}
    pool = pool_of(server)
    await pool.complete(ask("first"))
    tasks = [asyncio.create_task(pool.complete(ask(str(i)))) for i in range(6)]
    await asyncio.sleep(0.5)
    assert pool.in_flight == 3
    await asyncio.gather(*tasks)
    assert now() == pytest.approx(3.0, abs=0.1)


@in_virtual_time
async def test_too_few_tokens_left_hold_up_a_large_request_and_not_a_small_one():
    server = Server(latency_s=0.1)
    server.headers = {
        "x-ratelimit-remaining-tokens": "400",
        "x-ratelimit-reset-tokens": "40s",
        "x-ratelimit-limit-tokens": "1000",
    }
    pool = pool_of(server)
    await pool.complete(ask("first"))
    await pool.complete(ask("small"))
    assert now() < 1.0
    await pool.complete(ask("large", sampling=Sampling(max_tokens=500)))
    assert now() == pytest.approx(40.3, abs=0.2)


@in_virtual_time
async def test_request_beyond_the_limit_itself_is_sent_when_all_of_it_is_left():
    server = Server(latency_s=0.1)
    server.headers = {
        "x-ratelimit-remaining-tokens": "1000",
        "x-ratelimit-reset-tokens": "40s",
        "x-ratelimit-limit-tokens": "1000",
    }
    pool = pool_of(server)
    await pool.complete(ask("first"))
    await pool.complete(ask("huge", sampling=Sampling(max_tokens=5000)))
    assert now() < 1.0


@in_virtual_time
async def test_headers_hold_up_an_endpoint_for_two_minutes_at_most():
    server = Server(latency_s=0.1)
    server.headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "86400"}
    pool = pool_of(server)
    await pool.complete(ask("first"))
    await pool.complete(ask("second"))
    assert now() == pytest.approx(120.2, abs=0.2)


@in_virtual_time
async def test_headers_of_one_endpoint_send_calls_to_the_other():
    empty, full = Server("empty", latency_s=0.1), Server("full", latency_s=0.1)
    empty.headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "60"}
    pool = pool_of(empty, full)
    await asyncio.gather(*(pool.complete(ask(str(i))) for i in range(2)))
    await asyncio.gather(*(pool.complete(ask(str(i))) for i in range(20)))
    assert now() < 1.0
    assert (len(empty.asked), len(full.asked)) == (1, 21)


# --- the rest ---------------------------------------------------------------------------------------------------------
@in_virtual_time
async def test_all_endpoints_are_closed_whatever_one_raises():
    class Broken(Server):
        async def aclose(self) -> None:
            raise OSError("cannot close")

    servers = [Server("a"), Broken("b"), Server("c")]
    pool = pool_of(*servers)
    with pytest.raises(OSError, match=r"^cannot close$"):
        await pool.aclose()
    assert (servers[0].closed, servers[2].closed) == (True, True)


def test_pool_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"^a pool of no endpoints; expected at least one$"):
        EndpointPool([])


def test_pool_is_a_backend_under_its_transports_names():
    pool = EndpointPool([Held(), Held(), Server("other")])
    assert isinstance(pool, LLMBackend)
    assert pool.name == "held+other"


async def test_an_endpoint_that_rests_is_told_of_once(caplog):
    class Gone(Scripted):
        url = "http://gone/v1"

        async def complete(self, request):
            raise EndpointUnreachable("nobody answers")

    pool = EndpointPool([Gone(), Scripted()])
    with caplog.at_level("WARNING"):
        for number in range(5):
            await pool.complete(ask(str(number)))
    told = [record.getMessage() for record in caplog.records]
    assert told == ["http://gone/v1 fails; its work goes to the others until it answers again: nobody answers"]
