from __future__ import annotations

import re

from instructgym.train.progress import Silent
from instructgym.train.traffic import TrafficNotes


class Notes(Silent):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def advance(self, stage: str, done: int, note: str = "") -> None:
        self.heard.append(re.sub(r"[\d,]+ calls/s", "N calls/s", note))


def test_each_note_says_how_fast_calls_go_and_what_the_ledger_knew() -> None:
    notes = Notes()
    watched = TrafficNotes(notes, lambda stage: (1200, 34) if stage == "evolve" else (0, 0))
    watched.started("evolve", 10)
    watched.advance("evolve", 1)
    watched.advance("evolve", 2, "mean episode reward 0.50")
    watched.advance("filter", 3, "as it was")
    assert notes.heard == [
        "N calls/s, 34 hits",
        "mean episode reward 0.50, N calls/s, 34 hits",
        "as it was",
    ]
