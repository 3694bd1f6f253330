"""A whole run from a recording, without a key."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from instructgym.errors import ConfigError
from instructgym.llm_backends.ledger_lines import write_lines
from instructgym.llm_backends.ledger_store import SqliteStore
from instructgym.train.pipeline import run
from tests.train.conftest import small_config

FILES = ("lineage.jsonl", "dataset/sft_alpaca.jsonl", "dataset/rejected.jsonl")


@pytest.mark.parametrize("form", ["folder", "ledger", "export"])
def test_a_run_is_repeated_from_its_recording(form: str, finished_run: Path, seeds_file: Path, tmp_path: Path) -> None:
    export = tmp_path / "calls.jsonl.gz"
    store = SqliteStore(finished_run / "ledger.sqlite", read_only=True)
    write_lines(export, store.rows())
    store.close()
    path = {"folder": finished_run, "ledger": finished_run / "ledger.sqlite", "export": export}[form]
    config = small_config(seeds_file, "llm.backend=replay", f"llm.replay_path={json.dumps(str(path))}")
    assert run(config, tmp_path / "again").exit_code == 0
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (finished_run / name).read_bytes()


def test_a_recording_of_several_models_asks_which_is_meant(
    finished_run: Path, seeds_file: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "ledger.sqlite"
    source, target = sqlite3.connect(finished_run / "ledger.sqlite"), sqlite3.connect(copy)
    source.backup(target)
    target.execute("UPDATE tallies SET model = 'other' WHERE role = 'expert' AND stage = 'respond'")
    target.commit()
    source.close(), target.close()
    config = small_config(seeds_file, "llm.backend=replay", f"llm.replay_path={json.dumps(str(copy))}")
    with pytest.raises(ConfigError) as caught:
        run(config, tmp_path / "again")
    assert str(caught.value) == (
        f"the recording {copy} holds answers of other, simulated-1 for the expert; say which with llm.expert.model"
    )
