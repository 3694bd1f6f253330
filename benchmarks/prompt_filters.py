"""The ROUGE-L filter of new prompts against the plain loop over the same metric: same decisions, and how much faster.

Prompts are made of the shipped seeds: one seed, half of another and random words of all, so that many share phrases. A
quarter are near-copies of an earlier one with some of its words changed, dropped or moved, so that their ROUGE-L lies
on both sides of the limit. The filter takes all of them, one after the other, as a round does. The plain loop
(`metrics.max_rouge_l` over all that were accepted before) is measured on some of them, evenly spread, and its time for
all estimated from those; at each of them the decisions must be equal.

    OMP_NUM_THREADS=1 python benchmarks/prompt_filters.py [--quick] [--json FILE] [--size 10000] [--loop 300]
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from _report import Report, parser

from instructgym.metrics.rouge import max_rouge_l
from instructgym.metrics.text import words
from instructgym.train.alignment.rouge_index import RougeIndex

LIMIT = 0.7
NEAR = 4  # one prompt of so many is a near-copy
TARGET_RATIO = 20.0
LIMIT_S = 120.0


def make(count: int, rng: np.random.Generator) -> list[str]:
    file = Path(__file__).resolve().parents[1] / "instructgym/data/seeds.jsonl"
    seeds = [json.loads(line)["instruction"].split() for line in file.read_text("utf-8").splitlines()]
    vocabulary = sorted({word for seed in seeds for word in seed})
    texts: list[str] = []
    for index in range(count):
        if index and rng.integers(NEAR) == 0:
            tokens = texts[int(rng.integers(index))].split()
            for _ in range(int(rng.integers(1, max(len(tokens) // 2, 2)))):
                place = int(rng.integers(len(tokens)))
                kind = int(rng.integers(3))
                if kind == 0:
                    tokens[place] = vocabulary[int(rng.integers(len(vocabulary)))]
                elif kind == 1 and len(tokens) > 4:
                    del tokens[place]
                else:
                    tokens.insert(int(rng.integers(len(tokens))), tokens.pop(place))
        else:
            one, two = rng.integers(len(seeds), size=2)
            more = [vocabulary[each] for each in rng.integers(len(vocabulary), size=int(rng.integers(2, 16)))]
            tokens = [*seeds[one], *seeds[two][: len(seeds[two]) // 2], *more]
        texts.append(" ".join(tokens))
    return texts


def main() -> int:
    options = parser(__doc__ or "")
    options.add_argument("--size", type=int, default=10_000, help="prompts")
    options.add_argument("--loop", type=int, default=300, help="prompts that the plain loop looks at")
    arguments = options.parse_args()
    size = 2_000 if arguments.quick else arguments.size
    texts = make(size, np.random.default_rng(size))
    looked_at = set(np.linspace(0, size - 1, min(arguments.loop, size)).astype(int).tolist())
    report = Report("prompt_filters", arguments.quick, {"limit": LIMIT, "prompts": size, "looped": len(looked_at)})
    report.row("words a prompt, mean", float(np.mean([len(words(text)) for text in texts])), "words")

    index = RougeIndex(LIMIT)
    accepted: list[list[str]] = []
    fast_s = loop_s = compared = 0.0
    whole_s, slowest_s = 0.0, 0.0
    wrong = 0
    for number, text in enumerate(texts):
        started = time.perf_counter()
        similar = index.has_similar(text)
        checked = time.perf_counter()
        if number in looked_at:
            fast_s += checked - started
            best = max_rouge_l(text, accepted)
            loop_s += time.perf_counter() - checked
            compared += len(accepted)
            wrong += similar != (best > LIMIT)
        slowest_s = max(slowest_s, checked - started)
        if not similar:
            added = time.perf_counter()
            index.add(text)
            checked += time.perf_counter() - added
            accepted.append(words(text))
        whole_s += checked - started
    report.row("accepted", len(accepted), "prompts")
    report.row("decisions that differ from the plain loop's", wrong, f"of {len(looked_at)}", "0", wrong == 0)
    report.row("the filter, all prompts", whole_s, "s", f"<= {LIMIT_S:g}", whole_s <= LIMIT_S)
    report.row("the filter, a prompt", whole_s / size * 1e3, "ms")
    report.row("the filter, slowest prompt", slowest_s * 1e3, "ms")
    report.row("the plain loop, a pair", loop_s / max(compared, 1) * 1e6, "us")
    report.row("the plain loop, all prompts (estimated)", loop_s / len(looked_at) * size, "s")
    ratio = loop_s / fast_s
    report.row("plain loop / filter, same prompts", ratio, "times", f">= {TARGET_RATIO:g}", ratio >= TARGET_RATIO)
    report.finish(arguments.json)
    return 1 if report.missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
