import asyncio
import gzip
import json
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from instructgym.errors import BadRequest, RunFolderError, ServerError, UsageError
from instructgym.llm_backends.ledger import CallStats
from instructgym.llm_backends.ledger_lines import read_lines, write_lines
from instructgym.llm_backends.ledger_rows import Failure, Tally, request_key
from instructgym.llm_backends.ledger_selection import Selection
from instructgym.llm_backends.ledger_store import SqliteStore
from instructgym.llm_backends.ledger_transfer import Imported, import_calls, prune
from instructgym.llm_backends.stack import open_stack
from instructgym.types import Choice, Completion, Request, Sampling, TokenLogprob, Usage

from .fakes import Outcome, Scripted, answer, ask

RICH = Completion(
    "half \ud83d pair",
    "length",
    Usage(3, 4),
    "m",
    (TokenLogprob("a", -0.1, (("a", -0.1), ("b", -2.5))),),
    (Choice("指令", "stop", (TokenLogprob("b", -1.0),)),),
)
REQUESTS = {
    "plain": ask("plain"),
    "rich": ask("\ud83d \u2028 مرحبا", sampling=Sampling(0, 1.0, None, ("x",), 2, (("b", "1"), ("a", "{}")), 2)),
    "failed": ask("failed", role="reviewer", stage="train"),
}


def fill(path: Path, *asked: tuple[Request, Outcome]) -> Path:
    """A ledger of these calls."""

    async def ask_all() -> None:
        stack = open_stack(Scripted(*(outcome for _, outcome in asked)), ledger_path=path, max_attempts=1)
        for request, _ in asked:
            await asyncio.gather(stack.backend.complete(request), return_exceptions=True)
        await stack.aclose()

    asyncio.run(ask_all())
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    outcomes = (answer("plain"), RICH, BadRequest("no", status=400))
    return fill(tmp_path / "full.sqlite", *zip(REQUESTS.values(), outcomes, strict=True))


def export(ledger: Path, name: str = "calls.jsonl") -> Path:
    store = SqliteStore(ledger, read_only=True)
    out = ledger.with_name(name)
    write_lines(out, store.rows())
    store.close()
    return out


def held(ledger: Path) -> dict[str, Completion | Failure]:
    store = SqliteStore(ledger, read_only=True)
    rows = {row.key: row.outcome for row in store.rows()}
    store.close()
    return rows


def tallies(ledger: Path) -> dict[tuple[str, str, str], Tally]:
    store = SqliteStore(ledger, read_only=True)
    store.close()
    return dict(store.tallies())


@pytest.mark.parametrize("form", ["calls.jsonl", "calls.jsonl.gz", "full.sqlite"])
def test_what_is_imported_is_answered_under_the_same_keys_and_charged_to_nobody(full: Path, form: str):
    source = full if form == "full.sqlite" else export(full, form)
    into = full.with_name("into.sqlite")
    assert import_calls(into, [source]) == [Imported(new=3)]
    assert held(into) == held(full)
    transport = Scripted()
    stack = open_stack(transport, ledger_path=into)

    async def ask_again() -> list[object]:
        asked = (stack.backend.complete(request) for request in REQUESTS.values())
        return await asyncio.gather(*asked, return_exceptions=True)

    plain, rich, failed = asyncio.run(ask_again())
    assert (plain, rich, repr(failed)) == (answer("plain"), RICH, repr(BadRequest("no")))
    assert transport.asked == []
    assert stack.stats() == {
        ("expert", "evolve"): CallStats(hits=2, calls=2),
        ("reviewer", "train"): CallStats(hits=1, failed=1),
    }
    asyncio.run(stack.aclose())


def test_export_is_the_same_bytes_each_time_and_valid_utf8(full: Path):
    plain = export(full).read_bytes()
    assert export(full, "again.jsonl").read_bytes() == plain
    first, second = (export(full, name).read_bytes() for name in ("one.gz", "two.gz"))
    assert first == second
    assert gzip.decompress(first) == plain
    assert json.loads(plain.decode().splitlines()[1])["request"]["sampling"]["n"] == 2


def test_importing_twice_changes_nothing(full: Path):
    into = full.with_name("into.sqlite")
    import_calls(into, [full])
    before = held(into), tallies(into)
    assert import_calls(into, [full, export(full)]) == [Imported(known=3), Imported(known=3)]
    assert (held(into), tallies(into)) == before


def test_an_answer_is_never_overwritten_and_a_failure_gives_way_to_one(full: Path):
    ours = fill(
        full.with_name("ours.sqlite"),
        (REQUESTS["plain"], answer("ours")),
        (REQUESTS["rich"], ServerError("died")),
        (REQUESTS["failed"], answer("ours too")),
    )
    (result,) = import_calls(ours, [full])
    (key,) = result.conflicting
    assert result == Imported(replaced=1, known=1, conflicting=[key])
    assert held(ours)[key] == answer("ours")
    assert sorted(str(getattr(outcome, "text", outcome)) for outcome in held(ours).values()) == sorted(
        ["ours", "ours too", RICH.text]
    )
    assert tallies(ours)["expert", "evolve", "simulated"] == Tally(2, 0, 2, 10, 5, *charged(ours))


def canonical(request: Request) -> bytes:
    return request_key(request)[0]


def charged(ledger: Path) -> tuple[int, int]:
    tally = tallies(ledger)["expert", "evolve", "simulated"]
    return tally.charged_prompt_tokens, tally.charged_completion_tokens


def test_a_key_that_is_not_its_requests_is_refused_and_nothing_comes_in(full: Path):
    lines = export(full).read_text("utf-8").splitlines()
    forged = full.with_name("forged.jsonl")
    forged.write_text("\n".join([lines[0].replace('"content": "plain"', '"content": "other"'), *lines[1:]]), "utf-8")
    into = full.with_name("into.sqlite")
    with pytest.raises(RunFolderError) as caught:
        import_calls(into, [full, forged])
    key = json.loads(lines[0])["key"]
    assert str(caught.value).startswith(f"{forged}, line 1: the key is {key}, but that of its request is ")
    assert str(caught.value).endswith(
        "; the request was changed after it was asked, or comes from a version that made other keys"
    )
    assert not into.exists()


def test_a_call_that_was_changed_inside_a_ledger_is_refused(full: Path):
    with sqlite3.connect(full) as connection:
        connection.execute("UPDATE calls SET request = replace(request, 'plain', 'other')")
    connection.close()
    into = fill(full.with_name("into.sqlite"), (ask("mine"), answer()))
    with pytest.raises(RunFolderError, match=rf"^{full}, call [0-9a-f]{{32}}: the key is "):
        import_calls(into, [full])
    assert len(held(into)) == 1


def _without(line: str, *path: str) -> str:
    value = json.loads(line)
    inner = value
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return json.dumps(value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda line: line[:40], r"the line is cut \(.*\); expected a call as `ledger export` writes it"),
        (lambda line: "hello\n", r"no JSON \(.*\); expected a call as `ledger export` writes it"),
        (lambda line: "[1, 2]\n", r"no call as `ledger export` writes it \(TypeError: .*\)"),
        (lambda line: _without(line, "stage"), r"no call as `ledger export` writes it \(KeyError: 'stage'\)"),
        (lambda line: _without(line, "completion"), r"no call .* \(KeyError: 'completion'\)"),
        (lambda line: _without(line, "request", "sampling", "top_p"), r"no call .* \(KeyError: 'top_p'\)"),
        (lambda line: line.replace('"text": "plain"', '"text": 5'), r"no call .*5 stands where a text is expected\)"),
        (lambda line: line.replace("[10, 5]", '["10", 5]'), r"no call .* expected two numbers of tokens\)"),
        (
            lambda line: line.replace('"completion"', '"failure"').replace('"text"', '"error"'),
            r"no call .*\(KeyError: 'message'\)",
        ),
    ],
)
def test_broken_lines_are_named(full: Path, spoil, message: str):
    lines = export(full).read_text("utf-8").splitlines(keepends=True)
    bad = full.with_name("bad.jsonl")
    bad.write_text(lines[2] + spoil(lines[0]), "utf-8")
    with pytest.raises(RunFolderError, match=rf"^{bad}, line 2: {message}$"):
        list(read_lines(bad))


def test_a_failure_of_unknown_kind_is_refused(full: Path):
    bad = full.with_name("bad.jsonl")
    bad.write_text(export(full).read_text("utf-8").splitlines()[2].replace("BadRequest", "SystemExit"), "utf-8")
    with pytest.raises(RunFolderError, match=r"line 1: no call .*\(ValueError: 'SystemExit' is no error of a call\)$"):
        list(read_lines(bad))


def test_a_cut_gzip_file_is_said(full: Path):
    cut = full.with_name("cut.jsonl.gz")
    cut.write_bytes(export(full, "whole.jsonl.gz").read_bytes()[:-20])
    with pytest.raises(RunFolderError, match=rf"^{cut} is cut or broken after line \d: "):
        import_calls(full.with_name("into.sqlite"), [cut])


def test_sources_that_are_not_there_or_are_the_ledger_itself_are_refused(full: Path):
    with pytest.raises(RunFolderError) as caught:
        import_calls(full.with_name("into.sqlite"), [full.with_name("absent")])
    assert str(caught.value) == (
        f"there is nothing to import at {full.with_name('absent')}; expected an exported file, a ledger, or a run's "
        "folder"
    )
    assert not full.with_name("into.sqlite").exists()
    with pytest.raises(RunFolderError) as caught:
        import_calls(full, [full])
    assert str(caught.value) == f"{full} is the ledger to import into; name another source"


def test_a_ledger_of_another_schema_is_refused_on_both_sides(full: Path):
    other = fill(full.with_name("other.sqlite"), (ask("x"), answer()))
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    for into, source in ((full.with_name("into.sqlite"), other), (other, full)):
        with pytest.raises(RunFolderError, match=rf"^the ledger {other} has schema 7; this version .* reads schema 1"):
            import_calls(into, [source])
    with pytest.raises(RunFolderError, match=r"has schema 7"):
        prune(other, Selection(failed=True))
    text = full.with_name("text")
    text.write_text("no database, and long enough to look at\n" * 50)
    with pytest.raises(RunFolderError, match=rf"^the ledger {text} could not open: file is not a database"):
        import_calls(text, [full])


HOLDER = """
    import sys
    from pathlib import Path
    from instructgym.llm_backends.ledger_store import SqliteStore

    store = SqliteStore(Path(sys.argv[1]))
    print("open", flush=True)
    sys.stdin.read()
    store.close()
"""


def test_a_ledger_that_another_process_has_open_is_left_alone(full: Path):
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(full)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        message = rf"^the ledger {full} is in use by another process; wait until it ends, or stop it$"
        with pytest.raises(RunFolderError, match=message):
            prune(full, Selection(failed=True))
        with pytest.raises(RunFolderError, match=message):
            import_calls(full, [export(full)])
        assert prune(full, Selection(failed=True), dry_run=True).dropped == {
            ("reviewer", "train", "simulated"): Tally(failed=1)
        }
        process.stdin.close()
    assert len(held(full)) == 3


def test_a_full_disk_leaves_the_ledger_as_it_was(full: Path):
    many = fill(full.with_name("many.sqlite"), *((ask(str(i)), answer("x" * 5000)) for i in range(100)))
    script = f"""
        import resource, signal
        from pathlib import Path
        from instructgym.errors import RunFolderError
        from instructgym.llm_backends.ledger_transfer import import_calls

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            import_calls(Path({str(full)!r}), [Path({str(many)!r})])
        except RunFolderError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"the ledger {full} could not write: ")
    assert len(held(full)) == 3
    assert sum(tally.calls for tally in tallies(full).values()) == 2


def test_pruned_calls_are_asked_again_and_what_was_paid_stays_counted(full: Path):
    before = tallies(full)["expert", "evolve", "simulated"]
    pruned = prune(full, Selection(role="expert"))
    assert pruned.dropped == {("expert", "evolve", "simulated"): Tally(calls=2)}
    after = tallies(full)["expert", "evolve", "simulated"]
    assert (after.calls, after.attempts, after.prompt_tokens) == (0, 2, before.prompt_tokens)
    assert (after.charged_prompt_tokens, after.charged_completion_tokens) == charged(full) != (0, 0)
    transport = Scripted()
    stack = open_stack(transport, ledger_path=full)
    assert asyncio.run(stack.backend.complete(REQUESTS["plain"])) == answer()
    assert len(transport.asked) == 1
    asyncio.run(stack.aclose())


def test_pruning_shrinks_the_file(full: Path):
    many = fill(full.with_name("many.sqlite"), *((ask(str(i)), answer("x" * 5000)) for i in range(100)))
    pruned = prune(many, Selection(stage="evolve"))
    assert pruned.bytes_before > 500_000
    assert pruned.bytes_after == many.stat().st_size < 50_000
    assert not many.with_name("many.sqlite-wal").exists()


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(failed=True), {"plain", "rich"}),
        (Selection(role="reviewer"), {"plain", "rich"}),
        (Selection(stage="evolve"), {"failed"}),
        (Selection(model="other"), {"plain", "rich", "failed"}),
        (Selection(prompt_version="test/1", role="expert"), {"failed"}),
        (Selection(prompt_version="test/2"), {"plain", "rich", "failed"}),
        (Selection(role="expert", failed=True), {"plain", "rich", "failed"}),
        (Selection(key="no hex"), {"plain", "rich", "failed"}),
    ],
)
def test_a_selection_is_what_all_of_its_conditions_fit(full: Path, selection: Selection, left: set[str]):
    prune(full, selection)
    store = SqliteStore(full, read_only=True)
    asked = [row.request for row in store.rows()]
    store.close()
    assert {name for name, request in REQUESTS.items() if canonical(request) in map(canonical, asked)} == left


def test_calls_are_found_by_the_start_of_their_key(full: Path):
    store = SqliteStore(full, read_only=True)
    for key in held(full):
        assert [row.key for row in store.rows(Selection(key=key[:9]))] == [key]
        assert store.count(Selection(key=key)) == 1
    assert store.count(Selection(key="zz")) == 0
    store.close()


def test_a_dry_run_changes_no_byte(full: Path):
    before = full.read_bytes()
    pruned = prune(full, Selection(role="expert"), dry_run=True)
    assert pruned.dropped == {("expert", "evolve", "simulated"): Tally(calls=2)}
    assert full.read_bytes() == before


def test_pruning_needs_a_selection_and_a_ledger(full: Path):
    with pytest.raises(UsageError, match=r"^prune needs a selection; an empty one would drop every call$"):
        prune(full, Selection())
    with pytest.raises(
        RunFolderError, match=r"^there is no ledger at .*absent; expected a file that a run has written$"
    ):
        prune(full.with_name("absent"), Selection(failed=True))


def test_a_killed_import_leaves_nothing(full: Path):
    many = fill(full.with_name("many.sqlite"), *((ask(str(i)), answer("x" * 5000)) for i in range(100)))
    script = f"""
        import os
        from pathlib import Path
        from instructgym.llm_backends import ledger_transfer

        def all_but_the_end(calls):
            yield from calls
            os.kill(os.getpid(), 9)

        read = ledger_transfer._calls
        ledger_transfer._calls = lambda source: all_but_the_end(read(source))
        ledger_transfer._BATCH = 10
        ledger_transfer.import_calls(Path({str(full)!r}), [Path({str(many)!r})])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=30, check=False)
    assert done.returncode == -9
    assert len(held(full)) == 3
    assert import_calls(full, [many]) == [Imported(new=100)]
