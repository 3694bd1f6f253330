"""Near-duplicates in a set of instructions: time, memory and what is found, up to 100,000 texts.

Texts are made of the shipped seeds: one seed, half of another and random words of all, so that many share phrases and
few are duplicates. A third of the set is planted: copies with other case and punctuation, texts with one or two words
changed (what then has a Jaccard similarity of 0.7 or more counts as planted), and texts of other words whose vector is
near. Vectors are given, 384 numbers in clusters, one a seed; embedding itself is not measured here. Every drop is
checked against its definition, and every planted duplicate looked for.

    OMP_NUM_THREADS=1 python benchmarks/duplicates.py [--quick] [--json FILE] [--sizes 10000,30000,100000]

One thread of linear algebra is enough, and on a machine that does other work more of them wait for each other.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from _report import Report, parser
from numpy.typing import NDArray

from instructgym.metrics import Deduplicated, deduplicate, normalise
from instructgym.metrics.duplicates import exact_pairs
from instructgym.metrics.minhash import jaccard, minhash_pairs, shingles
from instructgym.metrics.near_vectors import embedding_pairs

DIM = 384
JACCARD, COSINE = 0.7, 0.9
PLANTED = 3  # one text of so many
LIMIT_S = 120.0
T = TypeVar("T")


@dataclass
class Set:
    """Texts, their vectors, and what was planted: of each kind (duplicate, the text that it was made of)."""

    texts: list[str]
    vectors: NDArray[np.float32]
    planted: dict[str, list[tuple[int, int]]]


def make(count: int, rng: np.random.Generator) -> Set:
    file = Path(__file__).resolve().parents[1] / "instructgym/data/seeds.jsonl"
    seeds = [json.loads(line)["instruction"].split() for line in file.read_text("utf-8").splitlines()]
    vocabulary = sorted({word for seed in seeds for word in seed})
    centres = rng.normal(size=(len(seeds), DIM)).astype(np.float32)
    texts: list[str] = []
    vectors = np.empty((count, DIM), np.float32)
    planted: dict[str, list[tuple[int, int]]] = {"exact": [], "minhash": [], "embedding": []}

    def fresh() -> tuple[list[str], NDArray[np.float32]]:
        one, two = rng.integers(len(seeds), size=2)
        more = [vocabulary[each] for each in rng.integers(len(vocabulary), size=int(rng.integers(8, 24)))]
        half = seeds[two][: max(len(seeds[two]) // 2, 1)]
        return [*seeds[one], *half, *more], centres[one] + rng.normal(size=DIM).astype(np.float32)

    for index in range(count):
        tokens, vector = fresh()
        if index and rng.random() < 1 / PLANTED:
            of = int(rng.integers(index))
            kind = ("exact", "minhash", "embedding")[int(rng.integers(3))]
            if kind == "exact":
                text = re.sub(r"\s+", "  ", texts[of].upper()) + " !"
            elif kind == "minhash":
                changed = texts[of].split()
                for place in rng.integers(len(changed), size=int(rng.integers(1, 3))):
                    changed[place] = vocabulary[int(rng.integers(len(vocabulary)))]
                text = " ".join(changed)
            else:
                text = " ".join(tokens)
                vector = vectors[of] + 0.35 / math.sqrt(DIM) * rng.normal(size=DIM).astype(np.float32)
            # Only what is a duplicate by the definition was planted: a change of two words in a short text is not.
            if (
                (kind == "exact" and normalise(text) == normalise(texts[of]))
                or (kind == "minhash" and jaccard(shingles(text), shingles(texts[of])) >= JACCARD)
                or (kind == "embedding" and float(vector @ vectors[of]) >= COSINE * float(np.linalg.norm(vector)))
            ):
                planted[kind].append((index, of))
        else:
            text = " ".join(tokens)
        texts.append(text)
        vectors[index] = vector / np.linalg.norm(vector)
    return Set(texts, vectors, planted)


def is_duplicate(data: Set, how: str, one: int, two: int) -> bool:
    """By definition, whatever the code under test says."""
    if how == "exact":
        return normalise(data.texts[one]) == normalise(data.texts[two])
    if how == "minhash":
        return jaccard(shingles(data.texts[one]), shingles(data.texts[two])) >= JACCARD
    return float(data.vectors[one] @ data.vectors[two]) >= COSINE - 1e-6


def wrong_drops(data: Set, found: Deduplicated) -> int:
    """Texts dropped for one that is not kept, or that they do not duplicate (nor does what equals them)."""
    kept = set(found.kept)
    how_of = {each.index: each for each in found.dropped}
    equal: dict[str, list[int]] = {}
    for index, text in enumerate(data.texts):
        equal.setdefault(normalise(text), []).append(index)
    wrong = 0
    for each in found.dropped:
        right = is_duplicate(data, each.found_by, each.index, each.duplicate_of)
        if each.found_by == "exact" and not right:
            right = any(
                other in how_of
                and how_of[other].duplicate_of == each.duplicate_of
                and is_duplicate(data, how_of[other].found_by, other, each.duplicate_of)
                for other in equal[normalise(data.texts[each.index])]
            )
        wrong += not right or each.duplicate_of not in kept
    return wrong


def recalled(found: set[tuple[int, int]], planted: list[tuple[int, int]]) -> float | None:
    """The share of planted pairs that were found."""
    return sum((of, index) in found for index, of in planted) / len(planted) if planted else None


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

    def stop(self) -> float:
        """In GB."""
        self._on = False
        self._thread.join()
        return (self.peak - self.start) / 1e9


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text("utf-8")) if status.is_file() else None
    return int(found[1]) * 1024 if found else 0


def timed(call: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    value = call()
    return time.perf_counter() - started, value


def by_datasketch(texts: list[str]) -> set[tuple[int, int]]:
    """The same with datasketch's MinHash and LSH, its candidates verified."""
    from datasketch import MinHash, MinHashLSH

    sets = [shingles(text) for text in texts]
    index = MinHashLSH(threshold=JACCARD, num_perm=128)
    found: set[tuple[int, int]] = set()
    hashes = MinHash.bulk([[each.to_bytes(8, "little") for each in one] for one in sets], num_perm=128)
    for later, one in enumerate(hashes):
        found |= {(other, later) for other in index.query(one) if jaccard(sets[other], sets[later]) >= JACCARD}
        index.insert(later, one)
    return found


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--sizes", default="", help="texts, with commas between")
    arguments = options.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",") if size]
    sizes = sizes or ([1_000, 4_000] if arguments.quick else [10_000, 30_000, 100_000])
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    facts = {"dim": DIM, "jaccard": JACCARD, "cosine": COSINE, "OMP_NUM_THREADS": threads}
    report = Report("duplicates", arguments.quick, facts)
    taken: dict[int, float] = {}
    for size in sizes:
        data = make(size, np.random.default_rng(size))
        full = size == 100_000
        words = np.mean([len(text.split()) for text in data.texts])
        report.row(f"{size:,} texts: words a text, mean", float(words), "words")
        memory = Memory()
        before = time.process_time()
        taken[size], found = timed(partial(deduplicate, data.texts, vectors=data.vectors))
        processor = time.process_time() - before
        peak = memory.stop()
        limit = (f"<= {LIMIT_S:g}", taken[size] <= LIMIT_S) if full else (None, None)
        report.row(f"{size:,} texts: exact, MinHash and embedding together", taken[size], "s", *limit)
        report.row(f"{size:,} texts: of that on the processor, all threads", processor, "s")
        report.row(f"{size:,} texts: peak anonymous memory above the data", peak, "GB")
        report.row(f"{size:,} texts: kept", len(found.kept), "texts")
        gone = {each.index for each in found.dropped}
        for kind, planted in data.planted.items():
            dropped = sum(each.found_by == kind for each in found.dropped)
            report.row(f"{size:,} texts: dropped by {kind}; planted {len(planted)}", dropped, "texts")
            both = sum(index not in gone and of not in gone for index, of in planted)
            bound = max(len(planted) // 100, 1) if kind == "minhash" else 0
            judged = (f"<= {bound}", both <= bound) if full else (None, None)
            report.row(f"{size:,} texts: planted {kind} pairs of which both were kept", both, "pairs", *judged)
        wrong = wrong_drops(data, found)
        report.row(f"{size:,} texts: dropped without a kept duplicate", wrong, "texts", "0", wrong == 0)
        relations: dict[str, Iterable[tuple[int, int]]] = {
            "exact": exact_pairs(data.texts),
            "minhash": minhash_pairs(data.texts, JACCARD),
            "embedding": embedding_pairs(data.vectors, COSINE),
        }
        for kind, pairs in relations.items():
            pairs_found: set[tuple[int, int]]
            seconds, pairs_found = timed(partial(set, pairs))  # generators: the work is done here
            report.row(f"{size:,} texts: all pairs by {kind}", seconds, "s")
            if kind != "exact":  # there a pair is (the first of the equal ones, a later one)
                report.row(f"{size:,} texts: recall of planted {kind}", recalled(pairs_found, data.planted[kind]), "")
                report.row(f"{size:,} texts: precision of {kind}", precision(data, kind, pairs_found), "")
        if importlib.util.find_spec("datasketch") is None:
            report.skip(f"{size:,} texts: datasketch, all pairs by minhash", "datasketch is not installed")
        else:
            seconds, pairs_found = timed(partial(by_datasketch, data.texts))
            report.row(f"{size:,} texts: datasketch, all pairs by minhash", seconds, "s")
            report.row(f"{size:,} texts: datasketch, recall", recalled(pairs_found, data.planted["minhash"]), "")
    if len(taken) > 1:
        slope = np.polyfit([math.log(size) for size in taken], [math.log(value) for value in taken.values()], 1)[0]
        report.row("exponent of the time in the number of texts", float(slope), "")
    report.finish(arguments.json)


def precision(data: Set, kind: str, found: set[tuple[int, int]]) -> float | None:
    """The share of found pairs that are duplicates by definition, of up to 20,000 of them."""
    some = sorted(found)[:20_000]
    return sum(is_duplicate(data, kind, *pair) for pair in some) / len(some) if some else None


if __name__ == "__main__":
    main()
