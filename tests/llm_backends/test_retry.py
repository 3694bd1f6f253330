import asyncio
import random

import pytest

from instructgym.errors import (
    BackendError,
    BadRequest,
    BudgetExhausted,
    CallTimeout,
    ConfigError,
    ConnectionLost,
    EndpointUnreachable,
    RateLimited,
    ServerError,
)
from instructgym.llm_backends.limits import Limited, Limits
from instructgym.llm_backends.retry import Attempt, Retry
from instructgym.types import Request, Usage

from . import virtual_time
from .fakes import Scripted, answer, ask


class Log:
    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def __call__(self, request: Request, attempt: Attempt) -> None:
        self.attempts.append(attempt)

    @property
    def statuses(self) -> list[str]:
        return [attempt.status for attempt in self.attempts]


def retrying(inner, **options):
    log = Log()
    return Retry(inner, backoff_s=0.001, on_attempt=log, **options), log


async def test_transient_errors_are_tried_again_and_every_attempt_is_noted():
    transport = Scripted(ServerError("500", status=500), ConnectionLost("lost"))
    retry, log = retrying(transport)
    assert (await retry.complete(ask())).text == "hi"
    assert log.statuses == ["ServerError", "ConnectionLost", "ok"]
    assert log.attempts[-1].usage == Usage(10, 5)


async def test_permanent_errors_are_not_tried_again():
    retry, log = retrying(Scripted(BadRequest("no", status=400)))
    with pytest.raises(BadRequest, match=r"^no$"):
        await retry.complete(ask())
    assert log.statuses == ["BadRequest"]


async def test_last_error_is_raised_with_the_number_of_attempts():
    retry, log = retrying(Scripted(*[ServerError("500", status=500) for _ in range(9)]), max_attempts=3)
    with pytest.raises(ServerError, match=r"^500 \(gave up after 3 attempts\)$") as caught:
        await retry.complete(ask())
    assert caught.value.status == 500
    assert log.statuses == ["ServerError"] * 3


async def test_unreachable_is_final_before_the_first_success_and_transient_after():
    transport = Scripted(EndpointUnreachable("nobody"), answer(), EndpointUnreachable("nobody"), answer("back"))
    retry, _ = retrying(transport)
    with pytest.raises(EndpointUnreachable, match=r"^nobody$"):
        await retry.complete(ask())
    await retry.complete(ask())
    assert (await retry.complete(ask())).text == "back"


async def test_unreachable_is_final_for_a_role_that_never_got_an_answer():
    transport = Scripted(answer(), EndpointUnreachable("nobody"))
    retry, log = retrying(transport)
    await retry.complete(ask(role="expert"))
    with pytest.raises(EndpointUnreachable):
        await retry.complete(ask(role="reviewer"))
    assert log.statuses == ["ok"]  # what reached nobody was not sent


@pytest.mark.parametrize(
    "busy",
    [RateLimited("busy", status=429), ServerError("busy", status=503), EndpointUnreachable("gone for a while")],
)
def test_busy_or_absent_endpoint_loses_no_call_before_the_deadline(busy: BackendError):
    async def go() -> list[str]:
        transport = Scripted(answer(), *[busy for _ in range(30)])
        retry, log = retrying(transport, max_attempts=2, deadline_s=600.0)
        await retry.complete(ask())
        assert await retry.complete(ask()) == answer()
        return log.statuses

    statuses = virtual_time.run(go())
    assert statuses.count("ok") == 2
    assert len(statuses) == (2 if isinstance(busy, EndpointUnreachable) else 32)


def test_endpoint_that_stays_busy_ends_the_call_at_its_deadline():
    async def go() -> float:
        retry, _ = retrying(Scripted(*[RateLimited("busy", status=429) for _ in range(9999)]), deadline_s=60.0)
        with pytest.raises(RateLimited, match=r"^busy \(gave up after \d+ attempts; the next would begin after the"):
            await retry.complete(ask())
        return asyncio.get_running_loop().time()

    assert virtual_time.run(go()) <= 60.0


async def test_without_a_deadline_busy_counts_as_an_attempt():
    retry, log = retrying(Scripted(*[RateLimited("busy", status=429) for _ in range(9)]), deadline_s=None)
    with pytest.raises(RateLimited, match=r"^busy \(gave up after 5 attempts\)$"):
        await retry.complete(ask())
    assert len(log.statuses) == 5


async def test_failures_are_counted_apart_from_being_turned_away():
    busy, failed = RateLimited("busy", status=429), ServerError("500", status=500)
    retry, _ = retrying(Scripted(busy, failed, busy, busy, failed, answer()), max_attempts=3)
    assert await retry.complete(ask()) == answer()
    retry, _ = retrying(Scripted(busy, failed, busy, failed, answer()), max_attempts=2)
    with pytest.raises(ServerError, match=r"^500 \(gave up after 4 attempts\)$"):
        await retry.complete(ask())


async def test_exhausted_budget_is_no_attempt():
    retry, log = retrying(Scripted(BudgetExhausted("spent")))
    with pytest.raises(BudgetExhausted):
        await retry.complete(ask())
    assert log.statuses == []


async def test_retry_after_is_obeyed_and_a_deadline_that_it_exceeds_ends_the_call_at_once():
    loop = asyncio.get_running_loop()
    retry, _ = retrying(Scripted(RateLimited("slow down", retry_after_s=0.2)))
    start = loop.time()
    await retry.complete(ask())
    assert loop.time() - start >= 0.2
    retry, _ = retrying(Scripted(RateLimited("slow down", retry_after_s=3600)), deadline_s=5.0)
    with pytest.raises(RateLimited) as caught:
        await retry.complete(ask())
    assert str(caught.value) == (
        "slow down (gave up after 1 attempt; the endpoint asks to wait 3600 s, which is after the deadline of 5 s "
        "for the whole call)"
    )


async def test_deadline_cuts_the_attempt_in_flight():
    retry, log = retrying(Scripted(latency_s=60.0), deadline_s=0.05)
    with pytest.raises(CallTimeout, match=r"^no answer within the deadline of 0.05 s for the whole call$"):
        await retry.complete(ask())
    assert log.statuses == ["CallTimeout"]


async def test_deadline_does_not_cover_the_wait_for_a_slot():
    transport = Scripted(latency_s=0.06)
    retry, log = retrying(Limited(transport, Limits(concurrency=1)), deadline_s=0.2)
    await asyncio.gather(*(retry.complete(ask(str(i))) for i in range(6)))  # the last waits 0.3 s for its slot
    assert log.statuses == ["ok"] * 6


async def test_many_deadlines_share_a_timer_and_each_holds():
    transport = Scripted(latency_s=60.0)
    retry, log = retrying(transport, deadline_s=0.1)

    async def late(delay_s: float) -> float:
        await asyncio.sleep(delay_s)
        start = asyncio.get_running_loop().time()
        with pytest.raises(CallTimeout):
            await retry.complete(ask())
        return asyncio.get_running_loop().time() - start

    lasted = await asyncio.gather(*(late(0.01 * i) for i in range(10)))
    assert min(lasted) >= 0.099
    assert len(log.attempts) == 10


async def test_cancelled_attempt_is_noted_only_if_it_was_sent():
    transport = Scripted(latency_s=60.0)
    retry, log = retrying(Limited(transport, Limits(concurrency=1)))
    tasks = [asyncio.create_task(retry.complete(ask(str(i)))) for i in range(3)]
    await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))
    assert log.statuses == ["Cancelled"]


def test_backoff_has_full_jitter_under_a_growing_capped_ceiling_and_a_seed():
    def delays(seed: int) -> list[float]:
        retry = Retry(Scripted(), backoff_s=1.0, backoff_cap_s=8.0, jitter_seed=seed)
        return [retry._delay_s(attempt, ServerError("x")) for attempt in range(1, 8)]

    assert delays(1) == delays(1) != delays(2)
    rng = random.Random(1)
    assert delays(1) == [rng.uniform(0.0, ceiling) for ceiling in (1, 2, 4, 8, 8, 8, 8)]


def test_nonsense_options_are_refused():
    with pytest.raises(ConfigError, match=r"^max_attempts is 0; expected at least 1$"):
        Retry(Scripted(), max_attempts=0)
    with pytest.raises(ConfigError, match=r"^deadline_s is -1; expected a positive number of seconds, or none at all$"):
        Retry(Scripted(), deadline_s=-1)
    with pytest.raises(ConfigError, match=r"^backoff_s is -1, backoff_cap_s 30.0; expected seconds, 0 or more$"):
        Retry(Scripted(), backoff_s=-1)
