"""How many calls one endpoint gets at once, found out from what it does: no asyncio, no clock, only arithmetic."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["AdaptiveLimit", "Sent"]

_START = 32
_CEILING = 1000
_DECREASE = 0.92
_OVERLOADS = 3  # as many make an event ...
_FORGIVEN = 0.1  # ... of which each answer in between makes up for this much, so that single failures are not one
_ANSWERS_A_SLOT = 64  # one slot more for so many answers ...
_ROUNDS_A_DOUBLING = 8  # ... and after so many rounds without an event twice as fast, again and again
_LEVEL_IN_SLOW_START, _LEVEL = 2.0, 1.25  # latencies are compared after growth by so much
_GAIN = 0.3  # more calls that yield less than this share of the throughput they should are no gain
_RETREAT = 0.9
_SAMPLES = 16
_LEVEL_ROUNDS = 64
_REMEMBERED_S = 10.0


class Sent(NamedTuple):
    """What the limit must know of a call when it ends."""

    number: int
    at_s: float
    limit: float


class _Level:
    """Answers to the calls that were sent from `first` on, while the limit grew from `limit`.

    Latencies are averaged as logarithms: they are skewed, and what is asked of them is a ratio.
    """

    __slots__ = ("count", "first", "limit", "log_latency", "log_latency_squared", "log_limit")

    def __init__(self, first: int, limit: float) -> None:
        self.first = first
        self.limit = limit
        self.count = 0
        self.log_latency = self.log_latency_squared = self.log_limit = 0.0

    def add(self, sent: Sent, now_s: float) -> None:
        log_latency = math.log(max(now_s - sent.at_s, 1e-6))
        self.count += 1
        self.log_latency += log_latency
        self.log_latency_squared += log_latency * log_latency
        self.log_limit += math.log(sent.limit)

    def error(self) -> float:
        """The squared standard error of the mean log latency."""
        mean = self.log_latency / self.count
        return max(0.0, self.log_latency_squared / self.count - mean * mean) / self.count


class AdaptiveLimit:
    """Additive increase, multiplicative decrease, and no growth that only makes calls wait for each other.

    Tell it of each call: `send`, and then one of `answered`, `overloaded` (429, 503, timeout) or `dropped` (anything
    that says nothing of the load). Times are seconds of any one clock.

    - *Increase*, only by answers that came while every slot was in use: in slow start one slot for each (twice the
      limit in two latencies), afterwards one for 64, and twice that after every 8 rounds without an event. A round is
      as many answers as the limit.
    - *Decrease* to 0.92 by an event: three overloads with fewer than ten answers to each. Each further overload of
      calls that were sent before it takes its slot with it, down to half; so an overshoot of any size is one event.
      For ten seconds the limit then stays below where it was too much: to find the same wall again at once would only
      turn calls away.
    - *Latency*: by Little's law the throughput is limit / latency. When the limit has grown to a new level (twice the
      last in slow start, then 1.25 times), the latencies of the two levels are compared. If the growth yielded, beyond
      two standard errors, less than 0.3 of the throughput that it should, the limit goes to 0.9 of where the earlier
      level began: below the knee it will find its gain again, above it will come down further.
    """

    def __init__(self, *, start: int = _START, ceiling: int = _CEILING, floor: int = 1) -> None:
        self._limit = float(start)
        self._floor = float(floor)
        self._ceiling = float(ceiling)
        self.in_flight = 0
        self.events = 0
        self._sent = 0
        self._overloads = 0.0
        self._decreased_at = 0
        self._decreased_to = 0.0
        self._too_much, self._too_much_until_s = math.inf, -math.inf
        self._slow_start = start < ceiling
        self._growing_at(self._limit)

    @property
    def limit(self) -> int:
        return int(self._limit)

    @property
    def free(self) -> int:
        """Slots left; negative after a decrease."""
        return int(self._limit) - self.in_flight

    def send(self, now_s: float) -> Sent:
        self.in_flight += 1
        self._sent += 1
        return Sent(self._sent, now_s, self._limit)

    def dropped(self) -> None:
        self.in_flight -= 1

    def answered(self, sent: Sent, now_s: float) -> None:
        in_use = self.in_flight >= int(self._limit)
        self.in_flight -= 1
        self._overloads = max(0.0, self._overloads - _FORGIVEN)
        if not in_use:
            return
        if sent.number > self._level.first:
            self._level.add(sent, now_s)
            self._grow(now_s)

    def overloaded(self, sent: Sent) -> None:
        self.in_flight -= 1
        if sent.number <= self._decreased_at:
            if self._limit > self._decreased_to:
                self._limit = max(self._decreased_to, self._limit - 1.0)
            return
        self._overloads += 1.0
        if self._overloads < _OVERLOADS:
            return
        self.events += 1
        self._overloads = 0.0
        self._decreased_at = self._sent
        self._decreased_to = max(self._floor, self._limit / 2)
        self._too_much, self._too_much_until_s = float(int(self._limit)), sent.at_s + _REMEMBERED_S
        self._slow_start = False
        self._growing_at(max(self._floor, self._limit * _DECREASE))

    def _growing_at(self, limit: float) -> None:
        """Begin to grow at `limit`, with nothing known of the latency there."""
        self._limit = limit
        self._pace = 1.0 / _ANSWERS_A_SLOT
        self._answers = self._rounds = 0
        self._before: _Level | None = None
        self._level = _Level(self._sent, limit)

    def _grow(self, now_s: float) -> None:
        level = self._level
        ceiling = self._ceiling
        if now_s < self._too_much_until_s:
            ceiling = min(ceiling, self._too_much - 1.0)
        if self._limit < ceiling:
            self._limit = min(ceiling, self._limit + (1.0 if self._slow_start else min(1.0, self._pace)))
        self._answers += 1
        if self._answers >= self._limit:
            self._answers = 0
            self._rounds += 1
            if self._rounds % _ROUNDS_A_DOUBLING == 0:
                self._pace *= 2.0
        if level.count >= max(_SAMPLES, level.limit / 2) and level.count % _SAMPLES == 0:
            if self._before is not None and _no_gain(self._before, level):
                self._slow_start = False
                self._growing_at(max(self._floor, _RETREAT * self._before.limit))
            elif self._limit >= level.limit * (_LEVEL_IN_SLOW_START if self._slow_start else _LEVEL):
                self._before, self._level = level, _Level(self._sent, self._limit)
            elif level.count >= _LEVEL_ROUNDS * level.limit:  # it stays here, and latencies of long ago say nothing
                self._before, self._level = None, _Level(self._sent, self._limit)


def _no_gain(before: _Level, level: _Level) -> bool:
    """True if, beyond doubt, latency grew by nearly the factor by which the limit did."""
    more = level.log_limit / level.count - before.log_limit / before.count
    slower = level.log_latency / level.count - before.log_latency / before.count
    doubt = 2.0 * math.sqrt(before.error() + level.error())
    return slower - doubt > (1.0 - _GAIN) * more
