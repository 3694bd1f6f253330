"""Awaiting several things at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

__all__ = ["gather"]

T = TypeVar("T")


async def gather(coroutines: Sequence[Coroutine[Any, Any, T]], *, instant: bool = False) -> list[T]:
    """The results in order. The first failure is raised as it is, after the others were cancelled and have ended.

    `instant` says that none of them waits for anything: then they run one after the other, without a task each.
    """
    if instant or len(coroutines) == 1:
        return await _in_turn(coroutines)
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _in_turn(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    try:
        return [await coroutine for coroutine in coroutines]
    finally:
        for coroutine in coroutines:
            coroutine.close()  # those after one that failed
