from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from instructgym.cli.progress import LineProgress, TerminalProgress, open_progress


def test_without_a_terminal_a_stage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = open_progress()
    assert isinstance(progress, LineProgress)
    with progress:
        progress.say("encoder: hashing:256")
        progress.started("evolve", 200)
        for done in range(1, 201):
            progress.advance("evolve", done, f"{done // 2} hits")
        progress.finished("evolve")
        progress.finished("train", skipped=True)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [re.sub(r"\d+\.\d s( \(\d+/s\))?", "T", line) for line in err.splitlines()]
    assert lines == ["encoder: hashing:256", "evolve: 200 of 200 in T, 100 hits", "train: already done"]


def test_a_stage_that_was_cut_off_says_how_far_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with LineProgress() as progress:
            progress.started("respond", 200)
            progress.advance("respond", 17)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err == "respond: stopped at 17 of 200\n"


def test_in_a_terminal_every_stage_has_its_bar() -> None:
    screen = io.StringIO()
    progress = TerminalProgress(Console(file=screen, force_terminal=True, color_system=None, width=120))
    with progress:
        progress.say("seeds: [not markup] (text, 8 instructions)")
        progress.started("train", 64)
        progress.advance("train", 32, "12 hits")
        progress.finished("train", note="done [well]")
        progress.started("filter", None)
        progress.finished("filter")
        progress.finished("export", skipped=True)
    shown = screen.getvalue()
    for word in ("[not markup]", "train", "32/64", "done [well]", "filter", "export", "already done"):
        assert word in shown
