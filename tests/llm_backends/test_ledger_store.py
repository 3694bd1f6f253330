import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import pytest

from instructgym.errors import RunFolderError, UsageError
from instructgym.llm_backends.ledger_rows import AttemptRow, CallRow, request_key
from instructgym.llm_backends.ledger_selection import Selection
from instructgym.llm_backends.ledger_store import SqliteStore
from instructgym.types import Usage

from .fakes import answer, ask


def call(i: int, text: str = "hi") -> CallRow:
    key, canonical = request_key(ask(model="m", sample=(i,)))
    return CallRow(key, "expert", "evolve", "m", canonical, answer(text))


def test_file_and_its_companions_are_the_owners_alone(tmp_path: Path):
    old = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "deep" / "ledger.sqlite")
        asyncio.run(store.put(call(1), ()))
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "deep").iterdir()}
        store.close()
    finally:
        os.umask(old)
    assert modes == {"ledger.sqlite": 0o600, "ledger.sqlite-wal": 0o600, "ledger.sqlite-shm": 0o600}


def test_other_files_and_other_schemas_are_refused(tmp_path: Path):
    text = tmp_path / "text"
    text.write_text("this is no database, and long enough to look at\n" * 50)
    with pytest.raises(RunFolderError, match=r"^the ledger .*text could not open: file is not a database"):
        SqliteStore(text)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(RunFolderError) as caught:
        SqliteStore(other)
    assert str(caught.value) == f"the file {other} is not a ledger of InstructGym; name another folder or file"
    newer = tmp_path / "newer.sqlite"
    SqliteStore(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(RunFolderError) as caught:
        SqliteStore(newer)
    assert str(caught.value) == (
        f"the ledger {newer} has schema 7; this version of InstructGym reads schema 1: use the version that wrote it"
    )
    with pytest.raises(
        RunFolderError, match=r"^there is no ledger at .*absent; expected a file that a run has written$"
    ):
        SqliteStore(tmp_path / "absent", read_only=True)


def test_closed_and_read_only_stores_say_so(tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    store = SqliteStore(path)
    asyncio.run(store.put(call(1), ()))
    reader = SqliteStore(path, read_only=True)
    assert reader.get(call(1).key) == answer()
    with pytest.raises(UsageError, match=r"is open for reading only$"):
        asyncio.run(reader.put(call(2), ()))
    reader.close()
    store.close()
    with pytest.raises(UsageError, match=r"is closed$"):
        asyncio.run(store.put(call(2), ()))
    with pytest.raises(UsageError, match=r"is closed$"):
        store.get(b"x")


def test_recording_in_a_folder_that_cannot_be_written_is_readable(tmp_path: Path):
    store = SqliteStore(tmp_path / "ledger.sqlite")
    asyncio.run(store.put(call(1), ()))
    store.close()
    tmp_path.chmod(0o500)
    try:
        reader = SqliteStore(tmp_path / "ledger.sqlite", read_only=True)
        assert reader.get(call(1).key) == answer()
        assert [row.key for row in reader.rows()] == [call(1).key.hex()]
        reader.close()
    finally:
        tmp_path.chmod(0o700)


async def test_many_writes_at_once_are_few_commits(tmp_path: Path):
    store = SqliteStore(tmp_path / "ledger.sqlite")
    commits = 0
    commit = store._commit

    def slow_commit(connection, batch):
        nonlocal commits
        commits += 1
        time.sleep(0.005)  # a disk that takes its time
        return commit(connection, batch)

    store._commit = slow_commit  # type: ignore[method-assign]
    await asyncio.gather(*(store.put(call(i), ()) for i in range(1000)))
    store.close()
    assert commits <= 20
    assert store.tallies()["expert", "evolve", "m"].calls == 1000


async def test_broken_file_fails_those_who_wait_and_all_after_them(tmp_path: Path):
    store = SqliteStore(tmp_path / "ledger.sqlite")
    await store.put(call(1), ())
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute("DROP TABLE calls")
    connection.close()
    ends = await asyncio.gather(*(store.put(call(i), ()) for i in range(2, 5)), return_exceptions=True)
    expected = (
        f"the ledger {tmp_path / 'ledger.sqlite'} could not write: no such table: calls; "
        "nothing that was committed is lost"
    )
    assert [str(end) for end in ends] == [expected] * 3
    with pytest.raises(RunFolderError, match=r"no such table: calls"):
        await store.put(call(9), ())
    store.close()


def test_full_disk_is_an_error_and_not_a_hang(tmp_path: Path):
    script = f"""
        import asyncio, resource
        from pathlib import Path
        from instructgym.errors import RunFolderError
        from instructgym.llm_backends.ledger_rows import CallRow
        from instructgym.llm_backends.ledger_store import SqliteStore
        from instructgym.types import Completion

        store = SqliteStore(Path({str(tmp_path)!r}) / "ledger.sqlite")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

        async def fill():
            for i in range(1000):
                await store.put(CallRow(i.to_bytes(16, "big"), "r", "s", "m", "[]", Completion("x" * 5000)), ())

        try:
            asyncio.run(fill())
        except RunFolderError as error:
            print(error)
        store.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"the ledger {tmp_path / 'ledger.sqlite'} could not write: ")
    assert "disk" in done.stdout
    store = SqliteStore(tmp_path / "ledger.sqlite")  # what was committed is there
    assert store.tallies()["r", "s", "m"].calls == store.count(Selection()) > 0
    store.close()


async def test_answers_on_disk_are_not_kept_in_memory(tmp_path: Path):
    store = SqliteStore(tmp_path / "ledger.sqlite")
    await store.put(call(0, "x" * 50_000), ())
    tracemalloc.start()
    for i in range(1, 301):
        await store.put(call(i, f"{i}" + "x" * 50_000), ())
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 1_000_000  # of 15 MB
    store.close()


def test_write_in_a_forked_child_is_an_error_and_not_a_hang(tmp_path: Path):
    script = f"""
        import asyncio, os
        from pathlib import Path
        from instructgym.errors import UsageError
        from instructgym.llm_backends.ledger_rows import CallRow
        from instructgym.llm_backends.ledger_store import SqliteStore
        from instructgym.types import Completion

        store = SqliteStore(Path({str(tmp_path)!r}) / "ledger.sqlite")
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(store.put(CallRow(b"1", "r", "s", "m", "[]", Completion("x")), ()))
            except UsageError as error:
                os._exit(7 if "create the env inside the worker" in str(error) else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


CLIENT = """
    import asyncio, os, sys
    from pathlib import Path
    from instructgym.llm_backends import Limits, open_stack
    from instructgym.types import Completion, Message, Request, Sampling, Usage

    folder, calls = Path(sys.argv[1]), int(sys.argv[2])
    bill = os.open(folder / "bill", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    class Paid:
        name = "paid"

        async def complete(self, request):
            os.write(bill, f"{request.sample[0]}\\n".encode())
            await asyncio.sleep(0.004)
            return Completion(f"answer {request.sample[0]}", usage=Usage(1, 1))

        async def aclose(self): ...

    async def main():
        stack = open_stack(Paid(), ledger_path=folder / "ledger.sqlite", limits=Limits(concurrency=8))

        async def one(i):
            request = Request("expert", "m", (Message("user", "x"),), Sampling(), "v/1", (i,))
            assert (await stack.backend.complete(request)).text == f"answer {i}"

        await asyncio.gather(*(one(i) for i in range(calls)))
        await stack.aclose()

    print("ready", flush=True)
    asyncio.run(main())
"""


def test_killed_run_pays_for_no_committed_call_twice(tmp_path: Path):
    rng = random.Random(0)
    calls, kills, concurrency = 1200, 0, 8
    command = [sys.executable, "-c", textwrap.dedent(CLIENT), str(tmp_path), str(calls)]
    for _ in range(7):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(rng.uniform(0.01, 0.12))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
    assert subprocess.run(command, capture_output=True, timeout=60, check=True).returncode == 0
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        paid_twice = connection.execute(
            "SELECT count(*) FROM (SELECT key FROM attempts WHERE status = 'ok' GROUP BY key HAVING count(*) > 1)"
        ).fetchone()[0]
        ok_calls = connection.execute("SELECT count(*) FROM calls WHERE status = 'ok'").fetchone()[0]
    connection.close()
    bill = (tmp_path / "bill").read_text().split()
    assert kills >= 5
    assert (paid_twice, ok_calls, len(set(bill))) == (0, calls, calls)
    assert len(bill) - calls <= kills * concurrency


DIES_ONCE = """
    import asyncio, os, sys
    from pathlib import Path
    from instructgym.llm_backends import ledger_store, open_stack
    from instructgym.types import Completion, Message, Request, Sampling

    folder, moment = Path(sys.argv[1]), sys.argv[2]

    class Paid:
        name = "paid"

        async def complete(self, request):
            with (folder / "bill").open("a") as bill:
                bill.write("paid ")
            return Completion("answer")

        async def aclose(self): ...

    def die(*_):
        os.kill(os.getpid(), 9)

    if moment == "received":  # the writer has the answer, and nothing of it is committed
        ledger_store.insert = die
    if moment == "inserted":  # the rows are in, the transaction is open
        insert = ledger_store.insert
        ledger_store.insert = lambda *batch: (insert(*batch), die())
    if moment == "committed":  # and nobody was told
        ledger_store._settle = die

    async def main():
        stack = open_stack(Paid(), ledger_path=folder / "ledger.sqlite")
        request = Request("expert", "m", (Message("user", "x"),), Sampling(), "v/1")
        text = (await stack.backend.complete(request)).text
        (folder / "used").write_text(text)
        await stack.aclose()

    asyncio.run(main())
"""


@pytest.mark.parametrize(("moment", "bills"), [("received", 2), ("inserted", 2), ("committed", 1)])
def test_an_answer_is_paid_again_only_if_it_was_not_committed(tmp_path: Path, moment: str, bills: int):
    command = [sys.executable, "-c", textwrap.dedent(DIES_ONCE), str(tmp_path)]
    assert subprocess.run([*command, moment], timeout=30, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "used").exists()
    subprocess.run([*command, "never"], timeout=30, check=True)
    assert (tmp_path / "used").read_text() == "answer"
    assert (tmp_path / "bill").read_text() == "paid " * bills
    store = SqliteStore(tmp_path / "ledger.sqlite", read_only=True)
    assert store.tallies()["expert", "", "m"].attempts == store.tallies()["expert", "", "m"].calls == 1
    store.close()


async def test_reading_all_rows_does_not_hold_back_the_log(tmp_path: Path):
    store = SqliteStore(tmp_path / "ledger.sqlite")
    await asyncio.gather(*(store.put(call(i), ()) for i in range(2000)))
    log = tmp_path / "ledger.sqlite-wal"
    rows = store.rows()
    next(rows)  # somebody has begun to read, and takes his time
    for start in range(2000, 12_000, 500):
        await asyncio.gather(*(store.put(call(i), ()) for i in range(start, start + 500)))
    assert log.stat().st_size < 6 * 2**20  # SQLite begins anew after 4 MiB
    assert sum(1 for _ in rows) == 11_999
    store.close()


async def test_a_log_that_a_long_read_has_grown_is_cut_afterwards(tmp_path: Path):
    store = SqliteStore(tmp_path / "ledger.sqlite")
    await store.put(call(0), ())
    log = tmp_path / "ledger.sqlite-wal"
    reader = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM calls").fetchone()
    for i in range(1, 6):
        await store.put(call(i, "x" * 5_000_000), ())
    grown = log.stat().st_size
    reader.execute("ROLLBACK")
    reader.close()
    for i in range(6, 9):
        await store.put(call(i), ())
    assert grown > 20 * 2**20
    assert log.stat().st_size <= 16 * 2**20
    store.close()


def test_attempts_without_usage_are_stored_as_unknown(tmp_path: Path):
    store = SqliteStore(tmp_path / "ledger.sqlite")
    store.put_soon(AttemptRow(b"k", "r", "s", "m", "CallTimeout", None, Usage(7, 9)))
    store.put_soon(AttemptRow(b"k", "r", "s", "m", "ok", Usage(1, 2), Usage(1, 2)))
    store.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        rows = connection.execute("SELECT status, prompt_tokens, charged_completion_tokens FROM attempts").fetchall()
    connection.close()
    assert rows == [("CallTimeout", None, 9), ("ok", 1, 2)]
    tally = store.tallies()["r", "s", "m"]
    assert (tally.attempts, tally.prompt_tokens, tally.charged_prompt_tokens) == (2, 1, 8)
