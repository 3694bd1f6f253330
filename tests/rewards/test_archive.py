"""The archive: exact and by graph, on disk and back."""

from __future__ import annotations

import json
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


def test_the_graph_finds_nearly_all_of_them():
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
def test_what_was_saved_and_opened_goes_on_like_what_never_stopped_was_saved(tmp_path, exact_below):
    archive, rows = filled(exact_below=exact_below, keep_texts=True)
    queries = unit(40)
    archive.save(tmp_path / "archive")
    again = Archive.open(tmp_path / "archive")
    for one, two in zip(archive.nearest(queries, 5), again.nearest(queries, 5), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (again.text(0), again.text(599), again.version, len(again)) == ("text 0", "text 599", 6, 600)
    more = unit(50)
    again.commit(more, [f"more {number}" for number in range(50)])
    assert again.nearest(more, 1)[0].ravel().tolist() == list(range(600, 650))
    assert again.text(649) == "more 49"
    # What was saved is as it was until it is saved again.
    assert len(Archive.open(tmp_path / "archive")) == 600
    again.save(tmp_path / "archive")
    assert Archive.open(tmp_path / "archive").text(649) == "more 49"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive"]
    np.testing.assert_allclose(again.vectors([0, 640]), np.stack([rows[0], more[40]]), atol=2e-3)


def test_equal_commits_are_equal_bytes(tmp_path):
    for name in ("one", "two"):
        archive, _ = filled(900, exact_below=300, rng=np.random.default_rng(5))
        archive.save(tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


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
    archive, _ = filled(600, exact_below=300, keep_texts=True)
    folder = tmp_path / "archive"
    archive.save(folder)
    facts = json.loads((folder / "archive.json").read_text())
    (folder / "archive.json").write_text(json.dumps(facts | {"schema": 9}))
    with pytest.raises(RunFolderError, match=r"is of schema 9; this version reads schema 1\. Build it again\.$"):
        Archive.open(folder)
    (folder / "archive.json").write_text(json.dumps(facts))
    whole = (folder / "rows.f16").read_bytes()
    (folder / "rows.f16").write_bytes(whole[:-2])
    with pytest.raises(
        RunFolderError, match=r"rows\.f16 has 28798 bytes; expected 28800: the archive was cut short\.$"
    ):
        Archive.open(folder)
    (folder / "rows.f16").write_bytes(whole)
    (folder / "texts.utf8").write_bytes(b"short")
    with pytest.raises(RunFolderError, match=r"texts\.utf8 has 5 bytes; expected \d+: the archive was cut short\.$"):
        Archive.open(folder)
    archive.save(folder)
    (folder / "graph.usearch").unlink()
    with pytest.raises(RunFolderError, match=r"graph\.usearch is missing: the archive was cut short\.$"):
        Archive.open(folder)
