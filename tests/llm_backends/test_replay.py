import asyncio
import tempfile
from pathlib import Path

import pytest

from instructgym.errors import BadRequest, ReplayMiss, RunFolderError
from instructgym.llm_backends.ledger_lines import write_lines
from instructgym.llm_backends.ledger_selection import Selection, read_rows
from instructgym.llm_backends.replay import ReplayBackend
from instructgym.llm_backends.stack import open_stack

from .fakes import Scripted, answer, ask


async def test_recording_is_repeated_and_a_miss_is_said(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    stack = open_stack(Scripted(answer("one"), BadRequest("no", status=400)), ledger_path=path)
    await stack.backend.complete(ask("a"))
    with pytest.raises(BadRequest):
        await stack.backend.complete(ask("b"))
    await stack.aclose()
    bytes_before = path.read_bytes()
    replay = ReplayBackend(path)
    assert await replay.complete(ask("a")) == answer("one")
    with pytest.raises(BadRequest, match=r"^no$"):
        await replay.complete(ask("b"))
    with pytest.raises(ReplayMiss) as caught:
        await replay.complete(ask("c"))
    assert str(caught.value) == (
        f"the recording {path} holds no answer to this request of role 'expert' to model 'simulated' "
        "(prompt test/1, sample (0,)); repeat the run with the config, seeds and version that made the recording"
    )
    await replay.aclose()
    assert await replay.complete(ask("a")) == answer("one")
    await replay.aclose()
    assert path.read_bytes() == bytes_before


async def record(folder: Path) -> Path:
    stack = open_stack(Scripted(answer("one"), BadRequest("no", status=400)), ledger_path=folder / "ledger.sqlite")
    await asyncio.gather(*(stack.backend.complete(ask(text)) for text in "ab"), return_exceptions=True)
    await stack.aclose()
    return folder


@pytest.mark.parametrize("form", ["", "ledger.sqlite", "calls.jsonl", "calls.jsonl.gz"])
async def test_every_form_of_a_recording_is_replayed(tmp_path: Path, form: str):
    folder = await record(tmp_path / "run")
    if form.startswith("calls"):
        write_lines(folder / form, read_rows(folder / "ledger.sqlite", Selection()))
        (folder / "ledger.sqlite").unlink()
    before = sorted(path.name for path in folder.iterdir())
    replay = ReplayBackend(folder / form)
    for _ in range(2):
        first, second, third = await asyncio.gather(
            *(replay.complete(ask(text)) for text in "aba"), return_exceptions=True
        )
        assert (first, repr(second), third) == (answer("one"), repr(BadRequest("no")), answer("one"))
        with pytest.raises(ReplayMiss, match=rf"^the recording {folder / form} holds no answer to this request "):
            await replay.complete(ask("c"))
        await replay.aclose()
    assert sorted(path.name for path in folder.iterdir()) == before


async def test_an_exported_recording_is_unpacked_once_and_leaves_nothing(tmp_path: Path, monkeypatch):
    folder = await record(tmp_path / "run")
    write_lines(tmp_path / "calls.jsonl", read_rows(folder / "ledger.sqlite", Selection()))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def unpacked() -> list[Path]:
        return list(tmp_path.glob("instructgym-recording-*"))

    replay = ReplayBackend(tmp_path / "calls.jsonl")
    cancelled = asyncio.ensure_future(replay.complete(ask("a")))
    others = [asyncio.ensure_future(replay.complete(ask("a"))) for _ in range(5)]
    await asyncio.sleep(0)
    cancelled.cancel()
    assert await asyncio.gather(*others) == [answer("one")] * 5
    assert len(unpacked()) == 1
    await replay.aclose()
    await replay.aclose()
    assert unpacked() == []


async def test_missing_and_broken_recordings_are_said(tmp_path: Path):
    replay = ReplayBackend(tmp_path / "absent.sqlite")
    for _ in range(2):
        with pytest.raises(RunFolderError) as caught:
            await replay.complete(ask())
        assert str(caught.value) == (
            f"there is no recording at {tmp_path / 'absent.sqlite'}; expected a run's folder, its ledger.sqlite, or "
            "what `instructgym ledger export` wrote"
        )
    await replay.aclose()
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"key": "00"')
    replay = ReplayBackend(broken)
    with pytest.raises(RunFolderError, match=rf"^{broken}, line 1: the line is cut \("):
        await replay.complete(ask())
    await replay.aclose()
