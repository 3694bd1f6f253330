"""A reward's memory on disk, and through a run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructgym.errors import RewardError, RunFolderError
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


KINDS = "finite numbers, texts, lists, tables, arrays of numbers and archives"
KEYS = "texts as keys, so that they come back as they are"


@pytest.mark.parametrize(
    ("state", "got"),
    [
        ({"seen": {1, 2}}, f"'seen' holds a set, {{1, 2}}; expected {KINDS}"),
        ({"a": {"b": [0.0, math.nan]}}, f"'a/b/1' holds a float, nan; expected {KINDS}"),
        ({"mean": np.float32("inf")}, f"'mean' holds a float, inf; expected {KINDS}"),
        ({"raw": b"x"}, f"'raw' holds a bytes, b'x'; expected {KINDS}"),
        ({"rows": np.array([None, "x"])}, f"'rows' holds an array of object; expected {KINDS}"),
        ({"at": np.array(["2020-01-01"], "M8[D]")}, f"'at' holds an array of datetime64[D]; expected {KINDS}"),
        ({"by": {3: "x"}}, f"'by' holds the key 3; expected {KEYS}"),
        ({3: "x"}, f"'state_dict()' holds the key 3; expected {KEYS}"),
        ({"x": {"__array__": "AA=="}}, f"'x' holds the key '__array__'; expected {KEYS}"),
    ],
)
def test_what_would_not_come_back_is_refused_and_the_memory_before_it_stays(
    state: dict[Any, Any], got: str, tmp_path: Path
) -> None:
    save_memory({"n": 1}, tmp_path / "reward")
    with pytest.raises(RewardError) as error:
        save_memory(state, tmp_path / "reward")
    assert str(error.value) == f"a reward's memory cannot be saved: {got}."
    assert load_memory(tmp_path / "reward") == {"n": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"x": {"__array__": "AA=="}}', "KeyError('dtype')"),
        ('{"x": {"__array__": 3, "dtype": "<f4", "shape": [1]}}', r"TypeError(.*)"),
        ('{"x": {"__array__": "AAAA", "dtype": "<f4", "shape": [1]}}', r"ValueError(.*)"),
    ],
)
def test_a_memory_that_is_damaged_is_said(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "memory.json").write_text(text, "utf-8")
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(RunFolderError, match=rf"^the reward's memory in .* cannot be read: {pattern}\.$"):
        load_memory(tmp_path)


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
