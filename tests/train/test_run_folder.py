"""A run's folder: one writer, whole files only, manifests last, and another run refused."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from instructgym.errors import RunFolderError
from instructgym.train import run_folder
from instructgym.train.run_folder import Manifest, RunFolder

SECTIONS = {"train": ("run", "train"), "evolve": ("run", "train", "evolve")}
IDENTITY = {"run.seed": 0, "run.name": "x", "train.steps": 10, "evolve.policy": "trained", "budget.max_calls": None}

HOLDER = """
import sys, time
from pathlib import Path
from instructgym.train.run_folder import RunFolder
with RunFolder.hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder.hold(tmp_path / "run") as held:
        held.claim(IDENTITY, SECTIONS, "# config\n")
        yield held


def finish(folder: RunFolder, stage: str, text: str = "x") -> Manifest:
    key = folder.key(stage, [])
    folder.begin(stage, key)
    folder.write_text(f"{stage}.txt", text)
    return folder.finish(stage, key, [f"{stage}.txt"], {"n": 1})


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError) as caught, RunFolder.hold(path):
            pass
        assert str(caught.value) == (
            f"'{path}' is in use by another process (pid {other.pid}); a run folder has one writer. Wait for it, or "
            "choose another folder."
        )
        other.communicate("")
    with RunFolder.hold(path):
        pass


def test_folder_and_files_are_the_owners_alone(folder: RunFolder) -> None:
    finish(folder, "train")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    modes = {entry.name: entry.stat().st_mode & 0o777 for entry in folder.path.rglob("*") if entry.is_file()}
    assert set(modes.values()) == {0o600}, modes


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError) as caught, RunFolder.hold(tmp_path):
        pass
    assert str(caught.value) == (
        f"'{tmp_path}' holds files that are no run's, 'thesis.tex' for one. Choose a new or empty folder."
    )


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("x")
    with pytest.raises(RunFolderError) as caught, RunFolder.hold(path):
        pass
    assert str(caught.value) == f"'{path}' is a file; expected a folder for the run."


def test_another_run_is_refused_by_the_first_key_that_differs(folder: RunFolder) -> None:
    finish(folder, "train")
    with pytest.raises(RunFolderError) as caught:
        folder.claim({**IDENTITY, "train.steps": 20, "evolve.policy": "random"}, SECTIONS, "")
    assert str(caught.value) == (
        f"'{folder.path}' holds another run: its train.steps is 10, here it is 20 (stage 'train' has begun there). "
        "Choose another folder, or give the same config."
    )


def test_what_no_begun_stage_depends_on_may_change(folder: RunFolder) -> None:
    manifest = finish(folder, "train")
    folder.claim({**IDENTITY, "evolve.policy": "random", "budget.max_calls": 5, "run.name": "y"}, SECTIONS, "new\n")
    assert folder.key("train", []) == manifest.key
    assert (folder.path / "config.toml").read_text() == "new\n"


def test_a_stage_that_was_cut_off_fixes_its_config_too(folder: RunFolder) -> None:
    folder.begin("evolve", "k")
    with pytest.raises(RunFolderError, match=r'its evolve.policy is "trained", here it is "random"'):
        folder.claim({**IDENTITY, "evolve.policy": "random"}, SECTIONS, "")


def test_a_key_that_only_one_side_has_is_another_run(folder: RunFolder) -> None:
    finish(folder, "train")
    with pytest.raises(RunFolderError, match=r"its train.num_envs is not set, here it is 3"):
        folder.claim({**IDENTITY, "train.num_envs": 3}, SECTIONS, "")


def test_the_folder_of_another_kind_of_work_is_refused_and_left_as_it_is(folder: RunFolder) -> None:
    finish(folder, "train")
    before = (folder.path / "run.json").read_bytes()
    with pytest.raises(RunFolderError) as caught:
        folder.claim({"run.seed": 0}, {"bench": ("run",)}, "# another\n")
    assert str(caught.value) == (
        f"'{folder.path}' holds something else: its stage 'train' is none of bench. Choose another folder."
    )
    assert (folder.path / "run.json").read_bytes() == before
    assert (folder.path / "config.toml").read_text() == "# config\n"


def test_the_folder_of_another_schema_is_refused(folder: RunFolder) -> None:
    folder.write_json("run.json", {"schema": 99, "version": "9.9", "identity": {}})
    with pytest.raises(RunFolderError) as caught:
        folder.claim(IDENTITY, SECTIONS, "")
    assert str(caught.value) == (
        f"'{folder.path}' is a run folder of schema 99, written by version 9.9; this version reads schema 1. Choose "
        "another folder."
    )


def test_a_manifest_counts_only_while_its_files_are_as_it_left_them(folder: RunFolder) -> None:
    manifest = finish(folder, "train")
    assert folder.manifest("train") == manifest
    (folder.path / "train.txt").write_text("edited")
    assert folder.manifest("train") is None
    (folder.path / "train.txt").unlink()
    assert folder.manifest("train") is None


def test_a_stage_that_only_began_is_not_finished(folder: RunFolder) -> None:
    finish(folder, "train")
    folder.begin("train", "another key")
    assert folder.manifest("train") is None


def test_the_key_follows_the_config_and_the_files_before(folder: RunFolder) -> None:
    first = finish(folder, "train", "one")
    key = folder.key("evolve", [first])
    assert key == folder.key("evolve", [first])
    assert key != folder.key("evolve", [finish(folder, "train", "two")])
    folder.claim({**IDENTITY, "evolve.policy": "random"}, SECTIONS, "")
    assert key != folder.key("evolve", [first])


def test_a_write_that_fails_leaves_the_old_file_whole(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("a.txt", "old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_folder.os, "fsync", full)
    with pytest.raises(RunFolderError) as caught:
        folder.write_text("a.txt", "new")
    assert str(caught.value) == (
        f"no space left on the device that holds '{folder.path / 'a.txt'}'. Free some and run the same command again: "
        "what was paid for stands in the ledger."
    )
    assert (folder.path / "a.txt").read_text() == "old"


def test_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    with RunFolder.hold(tmp_path / "run") as folder:
        folder.claim(IDENTITY, SECTIONS, "")
    (tmp_path / "run" / "summary.json.tmp").write_text("{")
    with RunFolder.hold(tmp_path / "run") as folder:
        assert not (folder.path / "summary.json.tmp").exists()


def test_texts_of_every_script_come_back_unchanged(folder: RunFolder) -> None:
    row = {"text": 'שלום 你好 👩‍🚀 \u2028 \ud800 \\ "'}
    folder.write_lines("rows.jsonl", [run_folder.canonical_json(row)])
    assert folder.read_lines("rows.jsonl") == [row]


def test_an_append_log_is_readable_while_it_grows(folder: RunFolder) -> None:
    log = folder.log("log.jsonl")
    log.append(['{"a":1}'])
    assert folder.read_lines("log.jsonl") == [{"a": 1}]
    log.discard()
    assert not (folder.path / "log.jsonl").exists()


def test_an_unwritable_place_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError) as caught, RunFolder.hold(tmp_path / "file" / "run"):
        pass
    assert str(caught.value) == f"cannot write '{tmp_path / 'file' / 'run'}': Not a directory."
