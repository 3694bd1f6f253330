"""What goes over the wire while a run is watched: rates, hits, retries, tokens, money.

All of it is of this process and depends on what was paid before, so none of it goes into a run's files but the
TensorBoard curves, which are not among those that a rerun repeats to the byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from instructgym.llm_backends.ledger_rows import Tally, TallyKey
from instructgym.llm_backends.pricing import Price
from instructgym.train.progress import Progress

__all__ = ["Traffic", "TrafficMeter", "TrafficNotes"]

_NOTE_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counts of a stage and role, or of several together.

    `hits` were answered without a call of their own; `attempts` went to an endpoint, `retries` of them because an
    earlier one had failed; `failed` calls failed for good. `cost_usd` is None where a model's price is not known.
    """

    stage: str
    role: str
    hits: int = 0
    answered: int = 0
    failed: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0

    @property
    def calls(self) -> int:
        """What was asked and has come to its end."""
        return self.hits + self.answered + self.failed

    @property
    def retries(self) -> int:
        return max(0, self.attempts - self.answered - self.failed)

    @classmethod
    def total(cls, rows: Sequence[Traffic], stage: str = "total") -> Traffic:
        costs = [row.cost_usd for row in rows]
        return cls(
            stage,
            "",
            hits=sum(row.hits for row in rows),
            answered=sum(row.answered for row in rows),
            failed=sum(row.failed for row in rows),
            attempts=sum(row.attempts for row in rows),
            prompt_tokens=sum(row.prompt_tokens for row in rows),
            completion_tokens=sum(row.completion_tokens for row in rows),
            cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        )

    def note(self, seconds: float, in_flight: int) -> str:
        """The counts that are not zero, for a line of progress."""
        tokens = self.prompt_tokens + self.completion_tokens
        parts = [
            f"{self.calls / max(seconds, 1e-3):,.0f} calls/s",
            f"{in_flight:,} in flight" if in_flight else "",
            f"{self.hits:,} hits",
            f"{self.retries:,} retries" if self.retries else "",
            f"{self.failed:,} failed" if self.failed else "",
            f"{_short(tokens)} tokens" if tokens else "",
            f"${self.cost_usd:,.2f}" if self.cost_usd else "",
        ]
        return ", ".join(part for part in parts if part)

    def scalars(self) -> dict[str, float]:
        """The counts as ``ledger/...`` metrics."""
        names = ("calls", "hits", "attempts", "retries", "failed", "prompt_tokens", "completion_tokens")
        metrics = {f"ledger/{name}": float(getattr(self, name)) for name in names}
        return metrics | ({} if self.cost_usd is None else {"ledger/cost_usd": self.cost_usd})


class TrafficMeter:
    """Reads a ledger's tallies and hits, and subtracts what was there when it was made.

    Args:
        tallies: counts by (role, stage, model), earlier runs on the ledger included.
        hits: of (role, stage), in this process.
        in_flight: calls that are being made now.
        prices: by model; a model without one makes costs unknown.
    """

    def __init__(
        self,
        tallies: Callable[[], Mapping[TallyKey, Tally]],
        hits: Callable[[], Mapping[tuple[str, str], int]],
        in_flight: Callable[[], int],
        prices: Callable[[str], Price | None],
    ) -> None:
        self._tallies = tallies
        self._hits = hits
        self.in_flight = in_flight
        self._prices = prices
        self._before = {at: _counts(tally) for at, tally in tallies().items()}

    def rows(self, stage: str | None = None) -> list[Traffic]:
        """A row for each stage and role that asked something, or for those of one stage."""
        found: dict[tuple[str, str], list[Traffic]] = {}
        for (role, of_stage), hits in self._hits().items():
            found.setdefault((of_stage, role), []).append(Traffic(of_stage, role, hits))
        for at, tally in list(self._tallies().items()):
            role, of_stage, model = at
            before = self._before.get(at, (0, 0, 0, 0, 0))
            new = [now - then for now, then in zip(_counts(tally), before, strict=True)]
            if any(new):
                price = self._prices(model)
                cost = None if price is None else price.picodollars(new[3], new[4]) / 1e12
                # A failure that was asked again and answered counts no more, so there may be fewer than before.
                row = Traffic(of_stage, role, 0, new[0], max(0, new[1]), new[2], new[3], new[4], cost)
                found.setdefault((of_stage, role), []).append(row)
        return [
            replace(Traffic.total(parts, at[0]), role=at[1])
            for at, parts in sorted(found.items())
            if stage in (None, at[0])
        ]


def _counts(tally: Tally) -> tuple[int, int, int, int, int]:
    return tally.calls, tally.failed, tally.attempts, tally.prompt_tokens, tally.completion_tokens


class TrafficNotes:
    """Passes on what a run tells, and adds the traffic of a stage to the note of its `advance`."""

    def __init__(self, inner: Progress, meter: Callable[[], TrafficMeter | None]) -> None:
        self._inner = inner
        self._meter = meter
        self._began = 0.0
        self._said_at = 0.0
        self._last = ""
        self._traffic = ""

    def say(self, text: str) -> None:
        self._inner.say(text)

    def started(self, stage: str, total: int | None) -> None:
        self._began = time.monotonic()
        self._said_at = 0.0
        self._last = ""
        self._traffic = ""
        self._inner.started(stage, total)

    def advance(self, stage: str, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self._said_at >= _NOTE_EVERY_S:
            self._said_at = now
            self._traffic = self._note(stage, now)
        self._last = note
        self._inner.advance(stage, done, _joined(note, self._traffic))

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None:
        if self._traffic and not skipped:
            note = _joined(note or self._last, self._note(stage, time.monotonic()))
        self._inner.finished(stage, skipped=skipped, note=note)

    def _note(self, stage: str, now: float) -> str:
        meter = self._meter()
        total = Traffic.total([] if meter is None else meter.rows(stage))
        return total.note(now - self._began, meter.in_flight()) if meter is not None and total.calls else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _short(count: int) -> str:
    """1234567 -> 1.2M"""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
