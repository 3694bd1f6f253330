"""Budget, limits and endpoint pool under arrivals, endings and cancellations in any order, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.errors import (
    BackendError,
    BadRequest,
    BudgetExhausted,
    CallTimeout,
    ConnectionLost,
    EndpointUnreachable,
    RateLimited,
    ServerError,
)
from instructgym.llm_backends.base import LLMBackend
from instructgym.llm_backends.budget import Budget, Budgeted
from instructgym.llm_backends.endpoint_pool import EndpointPool
from instructgym.llm_backends.limits import Limited, Limits
from instructgym.llm_backends.pricing import Price, tokens_at_most
from instructgym.llm_backends.retry import Retry
from instructgym.llm_backends.waiting_line import Later
from instructgym.types import Completion, Sampling, Usage

from . import virtual_time
from .fakes import Held, ask
from .virtual_time import now

HEADERS = st.none() | st.fixed_dictionaries(
    {
        "x-ratelimit-remaining-requests": st.integers(0, 3).map(str),
        "x-ratelimit-reset-requests": st.integers(0, 200).map("{}s".format),
        "x-ratelimit-remaining-tokens": st.integers(0, 400).map(str),
        "x-ratelimit-reset-tokens": st.integers(0, 200).map("{}s".format),
        "x-ratelimit-limit-tokens": st.integers(0, 400).map(str),
    }
)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(["expert", "reviewer", "judge"]), st.integers(1, 300)),
        st.tuples(st.just("end"), st.integers(0, 50), st.integers(0, 10), HEADERS),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
        st.tuples(st.just("tick"), st.integers(1, 4)),
        st.tuples(st.just("wait"), st.floats(0.01, 40.0)),
    ),
    max_size=60,
)


class Endpoint(Held):
    """Held, with headers to tell."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.on_headers: Callable[[dict[str, str]], None] | None = None

    def tell(self, headers: dict[str, str]) -> None:
        if self.on_headers is not None:
            self.on_headers(headers)


class Game:
    """Plays moves against a backend over some held endpoints. `check` is called after each, when all has settled."""

    def __init__(self, backend: LLMBackend, endpoints: list[Any], outcomes: list[Callable[[], Any]]) -> None:
        self.backend = backend
        self.endpoints = endpoints
        self.outcomes = outcomes
        self.one_by_one = False  # True: who arrives does not run before one that was let through just now
        self.tasks: list[asyncio.Task[Completion]] = []

    def waiting_calls(self) -> list[tuple[Any, str]]:
        """Calls that an endpoint holds and that have not been ended, oldest first."""
        calls = [(at, text) for at in self.endpoints for text, call in at.calls.items() if not call.done()]
        return sorted(calls, key=lambda call: int(call[1].split()[0]))

    async def play(self, moves: list[Any], check: Callable[[], None]) -> None:
        for what, *values in moves:
            if what == "arrive":
                if self.one_by_one:
                    await self.settle()
                request = ask(f"{len(self.tasks)} ", role=values[0], sampling=Sampling(max_tokens=values[1]))
                self.tasks.append(asyncio.create_task(self.backend.complete(request)))
            elif what == "end" and (calls := self.waiting_calls()):
                endpoint, text = calls[values[0] % len(calls)]
                if values[2] is not None and isinstance(endpoint, Endpoint):
                    endpoint.tell(values[2])
                endpoint.end(text, self.outcomes[values[1] % len(self.outcomes)]())
            elif what == "cancel" and self.tasks:
                self.tasks[values[0] % len(self.tasks)].cancel()
            elif what == "tick":
                for _ in range(values[0]):
                    await asyncio.sleep(0)
            elif what == "wait":
                await asyncio.sleep(values[0])
                await self.settle()
                check()
        await self.settle()
        check()
        for _ in range(10_000):  # now all that is held ends well: nobody may be left
            if all(task.done() for task in self.tasks):
                break
            for endpoint, text in self.waiting_calls():
                endpoint.end(text)
            await asyncio.sleep(1.0)
            await self.settle()
            check()
        assert all(task.done() for task in self.tasks)
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def usage(prompt: int, completion: int) -> Callable[[], Completion]:
    return lambda: Completion("x", usage=Usage(prompt, completion))


BUDGET_OUTCOMES: list[Callable[[], Any]] = [
    usage(5, 1),
    usage(0, 0),
    usage(20, 1),
    lambda: Completion("x", usage=None),
    lambda: RateLimited("x", status=429),
    lambda: BadRequest("x", status=400),
    lambda: ServerError("x", status=500),
    lambda: EndpointUnreachable("x"),
    lambda: CallTimeout("x"),
]


@settings(max_examples=150, deadline=None)
@given(
    moves=MOVES,
    run=st.tuples(
        st.just(1000) | st.integers(0, 15), st.none() | st.integers(0, 1500), st.none() | st.integers(0, 900)
    ),
    roles=st.dictionaries(
        st.sampled_from(["expert", "reviewer"]),
        st.tuples(st.none() | st.integers(0, 8), st.none() | st.integers(0, 600)),
    ),
    one_by_one=st.booleans(),
)
def test_budget_holds_at_every_moment_in_every_account(moves, run, roles, one_by_one):
    async def go() -> None:
        transport = Held()
        budget = Budget(
            max_calls=run[0],
            max_tokens=run[1],
            max_cost_usd=None if run[2] is None else run[2] * 1e-6,
            roles={role: Budget(max_calls=calls, max_tokens=tokens) for role, (calls, tokens) in roles.items()},
            prices={"simulated": Price(1.0, 2.0)},
        )
        budgeted = Budgeted(transport, budget)

        def check() -> None:
            # An independent count of what can have been spent: all that is out at its bound, beside what is settled.
            for account, own in ((None, budget), *((role, budget.roles[role]) for role in roles)):
                held = [request for text, request in transport.requests.items() if text in transport.calls]
                held = [request for request in held if account in (None, request.role)]
                ledger = budgeted._run if account is None else budgeted._roles[account]
                assert ledger.in_flight == len(held)
                assert ledger.calls >= len(held)
                if budget.counts_tokens:
                    assert ledger.tokens >= sum(tokens_at_most(request).total for request in held)
                assert own.max_calls is None or ledger.calls <= own.max_calls
                assert own.max_tokens is None or ledger.tokens <= own.max_tokens
                assert own.max_cost_usd is None or ledger.picodollars <= round(own.max_cost_usd * 1e12)
            for accounts, queue in budgeted._waiting.items():  # whoever waits, waits for something
                live = [waiter for waiter in queue if not waiter.turn.done()]
                if live:
                    refusing = [account for account in accounts if not account.fits(live[0].need)]
                    assert refusing
                    assert all(account.in_flight for account in refusing)

        refused_with_calls_out = []
        original = BudgetExhausted.__init__

        def watch(self: BudgetExhausted, message: str, *, status: int | None = None) -> None:
            out = [transport.requests[text].role for text in transport.calls]
            account = next((role for role in roles if f"role '{role}'" in message), None)
            refused_with_calls_out.extend(role for role in out if account in (None, role))
            original(self, message, status=status)

        BudgetExhausted.__init__ = watch  # type: ignore[method-assign]
        try:
            game = Game(budgeted, [transport], BUDGET_OUTCOMES)
            game.one_by_one = one_by_one
            await game.play(moves, check)
        finally:
            BudgetExhausted.__init__ = original  # type: ignore[method-assign]
        assert refused_with_calls_out == []
        assert not any(budgeted._waiting.values())
        for role in ("expert", "reviewer", "judge") if one_by_one else ():
            order = [int(text) for text in transport.texts if transport.requests[text].role == role]
            assert order == sorted(order)

    virtual_time.run(go())


@settings(max_examples=150, deadline=None)
@given(
    moves=MOVES,
    concurrency=st.none() | st.integers(1, 4),
    requests=st.none() | st.integers(1, 90),
    tokens=st.none() | st.integers(30, 3000),
)
def test_limits_hold_at_every_moment_and_leak_no_slot(moves, concurrency, requests, tokens):
    async def go() -> None:
        transport = Held()
        sends: list[tuple[float, int]] = []  # when, and the tokens that were used then
        complete = transport.complete

        async def noting(request):
            number, at = len(sends), now()
            sends.append((at, tokens_at_most(request).total))
            completion = await complete(request)
            if completion.usage is not None:
                sends[number] = (at, completion.usage.prompt_tokens + completion.usage.completion_tokens)
            return completion

        transport.complete = noting
        limits = Limits(concurrency=concurrency, requests_per_minute=requests, tokens_per_minute=tokens)
        limited = Limited(transport, limits, clock=now)

        def check() -> None:
            assert limited.in_flight == transport.in_flight
            assert concurrency is None or transport.in_flight <= concurrency

        outcomes = [usage(10, 1), usage(5, 0), lambda: Completion("x", usage=None), lambda: ServerError("x")]
        await Game(limited, [transport], outcomes).play(moves, check)
        assert limited.in_flight == 0
        assert [int(text) for text in transport.texts] == sorted(int(text) for text in transport.texts)
        for i, (start, _) in enumerate(sends):
            window = [amount for at, amount in sends[i:] if at < start + 60.0 - 1e-6]
            assert requests is None or len(window) <= requests
            assert tokens is None or len(window) == 1 or sum(window) <= tokens

    virtual_time.run(go())


POOL_OUTCOMES: list[Callable[[], Any]] = [
    usage(5, 5),
    usage(5, 5),
    lambda: RateLimited("x", status=429),
    lambda: RateLimited("x", status=429, retry_after_s=20.0),
    lambda: ServerError("x", status=503),
    lambda: ServerError("x", status=500),
    lambda: BadRequest("x", status=400),
    lambda: EndpointUnreachable("x"),
    lambda: ConnectionLost("x"),
    lambda: CallTimeout("x"),
]


@settings(max_examples=250, deadline=None)
@given(
    moves=MOVES, count=st.integers(1, 3), concurrency=st.integers(1, 4), adaptive=st.booleans(), retried=st.booleans()
)
def test_pool_keeps_its_limits_leaks_no_slot_and_leaves_nobody_waiting(moves, count, concurrency, adaptive, retried):
    async def go() -> None:
        endpoints = [Endpoint(f"endpoint {i}") for i in range(count)]
        pool = EndpointPool(endpoints, Limits(concurrency=concurrency, adaptive=adaptive), clock=now)

        def check() -> None:
            for endpoint, row in zip(endpoints, pool.stats(), strict=True):
                assert row.in_flight == endpoint.in_flight <= concurrency
                assert 1 <= row.limit <= concurrency
            assert pool.in_flight == sum(endpoint.in_flight for endpoint in endpoints)
            if pool.waiting:  # nothing that it waits for has come: it would still be told to wait
                turn, asks = pool._line._waiting[0]
                assert not turn.done()
                assert isinstance(asks(), Later)

        backend = Retry(pool, deadline_s=300.0) if retried else pool
        await Game(backend, endpoints, POOL_OUTCOMES).play(moves, check)
        assert pool.in_flight == pool.waiting == 0
        assert now() < 5000.0

    virtual_time.run(go())


def test_virtual_time_finds_a_deadlock():
    async def go() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match=r"^everything waits and nothing will ever happen$"):
        virtual_time.run(go())


def test_errors_of_the_outcomes_are_backend_errors():
    for make in (*BUDGET_OUTCOMES, *POOL_OUTCOMES):
        assert isinstance(make(), (Completion, BackendError))
