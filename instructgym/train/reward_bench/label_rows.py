"""What is said of raters and labels, as rows of one table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np

from instructgym.metrics.agreement import cohen_kappa, preference_accuracy, side, test_retest
from instructgym.metrics.correlation import kendall, spearman, spearman_interval
from instructgym.train.evaluate import bootstrap_interval
from instructgym.train.reward_bench.judge_runs import JudgeRunMeasures, measure_judge_run
from instructgym.train.reward_bench.label_files import Preference, Rated, read_judge_runs

__all__ = [
    "DIFFICULTY",
    "JUDGE",
    "LABELS",
    "LENGTH",
    "SCORES",
    "LabelRow",
    "accuracy_rows",
    "annotator_rows",
    "by_subset",
    "correlation_rows",
    "mean",
    "retest_rows",
    "stored_rows",
]

LENGTH = "length (words)"
"""The baseline in every table: what counting words reaches."""
JUDGE = "pairwise judge"
LABELS = "the labels themselves"
"""The ceiling: nobody agrees with labels better than they agree with themselves."""
DIFFICULTY = "WizardLM difficulty"
SCORES = "Prometheus MT-bench scores"
_RESAMPLES = 2000


@dataclass(frozen=True)
class LabelRow:
    """One number: what `who` reaches on `dataset` by `measure`.

    Of `n` items `missing` have no score, and `value` is over the others. `low` and `high` are the 95% percentile
    bootstrap over items, where there is one. `parts` are the numbers behind `value`; `note` is for people.
    """

    who: str
    dataset: str
    measure: str
    value: float | None
    n: int
    missing: int = 0
    low: float | None = None
    high: float | None = None
    note: str = ""
    parts: dict[str, float] = field(default_factory=dict, hash=False)


def correlation_rows(who: str, dataset: str, values: Sequence[float | None], labels: Sequence[float]) -> list[LabelRow]:
    """Spearman with its interval, and Kendall; None is a missing value."""
    pairs = [(value, label) for value, label in zip(values, labels, strict=True) if value is not None]
    x, y = [one for one, _ in pairs], [two for _, two in pairs]
    missing = len(values) - len(pairs)
    low, high = spearman_interval(x, y, resamples=_RESAMPLES, rng=np.random.default_rng(0)) or (None, None)
    return [
        LabelRow(who, dataset, "Spearman", spearman(x, y), len(values), missing, low, high),
        LabelRow(who, dataset, "Kendall tau-b", kendall(x, y), len(values), missing),
    ]


def accuracy_rows(who: str, items: Sequence[Preference], values: Sequence[float | None]) -> list[LabelRow]:
    """Accuracy and Cohen's kappa of preferences, subset by subset; accuracy is over the items whose label is no tie."""
    rows = []
    for subset, places in by_subset(items).items():
        own, labels = [values[place] for place in places], [items[place].label for place in places]
        found = preference_accuracy(own, labels)
        ties = f"ties {found.tie_rate:.0%}, strictly {found.strict:.3f}" if found.tie_rate else ""
        parts = {"strict": found.strict, "tie_rate": found.tie_rate, "coverage": found.coverage}
        rights = [
            1.0 - abs(side(value) - label)
            for value, label in zip(own, labels, strict=True)
            if value is not None and label != 0.5
        ]
        low, high = bootstrap_interval(np.array(rights), _RESAMPLES, 0) or (None, None)
        rows.append(
            LabelRow(
                who,
                subset,
                "accuracy (ties half)",
                found.half,
                found.n,
                found.n - found.read,
                low,
                high,
                ties,
                {key: value for key, value in parts.items() if value is not None},
            )
        )
        sides = [None if value is None else side(value) for value in own]
        rows.append(LabelRow(who, subset, "Cohen's kappa", cohen_kappa(sides, labels), len(own), own.count(None)))
    return rows


def annotator_rows(dataset: str, items: Sequence[Preference]) -> list[LabelRow]:
    """How far the annotators agree, where their votes are known."""
    votes = [item.votes for item in items if item.votes]
    if not votes:
        return []
    found = [cohen_kappa(one, two) for one, two in combinations(list(zip(*votes, strict=True)), 2)]
    defined = [kappa for kappa in found if kappa is not None]
    value = mean(defined) if defined else None
    return [LabelRow(LABELS, dataset, "Cohen's kappa", value, len(votes), note="of two annotators, mean over pairs")]


def retest_rows(items: Sequence[Rated]) -> list[LabelRow]:
    """How far repeated scores agree; the first row is what a reward's Spearman is to be held against."""
    ratings = [item.scores for item in items]
    complete = [[score for score in row if score is not None] for row in ratings if None not in row]
    against_rest = [
        spearman([row[place] for row in complete], [mean(row[:place] + row[place + 1 :]) for row in complete])
        for place in range(len(complete[0]) if complete and len(complete[0]) > 1 else 0)
    ]
    defined = [rho for rho in against_rest if rho is not None]
    retest = test_retest(ratings)
    absent = retest.items - retest.complete
    return [
        LabelRow(
            LABELS,
            SCORES,
            "Spearman",
            mean(defined) if defined else None,
            retest.items,
            absent,
            note="one scoring against the mean of the others",
        ),
        LabelRow(LABELS, SCORES, "test-retest correlation", retest.correlation, retest.items, absent),
        LabelRow(LABELS, SCORES, "test-retest exact agreement", retest.exact, retest.items, absent),
        LabelRow(LABELS, SCORES, "test-retest ICC(2,1)", retest.icc, retest.items, absent),
    ]


def stored_rows(data: Path) -> list[LabelRow]:
    """The best and the median of the stored judges by subset, and whether our metrics give what was published."""
    measured = [(run, measure_judge_run(run)) for run in read_judge_runs(data)]
    equal = [found.equals_published(run.published) for run, found in measured if run.published is not None]
    rows = []
    if equal:
        note = f"accuracies and agreement of {sum(equal)} of {len(equal)} runs equal the published ones"
        rows.append(
            LabelRow("stored judges", "LLMBar", "runs reproduced", sum(equal) / len(equal), len(equal), note=note)
        )
    for subset in dict.fromkeys(run.subset for run, _ in measured):
        chosen = [(run, found) for run, found in measured if run.subset == subset]
        run, best = max(chosen, key=lambda entry: entry[1].as_published.accuracy_average)
        rows += _judge_rows("best stored judge", subset, [best], len(run.labels), f"{run.judge}, {run.strategy}")
        every = [found for _, found in chosen]
        rows += _judge_rows("median stored judge", subset, every, len(run.labels), f"of {len(every)} runs")
    return rows


def _judge_rows(who: str, subset: str, runs: Sequence[JudgeRunMeasures], n: int, note: str) -> list[LabelRow]:
    accuracy = median(run.as_published.accuracy_average for run in runs) / 100
    agreed = median(run.as_published.agreement for run in runs) / 100
    kappas = [run.kappa for run in runs if run.kappa is not None]
    published = [run.as_published.kappa_average for run in runs if run.as_published.kappa_average is not None]
    return [
        LabelRow(who, subset, "accuracy, both orders", accuracy, n, note=f"{note}; unread is wrong"),
        LabelRow(who, subset, "Cohen's kappa", median(kappas) if kappas else None, n, note=note),
        LabelRow(
            who, subset, "kappa as published", median(published) if published else None, n, note="faulty: 2 against 0"
        ),
        LabelRow(who, subset, "agreement of the orders", agreed, n, note=note),
    ]


def by_subset(items: Sequence[Preference]) -> dict[str, list[int]]:
    """The places of the items of each subset."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.subset, []).append(place)
    return places


def mean(values: Sequence[float | None]) -> float:
    """Of those that there are, at least one."""
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present)
