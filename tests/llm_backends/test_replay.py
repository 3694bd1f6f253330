from pathlib import Path

import pytest

from instructgym.errors import BadRequest, ReplayMiss, RunFolderError
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


async def test_missing_recording_is_said(tmp_path: Path):
    with pytest.raises(RunFolderError, match=r"^there is no ledger at "):
        await ReplayBackend(tmp_path / "absent.sqlite").complete(ask())
