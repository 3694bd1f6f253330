"""The control law against simulated endpoints: events on a heap, no asyncio, no real time."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from instructgym.llm_backends.adaptive import AdaptiveLimit

TRIP_S = 0.002  # there, and back


class Endless:
    """Takes everything; `latency` draws seconds."""

    def __init__(self, latency: Callable[[], float]) -> None:
        self.latency = latency
        self.busy = 0

    def arrive(self, now: float) -> float | None:
        """Seconds until the answer leaves; None = turned away."""
        self.busy += 1
        return self.latency()


class CapacityLimited(Endless):
    """Turns away what exceeds `capacity` at that time."""

    def __init__(self, latency: Callable[[], float], capacity: Callable[[float], int]) -> None:
        super().__init__(latency)
        self.capacity = capacity

    def arrive(self, now: float) -> float | None:
        return None if self.busy >= self.capacity(now) else super().arrive(now)


class Queueing(Endless):
    """Takes everything; latency is proportional to what is in flight beyond 64."""

    def arrive(self, now: float) -> float | None:
        self.busy += 1
        return self.latency() * max(1.0, self.busy / 64)


class Unreliable(Endless):
    """Turns away a share of the calls, whatever their number."""

    def __init__(self, latency: Callable[[], float], share: float) -> None:
        super().__init__(latency)
        self.share = share
        self.rng = random.Random(0)

    def arrive(self, now: float) -> float | None:
        return None if self.rng.random() < self.share else super().arrive(now)


@dataclass
class Seen:
    """When calls were answered and turned away, and the limit after each of these."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)

    def rate(self, start: float, end: float) -> float:
        return sum(start <= at < end for at in self.answered) / (end - start)

    def refused_share(self, start: float) -> float:
        refused = sum(at >= start for at in self.refused)
        return refused / (refused + sum(at >= start for at in self.answered))

    def limits_since(self, start: float, end: float = math.inf) -> list[int]:
        return [limit for at, limit in self.limits if start <= at < end]


def drive(limit: AdaptiveLimit, server: Endless, duration_s: float, demand: int = 10**9) -> Seen:
    """Send whenever there is a slot and fewer than `demand` are out, for `duration_s` of simulated time."""
    rng, number, seen = random.Random(7), itertools.count(), Seen()
    now = 0.0
    events: list[tuple[float, int, str, object]] = []

    def after(delay_s: float, what: str, sent: object) -> None:
        heapq.heappush(events, (now + delay_s, next(number), what, sent))

    while True:
        while limit.free > 0 and limit.in_flight < demand:
            after(TRIP_S * rng.random(), "arrives", limit.send(now))
        now, _, what, sent = heapq.heappop(events)
        if now > duration_s:
            return seen
        if what == "arrives":
            latency_s = server.arrive(now)
            after(*((TRIP_S * rng.random(), "refused") if latency_s is None else (latency_s, "leaves")), sent)
        elif what == "leaves":
            server.busy -= 1  # before the client sees the answer
            after(TRIP_S * rng.random(), "answered", sent)
        else:
            if what == "answered":
                limit.answered(sent, now)
                seen.answered.append(now)
            else:
                limit.overloaded(sent)
                seen.refused.append(now)
            seen.limits.append((now, limit.limit))


def fixed(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def lognormal(mean_s: float, sigma: float, seed: int) -> Callable[[], float]:
    rng = random.Random(seed)
    return lambda: mean_s * math.exp(rng.gauss(0.0, sigma) - sigma**2 / 2)


@pytest.mark.parametrize("latency", [fixed(0.5), lognormal(0.5, 1.0, 1), lognormal(0.5, 0.3, 2)])
def test_capacity_limited_endpoint_is_used_nearly_whole_with_few_calls_turned_away(latency):
    seen = drive(AdaptiveLimit(), CapacityLimited(latency, lambda now: 64), 60.0)
    assert seen.rate(10.0, 60.0) >= 0.94 * 64 / 0.5
    assert seen.rate(0.0, 20.0) >= 0.9 * 64 / 0.5  # the start is short
    assert seen.refused_share(10.0) < 0.012


@pytest.mark.parametrize("capacity", [16, 200, 640])
def test_capacity_of_other_sizes_is_found_too(capacity):
    seen = drive(AdaptiveLimit(), CapacityLimited(fixed(0.5), lambda now: capacity), 40.0)
    assert seen.rate(10.0, 40.0) >= 0.93 * capacity / 0.5
    assert seen.refused_share(10.0) < 0.04  # three calls a cycle, which is shorter for a small endpoint


@pytest.mark.parametrize(("latency", "highest"), [(fixed(0.5), 130), (lognormal(0.5, 0.3, 3), 130)])
def test_limit_stays_near_the_knee_of_an_endpoint_that_queues(latency, highest):
    seen = drive(AdaptiveLimit(), Queueing(latency), 150.0)
    assert max(seen.limits_since(0.0)) < 260  # it looks beyond, once
    assert 45 <= min(seen.limits_since(20.0)) <= max(seen.limits_since(20.0)) <= highest
    assert seen.rate(20.0, 150.0) >= 0.93 * 64 / 0.5


@pytest.mark.parametrize("seed", range(3))
def test_noise_in_the_latency_does_not_stop_the_growth(seed):
    seen = drive(AdaptiveLimit(), Endless(lognormal(0.5, 1.0, seed)), 15.0)
    assert min(seen.limits_since(10.0)) == 1000


def test_stated_concurrency_is_the_start_and_the_ceiling():
    stated = drive(AdaptiveLimit(start=50, ceiling=50), Endless(lognormal(0.5, 1.0, 4)), 60.0)
    fixed_limit = drive(AdaptiveLimit(start=50, ceiling=50, floor=50), Endless(lognormal(0.5, 1.0, 4)), 60.0)
    assert len(stated.answered) >= 0.98 * len(fixed_limit.answered)
    assert set(stated.limits_since(0.0)) == {50}


def test_capacity_that_shrinks_and_comes_back_is_followed():
    server = CapacityLimited(fixed(0.5), lambda now: 16 if 30.0 <= now < 60.0 else 64)
    seen = drive(AdaptiveLimit(), server, 100.0)
    assert seen.rate(35.0, 60.0) >= 0.9 * 16 / 0.5
    assert max(seen.limits_since(35.0, 60.0)) <= 18
    assert seen.rate(75.0, 100.0) >= 0.9 * 64 / 0.5
    assert sum(30.0 <= at < 35.0 for at in seen.refused) < 60  # what was too much, about once


def test_single_failures_are_no_overload():
    seen = drive(AdaptiveLimit(start=50, ceiling=50), Unreliable(fixed(0.5), 0.01), 60.0)
    assert set(seen.limits_since(0.0)) == {50}
    seen = drive(AdaptiveLimit(), Unreliable(fixed(0.5), 0.005), 15.0)
    assert max(seen.limits_since(0.0)) == 1000


def test_limit_that_nobody_uses_does_not_grow():
    limit = AdaptiveLimit()
    drive(limit, Endless(fixed(0.5)), 30.0, demand=31)
    assert limit.limit == 32


def test_burst_of_overloads_is_one_event_and_takes_at_most_half():
    limit = AdaptiveLimit(start=100, ceiling=1000)
    sent = [limit.send(0.0) for _ in range(100)]
    for one in sent[:2]:
        limit.overloaded(one)
    assert (limit.limit, limit.events) == (100, 0)
    limit.overloaded(sent[2])
    assert (limit.limit, limit.events) == (92, 1)
    for one in sent[3:23]:
        limit.overloaded(one)
    assert (limit.limit, limit.events) == (72, 1)
    for one in sent[23:]:
        limit.overloaded(one)
    assert (limit.limit, limit.events, limit.in_flight, limit.free) == (50, 1, 0, 50)


def test_limit_recovers_faster_and_faster_after_a_false_alarm():
    limit = AdaptiveLimit(start=4, ceiling=1000)
    for one in [limit.send(0.0) for _ in range(3)]:
        limit.overloaded(one)
    seen = drive(limit, Endless(fixed(0.5)), 60.0)
    assert max(seen.limits_since(0.0)) == 1000


def test_fixed_limit_is_moved_by_nothing():
    limit = AdaptiveLimit(start=8, ceiling=8, floor=8)
    seen = drive(limit, CapacityLimited(fixed(0.5), lambda now: 4), 10.0)
    assert set(seen.limits_since(0.0)) == {8}


@pytest.mark.parametrize(("capacity", "share"), [(2, 0.06), (8, 0.02), (16, 0.02)])
def test_small_endpoint_is_not_pushed_against_its_wall_again_and_again(capacity, share):
    seen = drive(AdaptiveLimit(), CapacityLimited(fixed(0.1), lambda _: capacity), 40.0)
    assert seen.rate(10.0, 40.0) >= 0.95 * capacity / 0.1
    assert seen.refused_share(10.0) <= share
