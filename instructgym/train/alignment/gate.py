"""Can the judge of a round be believed? If not the round halts, because every later one would learn from its noise.

In one published study the student read as a judge 22% of the time after its first round, and agreed with people at
chance; the loop went on, because nothing looked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructgym.metrics.agreement import preference_accuracy
from instructgym.train.alignment.judgements import TIED
from instructgym.train.alignment.records import Judgement
from instructgym.train.alignment.settings import GateSettings

__all__ = ["AnchorResult", "GateReport", "check_gate", "exact_interval"]


@dataclass(frozen=True, slots=True)
class AnchorResult:
    """What the judge gave the two answers of an anchor pair, of which people know the better one; None: not read."""

    better: float | None
    worse: float | None

    @property
    def preference(self) -> float | None:
        """1.0 if the judge agrees with people, 0.0 if it does not, 0.5 for equal scores, None if it was not read."""
        if self.better is None or self.worse is None:
            return None
        if abs(self.better - self.worse) <= TIED:
            return 0.5
        return float(self.better > self.worse)


@dataclass(frozen=True)
class GateReport:
    """Whether a judge passed.

    `parse_rate` is the share of draws that could be read, `judged` how many answers got a score. `agreement` is the
    share of anchor pairs, of those that the judge decided, in which it agrees with people, and `interval` its exact
    interval; `tie_rate` the share of the read ones that it did not decide. `same_score` is the share of the answers
    with the commonest score, which is `common_score`; `spread` the scores' standard deviation in points. What cannot be
    told is None. `reasons` say why it did not pass, `notes` what could not be checked; both in words.
    """

    passed: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    judged: int
    parse_rate: float | None
    anchors: int
    anchors_read: int
    agreement: float | None
    interval: tuple[float, float] | None
    tie_rate: float | None
    same_score: float | None
    common_score: float | None
    spread: float | None

    @property
    def numbers(self) -> Mapping[str, Any]:
        """Everything but the verdict and its reasons, as JSON values."""
        return {
            "judged": self.judged,
            "parse_rate": self.parse_rate,
            "anchors": self.anchors,
            "anchors_read": self.anchors_read,
            "agreement": self.agreement,
            "interval": None if self.interval is None else list(self.interval),
            "tie_rate": self.tie_rate,
            "same_score": self.same_score,
            "common_score": self.common_score,
            "spread": self.spread,
            "notes": list(self.notes),
        }

    def explain(self) -> str:
        """The verdict in words, with its reasons or its numbers."""
        if not self.passed:
            return f"The judge did not pass: {'; '.join(self.reasons)}."
        parts = []
        if self.parse_rate is not None:
            parts.append(f"{self.parse_rate:.1%} of its replies could be read")
        if self.agreement is not None and self.interval is not None:
            low, high = self.interval
            parts.append(f"it agrees with {self.agreement:.1%} of the anchors it decided ({low:.1%} to {high:.1%})")
        parts += self.notes
        return f"The judge passed: {'; '.join(parts)}."


def check_gate(
    judgements: Sequence[Judgement],
    *,
    scale: tuple[float, float],
    anchors: Sequence[AnchorResult] = (),
    settings: GateSettings | None = None,
) -> GateReport:
    """Look at a round's judgements, and at the judge's scores of anchor pairs.

    It passes if enough draws could be read, if it agrees with people on anchors better than chance, and if its scores
    tell answers apart. Raises ValueError for a scale that does not go up.
    """
    settings = settings or GateSettings()
    low, high = scale
    if not low < high:
        raise ValueError(f"check_gate got the scale {low} to {high}; expected low < high.")
    reasons: list[str] = []
    notes: list[str] = []
    draws = sum(len(each.samples) for each in judgements)
    parse_rate = sum(each.valid for each in judgements) / draws if draws else None
    if parse_rate is None:
        reasons.append("it gave no judgement")
    elif parse_rate < settings.min_parse_rate:
        reasons.append(
            f"{parse_rate:.1%} of its {draws} replies could be read (at least {settings.min_parse_rate:.0%} expected)"
        )
    scores = [each.score for each in judgements if each.score is not None]
    same_score, common_score, spread = _variety(scores)
    if draws and not scores:
        reasons.append(f"none of its {len(judgements)} judgements has a score")
    reasons += _told_apart(same_score, common_score, spread, len(scores), high - low, settings)

    accuracy = preference_accuracy([each.preference for each in anchors], [1.0] * len(anchors))
    decided = accuracy.read - accuracy.ties
    interval = exact_interval(accuracy.right, decided, settings.confidence)
    if len(anchors) < settings.min_anchors:
        notes.append(f"agreement is not checked ({len(anchors)} anchors; {settings.min_anchors} or more expected)")
    else:
        reasons += _agreement_faults(accuracy.right, accuracy.ties, accuracy.read, len(anchors), interval, settings)
    return GateReport(
        passed=not reasons,
        reasons=tuple(reasons),
        notes=tuple(notes),
        judged=len(scores),
        parse_rate=parse_rate,
        anchors=len(anchors),
        anchors_read=accuracy.read,
        agreement=accuracy.right / decided if decided else None,
        interval=interval,
        tie_rate=accuracy.tie_rate,
        same_score=same_score,
        common_score=common_score,
        spread=spread,
    )


def _agreement_faults(
    right: int, ties: int, read: int, n: int, interval: tuple[float, float] | None, settings: GateSettings
) -> list[str]:
    if 2 * read < n:
        return [f"{read} of {n} anchor pairs could be read (at least half expected)"]
    if ties > settings.max_tie_rate * read:
        return [f"it gave equal scores in {ties} of {read} anchor pairs (at most {settings.max_tie_rate:.0%} expected)"]
    decided = read - ties
    if interval is None:
        return [f"it decided none of {n} anchor pairs"]
    low, high = interval
    if low > 0.5:
        return []
    how = "against people" if high < 0.5 else "at chance"
    return [
        f"its agreement with people is {how}: {right} of {decided} anchor pairs, {right / decided:.1%} (interval "
        f"{low:.1%} to {high:.1%}; expected all of it above 50%)"
    ]


def _told_apart(
    same_score: float | None,
    common_score: float | None,
    spread: float | None,
    count: int,
    width: float,
    settings: GateSettings,
) -> list[str]:
    if same_score is None or spread is None or count < 2:
        return []
    if same_score >= settings.max_same_score:
        return [
            f"its scores saturate: {same_score:.1%} of {count} answers got {common_score:g} (less than "
            f"{settings.max_same_score:.0%} expected)"
        ]
    if spread < settings.min_spread * width:
        return [
            f"its scores hardly differ: their standard deviation is {spread:.3f} points (at least "
            f"{settings.min_spread * width:.3g} expected)"
        ]
    return []


def _variety(scores: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """(the share of the commonest score, that score, the population standard deviation); scores to 0.1 are the same."""
    if not scores:
        return None, None, None
    counts = Counter(round(score, 1) for score in scores)
    # Of equally common ones the lowest, so that the report does not hang on an order.
    common = min(counts, key=lambda score: (-counts[score], score))
    mean = math.fsum(scores) / len(scores)
    spread = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return counts[common] / len(scores), common, spread


def exact_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Clopper and Pearson's interval of a share (Biometrika 26, 1934), which holds at any n; None for no trials."""
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"exact_interval got {successes} of {n}; expected 0 <= successes <= n.")
    if n == 0:
        return None
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high
