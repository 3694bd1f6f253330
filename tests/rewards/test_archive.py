"""The archive: exact and by cells, on disk and back."""

from __future__ import annotations

import errno
import json
import shutil
import stat

import numpy as np
import pytest

from instructgym.errors import RunFolderError, UsageError
from instructgym.rewards.archive import Archive
from instructgym.rewards.archive.rows import Rows

RNG = np.random.default_rng(0)


def unit(count, dim=24, rng=RNG):
    rows = rng.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def filled(count=600, *, exact_below=10_000, dim=24, keep_texts=False, rng=None):
    rows = unit(count, dim, rng or np.random.default_rng(1))
    archive = Archive(dim, keep_texts=keep_texts, exact_below=exact_below)
    for start in range(0, count, 100):
        texts = [f"text {number}" for number in range(start, min(start + 100, count))]
        archive.commit(rows[start : start + 100], texts if keep_texts else None)
    return archive, rows


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def exact(queries, rows, k):
    rounded = rows.astype(np.float16).astype(np.float32)
    return np.argsort(-(queries @ rounded.T), axis=1, kind="stable")[:, :k]


def test_the_neighbours_of_a_small_archive_are_exact_and_best_first():
    archive, rows = filled()
    queries = unit(50)
    ids, cosines = archive.nearest(queries, 7)
    assert (ids == exact(queries, rows, 7)).all()
    assert (np.diff(cosines, axis=1) <= 0).all()
    np.testing.assert_allclose(cosines[:, 0], (queries * rows[ids[:, 0]]).sum(axis=1), atol=2e-3)
    assert (ids.dtype, cosines.dtype, len(archive), archive.version) == (np.int64, np.float32, 600, 6)


def test_equal_entries_come_in_the_order_in_which_they_were_committed():
    archive = Archive(3)
    archive.commit(np.repeat(np.eye(3), 4, axis=0))
    ids, cosines = archive.nearest(np.eye(3)[:1], 6)
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert cosines.tolist() == [[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]]


def test_the_cells_find_nearly_all_of_them():
    archive, rows = filled(3000, exact_below=500)
    queries = unit(100)
    ids, _ = archive.nearest(queries, 10)
    found = np.mean([len(set(one) & set(two)) / 10 for one, two in zip(ids, exact(queries, rows, 10), strict=True)])
    assert found >= 0.9  # without structure in 24 dimensions
    assert archive.nearest(rows[:200], 1)[0].ravel().tolist() == list(range(200))


def test_a_few_entries_and_none():
    archive = Archive(3)
    ids, cosines = archive.nearest(np.eye(3), 5)
    assert (ids.shape, cosines.shape) == ((3, 0), (3, 0))
    archive.commit(np.empty((0, 3)))
    assert (len(archive), archive.version) == (0, 1)
    archive.commit(np.eye(3)[:2])
    assert archive.nearest(np.eye(3), 5)[0].shape == (3, 2)


@pytest.mark.parametrize("exact_below", [10_000, 300])
def test_what_was_saved_and_opened_goes_on_like_what_never_stopped(tmp_path, exact_below):
    never_stopped, rows = filled(exact_below=exact_below, keep_texts=True)
    queries, more = unit(40), unit(900)
    never_stopped.save(tmp_path / "one")
    again = Archive.open(tmp_path / "one")
    assert (again.text(0), again.text(599), again.version, len(again)) == ("text 0", "text 599", 6, 600)
    for _ in range(2):
        for one, two in zip(never_stopped.nearest(queries, 5), again.nearest(queries, 5), strict=True):
            np.testing.assert_array_equal(one, two)
        for archive in (never_stopped, again):
            archive.commit(more, [f"more {number}" for number in range(900)])
    assert again.nearest(more, 1)[0].ravel().tolist() == list(range(600, 1500))
    assert again.text(1499) == "more 899"
    np.testing.assert_allclose(again.vectors([0, 640]), np.stack([rows[0], more[40]]), atol=2e-3)
    never_stopped.save(tmp_path / "one")
    again.save(tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_commits_leave_a_saved_folder_as_it_is_until_it_is_saved_again(tmp_path):
    archive, _ = filled(exact_below=300, keep_texts=True)
    archive.save(tmp_path / "archive")
    saved = files(tmp_path / "archive")
    for each in (archive, Archive.open(tmp_path / "archive")):
        each.commit(unit(50), ["more"] * 50)
        assert files(tmp_path / "archive") == saved
    archive.save(tmp_path / "archive")
    assert Archive.open(tmp_path / "archive").text(649) == "more"
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_an_open_archive_outlives_its_folder(tmp_path):
    filled(exact_below=300, keep_texts=True)[0].save(tmp_path / "archive")
    archive = Archive.open(tmp_path / "archive")
    shutil.rmtree(tmp_path / "archive")
    archive.commit(unit(50), ["more"] * 50)
    archive.save(tmp_path / "archive")
    assert (Archive.open(tmp_path / "archive").text(0), len(archive)) == ("text 0", 650)


def test_a_save_that_was_cut_off_between_its_renames_loses_nothing(tmp_path):
    archive, _ = filled()
    archive.save(tmp_path / "archive")
    (tmp_path / "archive").rename(tmp_path / ".archive.old")
    (tmp_path / ".archive.new").mkdir()
    assert len(Archive.open(tmp_path / "archive")) == 600
    archive.save(tmp_path / "archive")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_a_folder_that_cannot_be_written_is_named_and_what_was_there_stays(tmp_path, monkeypatch):
    archive, _ = filled()
    archive.save(tmp_path / "archive")
    saved = files(tmp_path / "archive")
    archive.commit(unit(1))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunFolderError, match=r"^cannot write the archive to '.*archive': No space left on device\.$"):
        archive.save(tmp_path / "archive")
    assert files(tmp_path / "archive") == saved
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_equal_rows_are_equal_bytes_however_they_were_committed_and_whatever_was_asked_between(tmp_path):
    rows = unit(900)
    for name, commits in (("one", 3), ("two", 3), ("three", 1)):
        archive = Archive(24, exact_below=300)
        for part in np.split(rows, commits):
            archive.commit(part)
            if name == "two":
                archive.nearest(rows, 3)
        archive.version = 0
        archive.save(tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")


def test_many_copies_are_found_and_hide_nothing_else(tmp_path):
    copied, others = unit(10), unit(1000)
    rows = np.concatenate([np.repeat(copied, 100, axis=0), others])
    rows = rows[np.random.default_rng(2).permutation(2000)]
    archive = Archive(24, exact_below=100)
    for part in np.split(rows, 20):
        archive.commit(part)
    archive.save(tmp_path / "archive")
    for each in (archive, Archive.open(tmp_path / "archive")):
        ids, cosines = each.nearest(copied, 20)
        np.testing.assert_allclose(cosines, 1.0, atol=2e-3)
        assert (ids == exact(copied, rows, 20)).all()
        assert (each.nearest(others, 1)[1] > 0.998).mean() > 0.99
    with_more = Archive.open(tmp_path / "archive")
    with_more.commit(copied)
    assert (with_more.nearest(copied, 101)[0][:, -1] == np.arange(2000, 2010)).all()
    assert np.isfinite(with_more.nearest(np.zeros((1, 24)), 3)[1]).all()


def test_more_copies_than_a_cell_holds_hide_nothing_else(tmp_path):
    others = unit(1000)
    rows = np.concatenate([np.repeat(others[:1], 1500, axis=0), others])
    rows = rows[np.random.default_rng(2).permutation(2500)]
    archive = Archive(24, exact_below=100)
    archive.commit(rows)
    assert (archive.nearest(others[:1], 1000)[1] > 0.998).all()
    assert (archive.nearest(others, 1)[1] > 0.998).mean() > 0.98  # in 24 dimensions without structure


@pytest.mark.parametrize("count", [101, 255, 256, 257])
def test_an_archive_with_hardly_a_cell_is_saved_and_opened(tmp_path, count):
    archive, rows = filled(count, exact_below=100)
    archive.save(tmp_path / "archive")
    again = Archive.open(tmp_path / "archive")
    again.commit(unit(300))
    assert again.nearest(rows, 1)[0].ravel().tolist() == list(range(count))


def test_as_many_are_found_as_were_asked_for():
    archive, _ = filled(3000, exact_below=500)
    ids, _ = archive.nearest(unit(300), 3000)
    assert (np.sort(ids, axis=1) == np.arange(3000)).all()
    ids, _ = archive.nearest(unit(300), 700)
    assert (ids >= 0).all()
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()


def test_files_are_readable_by_their_owner_alone(tmp_path):
    filled(keep_texts=True)[0].save(tmp_path / "archive")
    assert stat.S_IMODE((tmp_path / "archive").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "archive").iterdir()} == {0o600}


def test_rows_beyond_memory_go_to_a_file_that_nobody_sees(monkeypatch, tmp_path):
    monkeypatch.setattr("instructgym.rewards.archive.rows._IN_MEMORY_BYTES", 4096)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows, expected = Rows(8), unit(2000, 8)
    for start in range(0, 2000, 130):
        rows.append(expected[start : start + 130])
    np.testing.assert_allclose(rows.all(), expected, atol=1e-3)
    np.testing.assert_allclose(rows.take(np.array([[5, 1999], [0, 700]])), expected[[[5, 1999], [0, 700]]], atol=1e-3)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_takes_nothing(monkeypatch):
    monkeypatch.setattr("instructgym.rewards.archive.rows._IN_MEMORY_BYTES", 4096)

    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    archive = Archive(8, keep_texts=True)
    archive.commit(unit(200, 8), ["text"] * 200)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(
        RunFolderError,
        match=r"^the archive's temporary file in '.*' cannot grow to 500 rows: No space left on device\. Free some "
        r"space, or set TMPDIR to a folder that has it\.$",
    ):
        archive.commit(unit(300, 8), ["text"] * 300)
    assert (len(archive), archive.version, len(archive.nearest(unit(1, 8), 500)[0][0])) == (200, 1, 200)
    monkeypatch.undo()
    archive.commit(unit(300, 8), ["text"] * 300)
    assert len(archive) == 500


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a: a.nearest(np.ones((2, 3)), 1),
            r"^Archive\.nearest got an array of shape \(2, 3\); expected \(n, 24\)\.",
        ),
        (lambda a: a.nearest(unit(1), 0), r"^Archive\.nearest got k = 0; expected 1 or more\.$"),
        (
            lambda a: a.commit(np.full((1, 24), np.nan)),
            r"^Archive\.commit got a number that is not finite; expected rows of length 1\.$",
        ),
        (lambda a: a.commit(2 * unit(3)), r"^Archive\.commit got row 0 of length 2; expected length 1\.$"),
        (lambda a: a.commit(unit(1), None), r"^Archive\.commit got 1 rows and none texts; this archive keeps texts\.$"),
        (
            lambda a: Archive(24).commit(unit(1), ["text"]),
            r"^Archive\.commit got texts; this archive keeps none, make it with keep_texts=True\.$",
        ),
        (lambda a: a.commit(np.zeros((1, 24)), [""]), r"^Archive\.commit got row 0 of length 0; expected length 1\.$"),
        (lambda a: a.vectors([0]), r"^this archive has 0 entries and none with the id 0\.$"),
        (lambda a: a.text(-1), r"^this archive has 0 entries and none with the id -1\.$"),
        (lambda a: Archive(24).text(0), r"^this archive keeps no texts; make it with keep_texts=True\.$"),
        (lambda a: Archive(0), r"^an archive got dim = 0; expected 1 or more\.$"),
    ],
)
def test_misuse_is_refused_with_words(call, message):
    archive = Archive(24, keep_texts=True)
    with pytest.raises(UsageError, match=message):
        call(archive)
    assert (len(archive), archive.version) == (0, 0)


def test_what_is_no_archive_is_refused_with_words(tmp_path):
    with pytest.raises(RunFolderError, match=r"nowhere holds no archive that can be read: "):
        Archive.open(tmp_path / "nowhere")
    filled(600, exact_below=300, keep_texts=True)[0].save(tmp_path / "archive")
    facts = json.loads((tmp_path / "archive" / "archive.json").read_text())
    for name, content, message in [
        ("archive.json", b'{"schema": 9}', r"is of schema 9; this version reads schema 1\. Build it again\.$"),
        ("archive.json", b'{"schema": 1}', r"holds no archive that can be read: KeyError\('dim'\)\.$"),
        ("archive.json", b"[]", r"holds no archive that can be read: "),
        ("rows.f16", b"short", r"rows\.f16 has 5 bytes; expected 28800: the archive was cut short\.$"),
        ("texts.utf8", b"short", r"texts\.utf8 has 5 bytes; expected \d+: the archive was cut short\.$"),
        ("cells.codes", None, r"cells\.codes is missing: the archive was cut short\.$"),
        (
            "cells.order",
            bytes(facts["bytes"]["cells.order"]),
            r"holds no cells that can be read: its files speak of different rows\. Build them again\.$",
        ),
    ]:
        damaged = tmp_path / "damaged"
        shutil.copytree(tmp_path / "archive", damaged)
        (damaged / name).unlink()
        if content is not None:
            (damaged / name).write_bytes(content)
        with pytest.raises(RunFolderError, match=message):
            Archive.open(damaged)
        shutil.rmtree(damaged)
