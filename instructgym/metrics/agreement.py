"""Whether two raters agree: judges with people, a judge with itself, one order of two answers with the other.

A preference is a number: 1.0 the first of two is better, 0.0 the second, 0.5 neither; between them a judge's
probability. None is a verdict that could not be read; it agrees with nothing and is counted.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

__all__ = [
    "PreferenceAccuracy",
    "Retest",
    "cohen_kappa",
    "llmbar_published_kappa",
    "llmbar_published_order_kappa",
    "order_agreement",
    "preference_accuracy",
    "side",
    "test_retest",
]


@dataclass(frozen=True)
class PreferenceAccuracy:
    """Preferences against labels, over the `n` items whose label is no tie: `read` of them could be read, of those
    `right` are on the label's side and `ties` on neither."""

    right: int
    ties: int
    read: int
    n: int

    @property
    def strict(self) -> float | None:
        """The share of the read ones that are right, a tie being wrong; None if none was read."""
        return self.right / self.read if self.read else None

    @property
    def half(self) -> float | None:
        """The same with a tie being half right."""
        return (self.right + self.ties / 2) / self.read if self.read else None

    @property
    def tie_rate(self) -> float | None:
        """The share of the read ones that are ties."""
        return self.ties / self.read if self.read else None

    @property
    def coverage(self) -> float | None:
        """The share that was read; None without items."""
        return self.read / self.n if self.n else None

    @property
    def of_all(self) -> float | None:
        """The share of all items that are right: the unread are wrong, as LLMBar counts; None without items."""
        return self.right / self.n if self.n else None


def side(preference: float) -> float:
    """1.0, 0.0 or, for exactly 0.5, 0.5. Raises ValueError for what is not in 0..1."""
    if not 0.0 <= preference <= 1.0:
        raise ValueError(f"a preference is a number from 0 to 1, or None; got {preference}.")
    return 0.5 if preference == 0.5 else float(preference > 0.5)


def preference_accuracy(preferences: Sequence[float | None], labels: Sequence[float]) -> PreferenceAccuracy:
    """How often preferences are right; items whose label is a tie (0.5) are left out.

    Raises ValueError unless there are as many of one as of the other, all within 0..1.
    """
    _as_many(preferences, labels)
    pairs = [(one, side(label)) for one, label in zip(preferences, labels, strict=True) if label != 0.5]
    read = [(side(one), label) for one, label in pairs if one is not None]
    return PreferenceAccuracy(
        right=sum(one == label for one, label in read),
        ties=sum(one == 0.5 for one, _ in read),
        read=len(read),
        n=len(pairs),
    )


def cohen_kappa(first: Sequence[Hashable | None], second: Sequence[Hashable | None]) -> float | None:
    """Agreement beyond chance, ``(p_o - p_e) / (1 - p_e)`` (Cohen 1960), of any number of categories, over items that
    both rated.

    1 for raters who always agree, 0 for chance. None where nothing was rated by both, or where both gave one and the
    same category throughout, so that chance agrees always.
    """
    _as_many(first, second)
    pairs = [(one, two) for one, two in zip(first, second, strict=True) if one is not None and two is not None]
    if not pairs:
        return None
    n = len(pairs)
    observed = sum(one == two for one, two in pairs) / n
    categories = {category for pair in pairs for category in pair}
    by_chance = sum(
        sum(one == category for one, _ in pairs) * sum(two == category for _, two in pairs) for category in categories
    ) / (n * n)
    return None if by_chance == 1.0 else (observed - by_chance) / (1.0 - by_chance)


def llmbar_published_kappa(winners: Sequence[int | None], labels: Sequence[int]) -> float | None:
    """The kappa that LLMBar (arXiv 2310.07641) publishes beside its accuracies. It is **not** Cohen's kappa of the two.

    Its fault: winners are mapped to 1 ("the first") and 0 (the second, and whatever could not be read), while the
    labels stay 1 and 2. So "second" never agrees with "second": 0 and 2 are different categories, all agreement is on
    the first answers, and an unparsed verdict counts as the second. A judge that is always right gets a kappa far below
    1. For the correct number give winners and labels to `cohen_kappa`.
    """
    return cohen_kappa(_first_or_not(winners), list(labels))


def llmbar_published_order_kappa(forward: Sequence[int | None], backward: Sequence[int | None]) -> float | None:
    """The kappa between a judge's two orders that LLMBar publishes.

    Here both sides are mapped alike, so one fault is left: what could not be read counts as a vote for the second. It
    is Cohen's kappa where everything was read; otherwise `cohen_kappa` gives the correct number.
    """
    return cohen_kappa(_first_or_not(forward), _first_or_not(backward))


def order_agreement(
    forward: Sequence[float | None], backward: Sequence[float | None], *, unread_agrees: bool = False
) -> float | None:
    """The share of items on which a judge prefers the same answer in both orders (position consistency), both
    preferences being of the answer that is first in the original order.

    Items that were not read in both are left out, None if all were. With `unread_agrees` none is left out, and "not
    read" is a verdict of its own: twice unread agrees, once unread does not. That is how LLMBar counts.
    """
    _as_many(forward, backward)
    sides = [
        (None if one is None else side(one), None if two is None else side(two))
        for one, two in zip(forward, backward, strict=True)
    ]
    if not unread_agrees:
        sides = [pair for pair in sides if None not in pair]
    return sum(one == two for one, two in sides) / len(sides) if sides else None


@dataclass(frozen=True)
class Retest:
    """The same rater on the same items again. `exact`: share of the pairs of ratings of an item that are equal;
    `correlation`: mean of Pearson's r over pairs of rounds; `icc`: ICC(2,1) of the `complete` items, which were rated
    in every round; `items` are all, `missing` counts the ratings that are not there."""

    exact: float | None
    correlation: float | None
    icc: float | None
    items: int
    complete: int
    missing: int


def test_retest(ratings: Sequence[Sequence[float | None]]) -> Retest:  # items x rounds
    """How far repeated ratings of the same items agree; a missing rating leaves out the pairs that it is in.

    ICC(2,1) is the two-way random, absolute, single-rater form (Shrout and Fleiss 1979). What is undefined (one round,
    no variance) is None. Raises ValueError for rows of different lengths, and for what is not finite.
    """
    rounds = {len(row) for row in ratings}
    if len(rounds) > 1:
        raise ValueError(f"test_retest got rows of {sorted(rounds)} ratings; expected as many a row.")
    if any(rating is not None and not math.isfinite(rating) for row in ratings for rating in row):
        raise ValueError("test_retest got a rating that is not finite; a missing one is None.")
    k = rounds.pop() if rounds else 0
    equal = [one == two for row in ratings for one, two in combinations(row, 2) if one is not None and two is not None]
    found = []
    for i, j in combinations(range(k), 2):
        pairs = [
            (one, two) for one, two in ((row[i], row[j]) for row in ratings) if one is not None and two is not None
        ]
        r = _pearson([one for one, _ in pairs], [two for _, two in pairs])
        if r is not None:
            found.append(r)
    complete = [[rating for rating in row if rating is not None] for row in ratings if None not in row]
    return Retest(
        exact=sum(equal) / len(equal) if equal else None,
        correlation=math.fsum(found) / len(found) if found else None,
        icc=_icc(complete, k),
        items=len(ratings),
        complete=len(complete),
        missing=sum(rating is None for row in ratings for rating in row),
    )


test_retest.__test__ = False  # type: ignore[attr-defined]  # a name that pytest would collect


def _icc(rows: Sequence[Sequence[float]], k: int) -> float | None:
    if len(rows) < 2 or k < 2:
        return None
    table = np.array(rows, dtype=np.float64)
    n = len(table)
    mean = table.mean()
    items, rounds = table.mean(axis=1), table.mean(axis=0)
    between_items = k * float(((items - mean) ** 2).sum()) / (n - 1)
    between_rounds = n * float(((rounds - mean) ** 2).sum()) / (k - 1)
    rest = table - items[:, None] - rounds[None] + mean
    error = float((rest**2).sum()) / ((n - 1) * (k - 1))
    whole = between_items + (k - 1) * error + k * (between_rounds - error) / n
    return (between_items - error) / whole if whole > 0 else None


def _pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    if len(x) < 2 or min(x) == max(x) or min(y) == max(y):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _first_or_not(winners: Sequence[int | None]) -> list[int]:
    return [1 if winner == 1 else 0 for winner in winners]


def _as_many(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second):
        raise ValueError(f"got {len(first)} and {len(second)} ratings; expected as many of one as of the other.")
