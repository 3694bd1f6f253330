import asyncio
import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgym.errors import (
    BackendError,
    BudgetExhausted,
    ConfigError,
    EndpointUnreachable,
    RateLimited,
    ServerError,
)
from instructgym.llm_backends.budget import Budget, Budgeted, Spent
from instructgym.llm_backends.pricing import Price, charged_tokens, tokens_at_most
from instructgym.types import Completion, Request, Sampling, Usage

from .fakes import Held, Scripted, answer, ask


async def test_calls_are_counted_and_the_budget_is_exhausted_when_nothing_is_in_flight():
    transport = Scripted(latency_s=0.01)
    budgeted = Budgeted(transport, Budget(max_calls=3))
    ends = await asyncio.gather(*(budgeted.complete(ask(str(i))) for i in range(5)), return_exceptions=True)
    assert [type(end) for end in ends] == [Completion] * 3 + [BudgetExhausted] * 2
    assert str(ends[3]) == (
        "the run's budget: max_calls = 3, 3 spent, the next attempt needs 1; run again with a larger budget to go on"
    )
    assert len(transport.asked) == 3


async def test_reservation_that_does_not_fit_waits_for_one_that_settles_at_less():
    transport = Scripted(latency_s=0.01)
    at_most = tokens_at_most(ask()).total
    budgeted = Budgeted(transport, Budget(max_tokens=at_most + 20))
    await asyncio.gather(budgeted.complete(ask("a" * 5)), budgeted.complete(ask("b" * 5)))
    assert transport.max_in_flight == 1


async def test_role_budget_is_exhausted_alone():
    budgeted = Budgeted(Scripted(), Budget(roles={"reviewer": Budget(max_calls=1)}))
    await budgeted.complete(ask(role="reviewer"))
    with pytest.raises(BudgetExhausted, match=r"^the budget of role 'reviewer': max_calls = 1, 1 spent"):
        await budgeted.complete(ask(role="reviewer"))
    await budgeted.complete(ask(role="expert"))


async def test_role_budget_does_not_wait_for_other_roles():
    transport = Scripted(latency_s=30.0)
    budgeted = Budgeted(transport, Budget(roles={"reviewer": Budget(max_calls=0)}))
    other = asyncio.create_task(budgeted.complete(ask(role="expert")))
    await asyncio.sleep(0)
    with pytest.raises(BudgetExhausted):
        await asyncio.wait_for(budgeted.complete(ask(role="reviewer")), 1.0)
    other.cancel()


async def test_attempt_without_usage_stays_at_its_reservation_unless_it_was_turned_away():
    request = ask()
    at_most = tokens_at_most(request).total
    unknown = Completion("hi", usage=None)
    for outcome, fits in ((unknown, False), (ServerError("x"), False), (RateLimited("x"), True), (answer(), True)):
        budgeted = Budgeted(Scripted(outcome), Budget(max_tokens=at_most + 15))
        await asyncio.gather(budgeted.complete(request), return_exceptions=True)
        if fits:
            await budgeted.complete(request)
        else:
            with pytest.raises(BudgetExhausted):
                await budgeted.complete(request)


async def test_attempt_that_reached_nobody_is_no_call():
    budgeted = Budgeted(Scripted(EndpointUnreachable("nobody")), Budget(max_calls=1))
    with pytest.raises(EndpointUnreachable):
        await budgeted.complete(ask())
    await budgeted.complete(ask())


async def test_large_reservation_is_not_overtaken_for_ever_by_small_ones():
    transport = Held()
    large, small = ask("large " + "x" * 800), [ask(f"small {i}") for i in range(4)]
    room = tokens_at_most(small[0]).total
    budgeted = Budgeted(transport, Budget(max_tokens=tokens_at_most(large).total + room))
    tasks = [asyncio.create_task(budgeted.complete(request)) for request in (*small[:2], large, *small[2:])]
    await asyncio.sleep(0.01)
    assert transport.texts == ["small 0", "small 1"]
    transport.end("small 0")
    await asyncio.sleep(0.01)
    assert transport.texts[2:] == []
    transport.end("small 1")
    await asyncio.sleep(0.01)
    assert transport.texts[2:] == [large.messages[0].content]
    transport.end(transport.texts[2])
    await asyncio.sleep(0.01)
    transport.end("small 2")
    transport.end("small 3")
    await asyncio.gather(*tasks)


async def test_when_the_one_in_front_gives_up_those_behind_it_are_let_through():
    transport = Held()
    first, large, small = ask("first"), ask("large " + "x" * 500), ask("small")
    budgeted = Budgeted(transport, Budget(max_tokens=tokens_at_most(first).total + 200))
    tasks = [asyncio.create_task(budgeted.complete(request)) for request in (first, large, small)]
    await asyncio.sleep(0.01)
    assert transport.texts == ["first"]
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    assert transport.texts == ["first", "small"]
    transport.end("first")
    transport.end("small")
    await asyncio.gather(tasks[0], tasks[2])


async def test_leave_that_comes_with_the_cancellation_is_passed_on():
    transport = Held()
    budgeted = Budgeted(transport, Budget(max_tokens=tokens_at_most(ask("first")).total + 15))
    tasks = [asyncio.create_task(budgeted.complete(ask(text))) for text in ("first", "other", "third")]
    await asyncio.sleep(0)
    transport.end("first")
    await asyncio.sleep(0)  # now it is the other's turn, who has not yet run
    tasks[1].cancel()
    await asyncio.sleep(0.01)
    assert transport.texts == ["first", "third"]
    transport.end("third")
    await asyncio.gather(tasks[0], tasks[2])


async def test_one_that_waits_for_its_roles_account_is_woken_by_its_role_and_not_held_up_by_others():
    transport = Held()
    bound = tokens_at_most(ask("expert 0")).total
    budgeted = Budgeted(transport, Budget(max_tokens=10 * bound, roles={"expert": Budget(max_tokens=bound)}))
    names = ["expert 0", "expert 1", "judge 00", "judge 01"]
    tasks = [asyncio.create_task(budgeted.complete(ask(name, role=name.split()[0]))) for name in names]
    await asyncio.sleep(0.01)
    assert transport.texts == ["expert 0", "judge 00", "judge 01"]
    transport.end("judge 00")
    await asyncio.sleep(0.01)
    assert "expert 1" not in transport.texts
    transport.end("expert 0", RateLimited("turned away"))
    await asyncio.sleep(0.01)
    assert transport.texts[-1] == "expert 1"
    transport.end("expert 1")
    transport.end("judge 01")
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_cost_is_reserved_at_the_models_price():
    prices = {"simulated": Price(1.0, 10.0)}
    budgeted = Budgeted(Scripted(), Budget(max_cost_usd=0.0012, prices=prices))
    for _ in range(11):  # each costs 10 + 50 microdollars, and may cost 29 + 500
        await budgeted.complete(ask())
    await budgeted.complete(ask())
    expected = r"max_cost_usd = 0.0012, 0.00072 spent, the next attempt may need 0.000529"
    with pytest.raises(BudgetExhausted, match=expected):
        await budgeted.complete(ask())


async def test_cost_budget_needs_a_price_and_token_budget_needs_max_tokens():
    with pytest.raises(ConfigError) as caught:
        await Budgeted(Scripted(), Budget(max_cost_usd=1.0)).complete(ask(model="mystery"))
    assert str(caught.value) == (
        "a cost budget is set and the price of model 'mystery' is not known; "
        'set budget.prices."mystery" to its US dollars a million prompt and completion tokens'
    )
    with pytest.raises(ConfigError) as caught:
        await Budgeted(Scripted(), Budget(max_tokens=100)).complete(ask(sampling=Sampling(max_tokens=None)))
    assert str(caught.value) == (
        "a token or cost budget is set and role 'expert' has no max_tokens; "
        "set sampling.max_tokens, so that what an attempt can cost is known"
    )
    await Budgeted(Scripted(), Budget(max_calls=5)).complete(ask(model="mystery"))


async def test_what_was_spent_before_counts():
    budget = Budget(max_calls=10, roles={"expert": Budget(max_calls=9)})
    spent = [Spent("expert", "m", 8, Usage(1, 1)), Spent("reviewer", "m", 1, Usage(1, 1))]
    budgeted = Budgeted(Scripted(), budget, spent=spent)
    await budgeted.complete(ask())
    with pytest.raises(BudgetExhausted):
        await budgeted.complete(ask())


def test_bound_counts_bytes_and_n():
    request = ask("héllo", sampling=Sampling(max_tokens=100, n=3))
    assert tokens_at_most(request).total == 16 + 8 + 6 + 300
    assert charged_tokens(request, "ok", Usage(1, 2)) == Usage(1, 2)


def test_nonsense_budgets_are_refused():
    with pytest.raises(
        ConfigError, match=r"^budget.max_calls is -1; expected a number that is not negative, or none at all$"
    ):
        Budget(max_calls=-1)
    with pytest.raises(ConfigError, match=r"^the budget of role 'judge' has roles or prices of its own"):
        Budget(roles={"judge": Budget(prices={"m": Price(1, 1)})})


class Random:
    """Ends its calls in random order, with random usage within the bound, failures and no usage at all.

    It keeps the books by itself: what is out at most, and what was truly used.
    """

    name = "random"

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.calls = 0
        self.used = 0
        self.used_by_role = {"expert": 0, "reviewer": 0}
        self.in_flight = {"expert": 0, "reviewer": 0}

    async def complete(self, request: Request) -> Completion:
        bound = tokens_at_most(request)
        self.calls += 1
        self.in_flight[request.role] += 1
        try:
            for _ in range(self.rng.randrange(4)):
                await asyncio.sleep(0)
            usage = Usage(self.rng.randint(0, bound.prompt), self.rng.randint(0, bound.completion or 0))
            end = self.rng.randrange(5)
            if end == 0:
                raise RateLimited("turned away")
            self.used += usage.prompt_tokens + usage.completion_tokens
            self.used_by_role[request.role] += usage.prompt_tokens + usage.completion_tokens
            if end == 1:
                raise ServerError("died at the end")
            return Completion("x", usage=None if end == 2 else usage)
        finally:
            self.in_flight[request.role] -= 1

    async def aclose(self) -> None: ...


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    jobs=st.lists(
        st.tuples(st.sampled_from(["expert", "reviewer"]), st.integers(0, 60), st.integers(1, 80)), max_size=40
    ),
    max_calls=st.none() | st.integers(0, 40),
    max_tokens=st.none() | st.integers(0, 4000),
    reviewer_tokens=st.none() | st.integers(0, 1000),
    cancelled=st.sets(st.integers(0, 39)),
)
def test_no_interleaving_exceeds_the_budget(seed, jobs, max_calls, max_tokens, reviewer_tokens, cancelled):
    rng = random.Random(seed)

    async def go() -> None:
        transport = Random(rng)
        roles = {} if reviewer_tokens is None else {"reviewer": Budget(max_tokens=reviewer_tokens)}
        budgeted = Budgeted(transport, Budget(max_calls=max_calls, max_tokens=max_tokens, roles=roles))

        async def one(role: str, words: int, max_tokens_: int) -> None:
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            with contextlib.suppress(BackendError):
                await budgeted.complete(ask("x" * words, role=role, sampling=Sampling(max_tokens=max_tokens_)))

        tasks = [asyncio.create_task(one(*job)) for job in jobs]
        for index, task in enumerate(tasks):
            if index in cancelled:
                await asyncio.sleep(0)
                task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)  # and nobody waits for ever
        assert max_calls is None or transport.calls <= max_calls
        assert max_tokens is None or transport.used <= max_tokens
        assert reviewer_tokens is None or transport.used_by_role["reviewer"] <= reviewer_tokens
        assert not any(budgeted._waiting.values())
        for account in (budgeted._run, *budgeted._roles.values()):
            assert account.in_flight == 0

    asyncio.run(go())


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), max_tokens=st.integers(50, 1500), count=st.integers(1, 30))
def test_exhausted_is_said_only_when_nothing_is_in_flight(seed, max_tokens, count):
    rng = random.Random(seed)

    async def go() -> None:
        transport = Random(rng)
        budgeted = Budgeted(transport, Budget(max_tokens=max_tokens))
        seen: list[int] = []

        original = BudgetExhausted.__init__

        def watch(self: BudgetExhausted, message: str, *, status: int | None = None) -> None:
            seen.append(sum(transport.in_flight.values()))
            original(self, message, status=status)

        BudgetExhausted.__init__ = watch  # type: ignore[method-assign]
        try:
            await asyncio.gather(*(budgeted.complete(ask(str(i))) for i in range(count)), return_exceptions=True)
        finally:
            BudgetExhausted.__init__ = original  # type: ignore[method-assign]
        assert set(seen) <= {0}

    asyncio.run(go())
