"""Many coroutines at a bounded width, none waiting for another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from instructgym.errors import (
    AuthenticationFailed,
    BackendError,
    BudgetExhausted,
    EndpointUnreachable,
    ModelNotFound,
    ReplayMiss,
)

__all__ = ["ENDS_THE_RUN", "map_bounded"]

ENDS_THE_RUN: tuple[type[BackendError], ...] = (
    AuthenticationFailed,
    BudgetExhausted,
    EndpointUnreachable,
    ModelNotFound,
    ReplayMiss,
)
"""Failures that speak of the endpoint, the key or the purse: every further call would fail as well."""

T = TypeVar("T")
R = TypeVar("R")


async def map_bounded(
    work: Callable[[T], Awaitable[R]],
    items: Sequence[T],
    *,
    width: int,
    on_done: Callable[[int, R], None] | None = None,
) -> list[R]:
    """``[await work(item) for item in items]``, at most `width` at a time, in the order of `items`.

    `on_done` hears of each (index, result) as it comes. The first exception cancels the rest and is raised.
    """
    results: dict[int, R] = {}
    queue = iter(enumerate(items))

    async def worker() -> None:
        for index, item in queue:
            results[index] = result = await work(item)
            if on_done is not None:
                on_done(index, result)
            await asyncio.sleep(0)  # work that never waits (all of it in the ledger) must still let others in

    workers = [asyncio.ensure_future(worker()) for _ in range(min(width, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[index] for index in range(len(items))]
