from __future__ import annotations

import re

from instructgym.llm_backends.ledger_rows import Tally, TallyKey
from instructgym.llm_backends.pricing import Price
from instructgym.train.progress import Silent
from instructgym.train.traffic import Traffic, TrafficMeter, TrafficNotes

PRICES = {"m": Price(1.0, 2.0)}


class Notes(Silent):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def advance(self, stage: str, done: int, note: str = "") -> None:
        self.heard.append(re.sub(r"[\d,]+ calls/s", "N calls/s", note))

    def finished(self, stage: str, *, skipped: bool = False, note: str = "") -> None:
        self.heard.append(f"finished: {note}")


class Book:
    """A ledger's counts, to be changed at will."""

    def __init__(self) -> None:
        self.tallies: dict[TallyKey, Tally] = {("expert", "evolve", "m"): Tally(calls=5, attempts=6, prompt_tokens=50)}
        self.hits: dict[tuple[str, str], int] = {}

    def meter(self) -> TrafficMeter:
        return TrafficMeter(lambda: self.tallies, lambda: self.hits, lambda: 3, PRICES.get)


def test_what_was_there_before_is_not_traffic() -> None:
    book = Book()
    meter = book.meter()
    assert meter.rows() == []
    book.tallies["expert", "evolve", "m"] = Tally(15, 1, 20, 1_000_050, 500_000)
    book.hits["expert", "evolve"] = 4
    (row,) = meter.rows()
    assert row == Traffic("evolve", "expert", 4, 10, 1, 14, 1_000_000, 500_000, 2.0)
    assert (row.calls, row.retries) == (15, 3)


def test_a_model_without_a_price_makes_the_cost_unknown() -> None:
    book = Book()
    meter = book.meter()
    book.tallies["expert", "evolve", "m"] = Tally(6, 0, 7, 60)
    book.tallies["expert", "evolve", "other"] = Tally(1, 0, 1, 10)
    book.tallies["reviewer", "evolve", "m"] = Tally(1, 0, 1, 10)
    assert [row.cost_usd for row in meter.rows()] == [None, 1e-5]
    assert Traffic.total(meter.rows()).cost_usd is None
    assert "ledger/cost_usd" not in Traffic.total(meter.rows()).scalars()


def test_rows_of_one_stage() -> None:
    book = Book()
    meter = book.meter()
    book.tallies["expert", "respond", "m"] = Tally(2, 0, 2, 20)
    book.hits["expert", "train"] = 7
    assert [(row.stage, row.calls) for row in meter.rows()] == [("respond", 2), ("train", 7)]
    assert [(row.stage, row.calls) for row in meter.rows("train")] == [("train", 7)]


def test_each_note_says_how_the_calls_go() -> None:
    book = Book()
    meter = book.meter()
    notes = Notes()
    watched = TrafficNotes(notes, lambda: meter)
    watched.started("evolve", 10)
    watched.advance("evolve", 1, "mean episode reward 0.50")
    book.tallies["expert", "evolve", "m"] = Tally(15, 1, 20, 1_000_050, 500_000)
    book.hits["expert", "evolve"] = 34
    watched.advance("evolve", 2, "mean episode reward 0.60")  # too soon after the last one to count again
    watched.advance("filter", 3, "as it was")
    watched.finished("evolve")
    assert notes.heard == [
        "mean episode reward 0.50",
        "mean episode reward 0.60",
        "as it was",
        "finished: ",
    ]
    watched.started("evolve", 10)
    watched.advance("evolve", 1, "mean episode reward 0.70")
    assert notes.heard[-1] == (
        "mean episode reward 0.70, N calls/s, 3 in flight, 34 hits, 3 retries, 1 failed, 1.5M tokens, $2.00"
    )
    book.hits["expert", "evolve"] = 35
    watched.finished("evolve")
    assert re.fullmatch(
        r"finished: mean episode reward 0\.70, [\d,]+ calls/s, 3 in flight, 35 hits, .*", notes.heard[-1]
    )
