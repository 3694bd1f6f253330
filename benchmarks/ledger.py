"""The ledger at scale: what a call costs in it, whether its memory and its log stay flat, and a file of a million rows.

    python benchmarks/ledger.py [--rows N] [--quick] [--json FILE]

The backend below answers at once, so that nothing but the ledger is measured: CPU of the whole process (the event
loop and the writer thread) for calls of 700 bytes that are answered with 600, less what the same calls cost without a
ledger. The file is built by the store's own `put`; opening and hits are measured in a fresh process.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median, quantiles

from _report import Report, parser

from instructgym.llm_backends.base import LLMBackend
from instructgym.llm_backends.ledger import Ledger
from instructgym.llm_backends.ledger_memory import MemoryStore
from instructgym.llm_backends.ledger_rows import AttemptRow, CallRow, Store, request_key
from instructgym.llm_backends.ledger_selection import Selection
from instructgym.llm_backends.ledger_store import SqliteStore
from instructgym.llm_backends.ledger_transfer import prune
from instructgym.llm_backends.retry import OK, Attempt
from instructgym.types import Completion, Message, Request, Sampling, Usage

CALLS = 20_000
FLAT_CALLS = 50_000
WARM_CALLS = 5_000
ROUND = 2_000  # rows that are put at once while the file is built
PROMPT = "Rewrite the instruction below so that it asks for more depth. " * 9
ANSWER = "Explain, with two worked examples, how the tides depend on the moon. " * 8
USAGE = Usage(180, 130)
MIB = 2**20


class Instant:
    """Answers at once; tells the ledger of its attempts as the retry layer does."""

    name = "instant"

    def __init__(self) -> None:
        self.ledger: Ledger | None = None

    async def complete(self, request: Request) -> Completion:
        await asyncio.sleep(0)
        if self.ledger is not None:
            self.ledger.note_attempt(request, Attempt(OK, USAGE))
        return Completion(ANSWER, usage=USAGE, model="m")

    async def aclose(self) -> None: ...


def request(index: int) -> Request:
    messages = (Message("system", "You rewrite instructions."), Message("user", f"{index} {PROMPT}"))
    return Request("expert", "m", messages, Sampling(), "rewrite/1", (index, 0), "evolve")


async def ask_all(backend: LLMBackend, start: int, count: int, concurrency: int) -> None:
    indices = iter(range(start, start + count))

    async def work() -> None:
        for index in indices:
            await backend.complete(request(index))

    await asyncio.gather(*(work() for _ in range(concurrency)))


def cpu_us(backend: LLMBackend, start: int, concurrency: int, calls: int) -> float:
    """Microseconds of CPU a call."""

    async def measure() -> float:
        await ask_all(backend, start, 1000, concurrency)
        started = time.process_time()
        await ask_all(backend, start + 1000, calls, concurrency)
        return (time.process_time() - started) / calls * 1e6

    return asyncio.run(measure())


def ledger_on(store: Store) -> Ledger:
    transport = Instant()
    transport.ledger = Ledger(transport, store)
    return transport.ledger


def cost(report: Report, folder: Path, calls: int) -> None:
    for concurrency in (64, 400):
        bare = min(cpu_us(Instant(), 0, concurrency, calls) for _ in range(3))
        memory = min(cpu_us(ledger_on(MemoryStore()), 0, concurrency, calls) for _ in range(3))
        on_disk = []
        for repeat in range(3):
            store = SqliteStore(folder / f"cost-{concurrency}-{repeat}.sqlite")
            on_disk.append(cpu_us(ledger_on(store), 0, concurrency, calls))
            if repeat == 2:
                hit = cpu_us(ledger_on(store), 0, concurrency, calls)
            store.close()
        report.row(f"call, in memory, {concurrency} in flight", memory - bare, "us CPU")
        cost_us = min(on_disk) - bare
        report.row(f"call, on disk, {concurrency} in flight", cost_us, "us CPU", "<= 100", cost_us <= 100)
        report.row(f"hit on disk, {concurrency} in flight", hit - bare, "us CPU")


def flat(report: Report, folder: Path, calls: int) -> None:
    store = SqliteStore(folder / "flat.sqlite")
    ledger = ledger_on(store)
    log = folder / "flat.sqlite-wal"

    async def measure() -> tuple[float, float]:
        await ask_all(ledger, 0, WARM_CALLS, 64)
        before = resident_mib()
        largest_log = 0
        for start in range(WARM_CALLS, calls, 1000):
            await ask_all(ledger, start, 1000, 64)
            largest_log = max(largest_log, log.stat().st_size)
        return resident_mib() - before, largest_log / MIB

    grown, largest_log = asyncio.run(measure())
    store.close()
    case = f"growth of memory from {WARM_CALLS} to {calls} calls"
    report.row(case, grown, "MiB", "< 10", grown < 10)
    report.row("largest write-ahead log meanwhile", largest_log, "MiB", "< 32", largest_log < 32)


def build(report: Report, path: Path, rows: int) -> list[bytes]:
    """Returns every thousandth key."""
    store = SqliteStore(path)
    keys: list[bytes] = []
    tenths: list[float] = []

    async def put(index: int) -> None:
        asked = request(index)
        key, canonical = request_key(asked)
        if index % 1000 == 0:
            keys.append(key)
        call = CallRow(key, asked.role, asked.stage, asked.model, canonical, Completion(ANSWER, usage=USAGE, model="m"))
        attempt = AttemptRow(key, asked.role, asked.stage, asked.model, OK, USAGE, USAGE)
        await store.put(call, (attempt,))

    async def fill() -> None:
        for tenth in range(10):
            low, high = rows * tenth // 10, rows * (tenth + 1) // 10
            started = time.process_time()
            for start in range(low, high, ROUND):
                await asyncio.gather(*(put(index) for index in range(start, min(start + ROUND, high))))
            tenths.append((time.process_time() - started) / (high - low) * 1e6)

    asyncio.run(fill())
    store.close()
    report.row(f"put, first tenth of {rows:,} rows", tenths[0], "us CPU")
    ratio = tenths[-1] / tenths[0]
    report.row("put, last tenth", tenths[-1], "us CPU", "<= 1.5 x the first", ratio <= 1.5)
    report.row("size of the file", path.stat().st_size / MIB, "MiB")
    return keys


READ = """
import json, sys, time
from pathlib import Path
from instructgym.llm_backends.ledger_store import SqliteStore

keys = [bytes.fromhex(key) for key in json.load(sys.stdin)]
started = time.perf_counter()
store = SqliteStore(Path(sys.argv[1]))
opened = time.perf_counter() - started
hits = []
for key in keys:
    started = time.perf_counter()
    assert store.get(key) is not None
    hits.append((time.perf_counter() - started) * 1e3)
store.close()
print(json.dumps({"open_s": opened, "hit_ms": hits}))
"""


def read(report: Report, path: Path, keys: list[bytes], temperature: str) -> None:
    random.Random(0).shuffle(keys)
    command = [sys.executable, "-c", READ, str(path)]
    text = json.dumps([key.hex() for key in keys])
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    hits = result["hit_ms"]
    report.row(f"opening, {temperature}", result["open_s"], "s", "<= 1", result["open_s"] <= 1)
    report.row(f"hit, {temperature}, median of {len(hits)}", median(hits), "ms", "<= 1", median(hits) <= 1)
    report.row(f"hit, {temperature}, 99th percentile", quantiles(hits, n=100)[98], "ms")


def resident_mib() -> float:
    """What this process holds now (its peak where the system does not say)."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def drop_from_page_cache(path: Path) -> bool:
    """Make the next reads of `path` come from the disk, where the system has a call for that."""
    import os

    if not hasattr(os, "posix_fadvise"):
        return False
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--rows", type=int, metavar="N", help="rows of the large file [1,000,000; quick: 50,000]")
    options = arguments.parse_args()
    rows = options.rows or (50_000 if options.quick else 1_000_000)
    report = Report("ledger", options.quick)
    with tempfile.TemporaryDirectory(prefix="instructgym-ledger-") as name:
        folder = Path(name)
        cost(report, folder, 5_000 if options.quick else CALLS)
        flat(report, folder, FLAT_CALLS)
        path = folder / "large.sqlite"
        keys = build(report, path, rows)
        cold = drop_from_page_cache(path)
        read(report, path, keys, "cold" if cold else "file in the page cache")
        read(report, path, keys, "warm")
        report.row(
            "dropping one call and shrinking the file", timed(lambda: prune(path, Selection(keys[0].hex()))), "s"
        )
    report.finish(options.json)


if __name__ == "__main__":
    main()
