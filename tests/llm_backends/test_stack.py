import asyncio
from pathlib import Path

import pytest

from instructgym.errors import BudgetExhausted, ConfigError, ServerError
from instructgym.llm_backends.base import LLM, LLMBackend
from instructgym.llm_backends.budget import Budget, Budgeted
from instructgym.llm_backends.limits import Limited, Limits
from instructgym.llm_backends.retry import Retry
from instructgym.llm_backends.stack import open_stack
from instructgym.types import Completion, Message

from . import virtual_time
from .fakes import Scripted, answer, ask


async def test_what_the_ledger_already_paid_counts_against_the_budget(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    for budget, paid in ((Budget(max_calls=3), 3), (Budget(max_calls=3), 0), (Budget(max_calls=5), 2)):
        transport = Scripted()
        stack = open_stack(transport, ledger_path=path, budget=budget)
        ends = await asyncio.gather(*(stack.backend.complete(ask(str(i))) for i in range(6)), return_exceptions=True)
        assert len(transport.asked) == paid
        assert sum(isinstance(end, Completion) for end in ends) == budget.max_calls
        assert sum(isinstance(end, BudgetExhausted) for end in ends) == 6 - (budget.max_calls or 0)
        await stack.aclose()


async def test_tokens_charged_without_a_usage_block_count_on_resume(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    stack = open_stack(Scripted(Completion("x", usage=None)), ledger_path=path, budget=Budget(max_tokens=10_000))
    await stack.backend.complete(ask())
    await stack.aclose()
    stack = open_stack(Scripted(), ledger_path=path, budget=Budget(max_tokens=100))
    with pytest.raises(BudgetExhausted, match=r"max_tokens = 100, 79 spent, the next attempt may need 79"):
        await stack.backend.complete(ask("other"))
    await stack.aclose()


async def test_backoff_holds_no_slot(tmp_path: Path):
    transport = Scripted(ServerError("x", retry_after_s=0.3))
    stack = open_stack(transport, limits=Limits(concurrency=1))
    failing = asyncio.create_task(stack.backend.complete(ask("first")))
    await asyncio.sleep(0.05)
    assert await asyncio.wait_for(stack.backend.complete(ask("second")), 0.2) == answer()
    assert not failing.done()
    assert await failing == answer()
    await stack.aclose()


def test_backoff_is_the_stacks_to_say():
    async def go() -> float:
        failures = [ServerError("x", status=500) for _ in range(4)]
        stack = open_stack(Scripted(*failures), backoff_s=100.0, backoff_cap_s=100.0, deadline_s=None)
        await stack.backend.complete(ask())
        await stack.aclose()
        return asyncio.get_running_loop().time()

    assert virtual_time.run(go()) > 50.0


async def test_budget_is_not_held_by_an_attempt_that_was_cancelled_before_it_was_sent():
    backend = Retry(Budgeted(Limited(Scripted(latency_s=0.05), Limits(concurrency=1)), Budget(max_calls=2)))
    first = asyncio.create_task(backend.complete(ask("first")))
    await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(backend.complete(ask("waits for its slot")), 0.01)
    await first
    assert await backend.complete(ask("second")) == answer()


async def test_stack_is_a_backend_under_its_transports_name():
    stack = open_stack(Scripted())
    assert isinstance(stack.backend, LLMBackend)
    assert stack.backend.name == "scripted"
    llm = LLM(stack.backend, "expert", "m").for_stage("respond")
    assert await llm.ask([Message("user", "x")], prompt_version="v/1") == answer()
    assert set(stack.stats()) == {("expert", "respond")}
    await stack.aclose()


def test_nonsense_options_leave_no_file_open(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^max_attempts is 0; expected at least 1$"):
        open_stack(Scripted(), ledger_path=tmp_path / "ledger.sqlite", max_attempts=0)
    open_stack(Scripted(), ledger_path=tmp_path / "ledger.sqlite").store.close()
