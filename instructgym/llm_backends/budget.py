"""A hard budget: reserved before an attempt, settled after it, so that no interleaving can exceed it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from instructgym.errors import BackendError, BudgetExhausted, ConfigError, EndpointUnreachable
from instructgym.llm_backends.base import LLMBackend, is_instant
from instructgym.llm_backends.clock import current_clock, waiting_for_leave
from instructgym.llm_backends.pricing import Price, charged_tokens, price_of, tokens_at_most
from instructgym.llm_backends.retry import OK
from instructgym.types import Completion, Request, Usage

__all__ = ["Budget", "Budgeted", "Spent"]

_PICO = 1e12


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend; None = no limit. `roles` holds budgets of single roles within it.

    `max_calls` counts attempts, `max_tokens` prompt and completion together. A cost budget needs the price of every
    model that is asked: `prices` says it (a simulated model costs nothing).
    """

    max_calls: int | None = None
    max_tokens: int | None = None
    max_cost_usd: float | None = None
    roles: Mapping[str, Budget] = field(default_factory=dict)
    prices: Mapping[str, Price] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_calls", "max_tokens", "max_cost_usd"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"budget.{name} is {value}; expected a number that is not negative, or none at all")
        for role, budget in self.roles.items():
            if budget.roles or budget.prices:
                raise ConfigError(f"the budget of role '{role}' has roles or prices of its own; set them on the run's")

    @property
    def counts_tokens(self) -> bool:
        """True if calls alone do not decide."""
        own = self.max_tokens is not None or self.max_cost_usd is not None
        return own or any(budget.counts_tokens for budget in self.roles.values())

    @property
    def counts_cost(self) -> bool:
        return self.max_cost_usd is not None or any(budget.counts_cost for budget in self.roles.values())

    def price_of(self, model: str) -> Price:
        """The price of `model`'s tokens. Raises `ConfigError` if nobody said it."""
        price = price_of(model, self.prices)
        if price is None:
            raise ConfigError(
                f"a cost budget is set and the price of model '{model}' is not known; "
                f'set budget.prices."{model}" to its US dollars a million prompt and completion tokens'
            )
        return price


@dataclass(frozen=True, slots=True)
class Spent:
    """What earlier runs on the same ledger were charged with, by role and model."""

    role: str
    model: str
    calls: int
    usage: Usage


class _Need(NamedTuple):
    calls: int
    tokens: int
    picodollars: int


_NOTHING = _Need(0, 0, 0)
_ONE_CALL = _Need(1, 0, 0)


class _Account:
    """One scope (the run, or a role) against its limits. Held = spent + reserved."""

    def __init__(self, name: str, budget: Budget) -> None:
        self.name = name
        self.calls = self.tokens = self.picodollars = 0
        self.in_flight = 0
        self._max_calls = budget.max_calls
        self._max_tokens = budget.max_tokens
        self._max_picodollars = None if budget.max_cost_usd is None else round(budget.max_cost_usd * _PICO)

    def hold(self, need: _Need, *, instead_of: _Need = _NOTHING) -> None:
        self.calls += need.calls - instead_of.calls
        self.tokens += need.tokens - instead_of.tokens
        self.picodollars += need.picodollars - instead_of.picodollars

    def fits(self, need: _Need) -> bool:
        """True if `need` fits beside what is held."""
        return (
            (self._max_calls is None or self.calls + need.calls <= self._max_calls)
            and (self._max_tokens is None or self.tokens + need.tokens <= self._max_tokens)
            and (self._max_picodollars is None or self.picodollars + need.picodollars <= self._max_picodollars)
        )

    def refusal(self, need: _Need) -> str:
        """Why `need` does not fit."""
        if self._max_calls is not None and self.calls + need.calls > self._max_calls:
            return f"{self.name}: max_calls = {self._max_calls}, {self.calls} spent, the next attempt needs 1"
        if self._max_tokens is not None and self.tokens + need.tokens > self._max_tokens:
            return (
                f"{self.name}: max_tokens = {self._max_tokens}, {self.tokens} spent, "
                f"the next attempt may need {need.tokens}"
            )
        return (
            f"{self.name}: max_cost_usd = {(self._max_picodollars or 0) / _PICO:g}, "
            f"{self.picodollars / _PICO:g} spent, the next attempt may need {need.picodollars / _PICO:g}"
        )


class _Waiter(NamedTuple):
    number: int
    need: _Need
    turn: asyncio.Future[None]


_Accounts = tuple[_Account, ...]


class Budgeted:
    """Lets an attempt through to `inner` once its reservation fits the run's budget and its role's.

    A reservation that does not fit waits as long as an attempt is in flight in the account that refuses it, for that
    one may settle at less; `BudgetExhausted` is raised only when none is. Those that have the same accounts are let
    through in order of arrival. An attempt that reached nobody (`EndpointUnreachable`) or that was cancelled while it
    still waited below is none, and costs nothing.
    """

    def __init__(self, inner: LLMBackend, budget: Budget, *, spent: Iterable[Spent] = ()) -> None:
        self.name = inner.name
        self._inner = inner
        self._budget = budget
        self._run = _Account("the run's budget", budget)
        self._roles = {role: _Account(f"the budget of role '{role}'", own) for role, own in budget.roles.items()}
        self._waiting: dict[_Accounts, deque[_Waiter]] = {}
        self._arrivals = 0
        self._counts_tokens = budget.counts_tokens
        self._counts_cost = budget.counts_cost
        self._unlimited = not budget.counts_tokens and budget.max_calls is None and not budget.roles
        self.instant = self._unlimited and is_instant(inner)
        for item in spent:
            need = self._need(item.model, item.calls, item.usage)
            for account in self._accounts(item.role):
                account.hold(need)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def complete(self, request: Request) -> Completion:
        if self._unlimited:
            return await self._inner.complete(request)
        accounts = self._accounts(request.role)
        reserved = self._reservation(request)
        await self._reserve(reserved, accounts)
        settled = reserved
        try:
            completion = await self._inner.complete(request)
            settled = self._charge(request, OK, completion.usage)
            return completion
        except EndpointUnreachable:
            settled = _NOTHING
            raise
        except BackendError as error:
            settled = self._charge(request, type(error).__name__, None)
            raise
        except asyncio.CancelledError:
            clock = current_clock.get()
            if clock is not None and not clock.sent:
                settled = _NOTHING
            raise
        finally:
            self._settle(reserved, settled, accounts)

    def _accounts(self, role: str) -> _Accounts:
        own = self._roles.get(role)
        return (self._run,) if own is None else (self._run, own)

    def _need(self, model: str, calls: int, usage: Usage) -> _Need:
        cost = 0
        if self._counts_cost:
            cost = self._budget.price_of(model).picodollars(usage.prompt_tokens, usage.completion_tokens)
        return _Need(calls, usage.prompt_tokens + usage.completion_tokens, cost)

    def _reservation(self, request: Request) -> _Need:
        if not self._counts_tokens:
            return _ONE_CALL
        bound = tokens_at_most(request)
        if bound.completion is None:
            raise ConfigError(
                f"a token or cost budget is set and role '{request.role}' has no max_tokens; "
                "set sampling.max_tokens, so that what an attempt can cost is known"
            )
        return self._need(request.model, 1, Usage(bound.prompt, bound.completion))

    def _charge(self, request: Request, status: str, usage: Usage | None) -> _Need:
        if not self._counts_tokens:
            return _ONE_CALL
        return self._need(request.model, 1, charged_tokens(request, status, usage))

    async def _reserve(self, need: _Need, accounts: _Accounts) -> None:
        queue = self._waiting.setdefault(accounts, deque())
        if not queue and _admit(need, accounts):
            return
        self._arrivals += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(_Waiter(self._arrivals, need, turn))
        with waiting_for_leave():
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled() and turn.exception() is None:
                    self._settle(need, _NOTHING, accounts)  # granted together with the cancellation
                else:
                    self._serve_waiting()  # the others may have waited for this one alone
                raise

    def _settle(self, reserved: _Need, settled: _Need, accounts: _Accounts) -> None:
        for account in accounts:
            account.in_flight -= 1
            account.hold(settled, instead_of=reserved)
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        """Let through what fits now, in order of arrival, and refuse what nothing in flight can make fit."""
        queues = {accounts: queue for accounts, queue in self._waiting.items() if queue}
        while queues:
            accounts, queue = min(queues.items(), key=lambda item: item[1][0].number)
            waiter = queue[0]
            if not waiter.turn.done():
                try:
                    if not _admit(waiter.need, accounts):
                        del queues[accounts]
                        continue
                    waiter.turn.set_result(None)
                except BudgetExhausted as error:
                    waiter.turn.set_exception(error)
            queue.popleft()
            if not queue:
                del queues[accounts]


def _admit(need: _Need, accounts: _Accounts) -> bool:
    """Hold `need` in all accounts and return True if it fits; False if it may fit later.

    Raises `BudgetExhausted` if an account refuses it in which nothing is in flight.
    """
    fits = True
    for account in accounts:
        if account.fits(need):
            continue
        if account.in_flight == 0:
            raise BudgetExhausted(f"{account.refusal(need)}; run again with a larger budget to go on")
        fits = False
    if fits:
        for account in accounts:
            account.hold(need)
            account.in_flight += 1
    return fits
