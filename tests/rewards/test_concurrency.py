"""Awaiting several things, with tasks and without."""

import asyncio

import pytest

from instructgym.rewards.concurrency import gather


@pytest.mark.parametrize("instant", [False, True])
async def test_results_are_in_order_and_the_first_failure_is_raised_as_it_is(instant):
    begun = []

    async def number(value):
        begun.append(value)
        if value == 2:
            raise KeyError(value)
        return value

    assert await gather([number(0), number(1)], instant=instant) == [0, 1]
    with pytest.raises(KeyError):
        await gather([number(1), number(2), number(3)], instant=instant)
    assert begun == [0, 1, 1, 2] + ([] if instant else [3])


async def test_what_is_not_instant_waits_together():
    turn = asyncio.Event()

    async def waits():
        await turn.wait()
        return "waited"

    async def opens():
        turn.set()
        return "opened"

    assert await gather([waits(), opens()]) == ["waited", "opened"]
