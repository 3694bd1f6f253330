"""What became of a round's prompts: the pairs, and for each prompt without one the filter that took it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from instructgym.train.alignment.records import Pair

__all__ = ["PAIR_REASONS", "PairReport", "report_of"]

PAIR_REASONS = {
    "no_answer": "no answer was asked for; see stage 'candidates'",
    "failed": "the call for an answer failed; see the messages in the candidates",
    "empty": "an answer was empty",
    "cut": "an answer met the token limit; raise candidates.max_tokens",
    "unjudged": "an answer has no judgement, because the call to the judge failed",
    "unparsed": "too few of a judge's replies could be read; see the replies in the judgements",
    "equal_texts": "the answers say the same; raise the temperature of the candidates",
    "tie": "the answers got equal scores; take more answers or judge samples, or break_ties",
    "margin": "the scores differ by less than pairs.min_margin",
    "no_demonstration": "there is no demonstration for the prompt",
    "no_reference": "the prompt has no known answer",
    "demonstration_failed": "the call for the demonstration failed",
    "demonstration_empty": "the demonstration was empty",
    "demonstration_cut": "the demonstration met the token limit; raise the teacher's max_tokens",
    "duplicate": "a prompt of the same text has a pair already",
}
"""Why a prompt has no pair, and what to do."""


@dataclass(frozen=True)
class PairReport:
    """The pairs of a round, one a prompt at most.

    `prompts` is how many there were; `dropped` how many of them have no pair, by the filter that took them (a key of
    `PAIR_REASONS`); `answers_out` how many single answers were out of the running, by reason. `scores` are the counts
    of scores, rounded to whole points, over ``all`` scored answers, the ``chosen`` and the ``rejected`` ones; `lengths`
    are of the chosen and rejected texts, in characters.
    """

    pairs: tuple[Pair, ...]
    prompts: int
    dropped: Mapping[str, int]
    answers_out: Mapping[str, int] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    lengths: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def margin(self) -> float | None:
        """The mean margin in points; None if no pair has one."""
        margins = [pair.margin for pair in self.pairs if pair.margin is not None]
        return fmean(margins) if margins else None

    @property
    def longer_chosen(self) -> float | None:
        """The share of pairs whose chosen answer is the longer one, equal lengths counting half; None without pairs."""
        if not self.pairs:
            return None
        signs = [
            (len(each.chosen) > len(each.rejected)) - (len(each.chosen) < len(each.rejected)) for each in self.pairs
        ]
        return (fmean(signs) + 1) / 2

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pairs themselves, as JSON values."""
        return {
            "prompts": self.prompts,
            "pairs": len(self.pairs),
            "dropped": dict(self.dropped),
            "answers_out": dict(self.answers_out),
            "scores": {name: dict(counts) for name, counts in self.scores.items()},
            "lengths": {name: dict(numbers) for name, numbers in self.lengths.items()},
            "margin": self.margin,
            "longer_chosen": self.longer_chosen,
        }

    def explain(self) -> str:
        """Which filter took the prompts, with counts, the one that took most first; ends in a full stop."""
        if not self.prompts:
            return "There were no prompts."
        prompts = f"{self.prompts} prompt{'s' if self.prompts > 1 else ''}"
        if not self.dropped:
            return f"All {prompts} gave a pair." if self.prompts > 1 else "The one prompt gave a pair."
        most_first = sorted(self.dropped.items(), key=lambda item: (-item[1], item[0]))
        parts = "; ".join(f"{count} by '{reason}' ({PAIR_REASONS[reason]})" for reason, count in most_first)
        kept = f"{len(self.pairs)} gave a pair" if self.pairs else "none gave a pair"
        return f"Of {prompts} {kept}. Dropped: {parts}."


def report_of(
    pairs: Sequence[Pair],
    prompts: int,
    dropped: Mapping[str, int],
    answers_out: Mapping[str, int],
    scores: Sequence[float],
) -> PairReport:
    """The report, its reasons in the order of `PAIR_REASONS`. `scores` are those of all answers."""
    histograms = {
        "all": _histogram(scores),
        "chosen": _histogram([pair.chosen_score for pair in pairs if pair.chosen_score is not None]),
        "rejected": _histogram([pair.rejected_score for pair in pairs if pair.rejected_score is not None]),
    }
    lengths = {
        "chosen": _lengths([len(pair.chosen) for pair in pairs]),
        "rejected": _lengths([len(pair.rejected) for pair in pairs]),
    }
    return PairReport(
        tuple(pairs), prompts, _in_order(dropped), _in_order(answers_out), histograms, lengths if pairs else {}
    )


def _in_order(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: counts[reason] for reason in PAIR_REASONS if counts.get(reason)}


def _histogram(scores: Sequence[float]) -> dict[str, int]:
    """Counts by the nearest whole point, from the lowest on; a half goes up."""
    counts = Counter(math.floor(score + 0.5) for score in scores)
    return {str(point): counts[point] for point in sorted(counts)}


def _lengths(lengths: Sequence[int]) -> dict[str, float]:
    return {"mean": fmean(lengths), "median": float(median(lengths)), "max": float(max(lengths))} if lengths else {}
