"""What a run asks LLMs through: the portal, the backend stack on its ledger, and the count of what was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from instructgym.errors import UsageError
from instructgym.llm_backends.base import LLM, LLMBackend
from instructgym.train.accounting import CountingBackend
from instructgym.train.config import (
    LedgerSection,
    LimitsSection,
    LLMSettings,
    PriceSection,
    RetrySection,
    RoleBudgetSection,
    RunSection,
)
from instructgym.types import Sampling

if TYPE_CHECKING:
    from instructgym.llm_backends.budget import Budget
    from instructgym.llm_backends.limits import Limits
    from instructgym.llm_backends.portal import Portal
    from instructgym.llm_backends.stack import BackendStack
    from instructgym.train.traffic import TrafficMeter

__all__ = ["AsksLLMs", "Connection", "budget_of", "limits_of", "sampling_of"]

T = TypeVar("T")


class BudgetLike(Protocol):
    """A budget section: bounds of the run, and prices by model."""

    @property
    def max_calls(self) -> int | None: ...

    @property
    def max_tokens(self) -> int | None: ...

    @property
    def max_cost_usd(self) -> float | None: ...

    @property
    def prices(self) -> Mapping[str, PriceSection]: ...


class AsksLLMs(Protocol):
    """The part of a config that says how a run asks, whoever it asks."""

    @property
    def run(self) -> RunSection: ...

    @property
    def limits(self) -> LimitsSection: ...

    @property
    def budget(self) -> BudgetLike: ...

    @property
    def retry(self) -> RetrySection: ...

    @property
    def ledger(self) -> LedgerSection: ...


class Connection:
    """`open` starts what talks to LLMs, `close` ends it; both may be called again."""

    def __init__(self) -> None:
        self._portal: Portal | None = None
        self._stack: BackendStack | None = None
        self._counting: CountingBackend | None = None
        self._meter: TrafficMeter | None = None

    def open(
        self,
        transport: LLMBackend,
        config: AsksLLMs,
        *,
        ledger_path: Path | None,
        roles: Iterable[str],
        retry_failed: bool = False,
    ) -> None:
        """Open the portal and the backend stack over `transport`; without a path the ledger is in memory.

        `roles` are those that the config's budget may bound apart.
        """
        from instructgym.llm_backends.portal import acquire_portal
        from instructgym.llm_backends.pricing import price_of
        from instructgym.llm_backends.stack import open_stack
        from instructgym.train.traffic import TrafficMeter

        budget = budget_of(config.budget, roles)
        self._stack = open_stack(
            transport,
            ledger_path=ledger_path,
            run_seed=config.run.seed,
            max_attempts=config.retry.max_attempts,
            deadline_s=config.retry.deadline_s,
            backoff_s=config.retry.backoff_s,
            backoff_cap_s=config.retry.backoff_cap_s,
            budget=budget,
            limits=limits_of(config.limits),
            fsync=config.ledger.fsync,
            retry_failed=retry_failed,
        )
        self._counting = CountingBackend(self._stack.backend)
        ledger = self._stack.ledger
        self._meter = TrafficMeter(
            self._stack.store.tallies,
            lambda: ledger.hits,
            lambda: ledger.in_flight,
            lambda model: price_of(model, budget.prices),
        )
        self._portal = acquire_portal()

    @property
    def connected(self) -> bool:
        return self._portal is not None

    @property
    def counting(self) -> CountingBackend:
        if self._counting is None:
            raise UsageError("the runtime is not connected; call connect() before asking an LLM")
        return self._counting

    @property
    def traffic(self) -> TrafficMeter | None:
        """What this process has asked so far; None before `open`."""
        return self._meter

    @property
    def has_answers(self) -> bool:
        """True if the ledger holds an answer or a final failure: something that was paid for or decided."""
        if self._stack is None:
            return False
        return any(stats.calls or stats.failed for stats in self._stack.stats().values())

    def llm_of(self, role: str, model: str, sampling: Sampling, stage: str) -> LLM:
        """The LLM of a role, its calls accounted to `stage`."""
        return LLM(self.counting, role, model, sampling, stage)

    def accounting(self, stage: str) -> list[dict[str, Any]]:
        """What `stage` has asked so far, a row a role."""
        return self.counting.rows(stage)

    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await ``function()`` on the portal's loop and return its result."""
        if self._portal is None:
            raise UsageError("the runtime is not connected; call connect() before asking an LLM")
        return self._portal.call(function)

    def close(self) -> None:
        """Cancel what is in flight, commit what is queued, and give the portal back. Closing twice does nothing."""
        portal, stack = self._portal, self._stack
        self._portal = self._stack = self._counting = None
        if portal is not None:
            try:
                if stack is not None:
                    portal.call(stack.aclose)
            finally:
                portal.release()


def sampling_of(settings: LLMSettings) -> Sampling:
    """What a role's settings say of its draws."""
    return Sampling(
        settings.temperature,
        settings.top_p,
        settings.max_tokens,
        stop=settings.stop,
        extra=tuple((name, json.dumps(value)) for name, value in settings.extra.items()),
    )


def limits_of(section: LimitsSection) -> Limits:
    """The section as the LLM runtime takes it."""
    from instructgym.llm_backends.limits import Limits

    return Limits(
        concurrency=section.concurrency,
        requests_per_minute=section.requests_per_minute,
        tokens_per_minute=section.tokens_per_minute,
        adaptive=section.adaptive,
    )


def budget_of(section: BudgetLike, roles: Iterable[str]) -> Budget:
    """The section as the LLM runtime takes it; `roles` are its fields that bound one role apart."""
    from instructgym.llm_backends.budget import Budget
    from instructgym.llm_backends.pricing import Price

    def bounds(part: BudgetLike | RoleBudgetSection) -> dict[str, Any]:
        found = {"max_calls": part.max_calls, "max_tokens": part.max_tokens, "max_cost_usd": part.max_cost_usd}
        return {name: value for name, value in found.items() if value is not None}

    return Budget(
        **bounds(section),
        roles={role: Budget(**own) for role in roles if (own := bounds(getattr(section, role)))},
        prices={model: Price(price.prompt, price.completion) for model, price in section.prices.items()},
    )
