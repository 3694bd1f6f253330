"""A reward's memory on disk, and through a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from instructgym.errors import RunFolderError
from instructgym.rewards.archive import Archive
from instructgym.train.config_text import load_config
from instructgym.train.pipeline import run
from instructgym.train.reward_memory import load_memory, save_memory


def test_values_arrays_and_archives_come_back(tmp_path: Path) -> None:
    archive = Archive(2, keep_texts=True)
    archive.commit(np.eye(2), ["one", "two"])
    memory = {
        "vectors": np.arange(6, dtype=np.float32).reshape(2, 3),
        "version": 3,
        "names": ["a", "b"],
        "n": None,
        "nested": {"archive": archive, "count": np.int64(4)},
    }
    assert save_memory(memory, tmp_path / "reward")
    back = load_memory(tmp_path / "reward")
    np.testing.assert_array_equal(back["vectors"], memory["vectors"])
    assert back["vectors"].dtype == np.float32
    assert {name: back[name] for name in ("version", "names", "n")} == {"version": 3, "names": ["a", "b"], "n": None}
    assert back["nested"]["count"] == 4
    assert back["nested"]["archive"].text(1) == "two"
    save_memory(memory, tmp_path / "again")
    for path in (tmp_path / "reward").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "reward")).read_bytes()


def test_no_memory_leaves_no_folder(tmp_path: Path) -> None:
    save_memory({"n": 1}, tmp_path / "reward")
    assert not save_memory({}, tmp_path / "reward")
    assert not (tmp_path / "reward").exists()
    with pytest.raises(RunFolderError, match=r"^the reward's memory in .*reward cannot be read: "):
        load_memory(tmp_path / "reward")


@pytest.mark.slow
def test_a_run_keeps_what_its_archive_learned_and_repeats_it_to_the_byte(tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "rewards.toml"
    small = ["seeds.limit=16", "train.steps=96", "train.num_envs=4", "agent.kwargs.n_steps=8", "env.horizon=2"]
    config = load_config(example, [*small, "evaluate.policies=[]", "agent.kwargs.batch_size=16"])
    for name in ("one", "two"):
        assert run(config, tmp_path / name).exit_code == 0
    folders = [tmp_path / name / "stages" / "reward" for name in ("one", "two")]
    for path in folders[0].rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (folders[1] / path.relative_to(folders[0])).read_bytes()
    trained = Archive.open(tmp_path / "one" / "agent" / "reward" / "archive-0")
    evolved = Archive.open(folders[0] / "archive-0")
    # Three rollouts of 32 steps in training, one commit more for the stage of all chains.
    assert (trained.version, evolved.version) == (3, 4)
    assert 0 < len(trained) < len(evolved)
    rows = [json.loads(line) for line in (tmp_path / "one" / "lineage.jsonl").read_text("utf-8").splitlines()]
    versions = {row["terms"].get("curious/archive_novelty/version") for row in rows if row["accepted"]}
    assert versions <= {3.0, None}
    assert 3.0 in versions
