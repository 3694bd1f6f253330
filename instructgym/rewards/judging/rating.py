"""A judge's number on a scale: as it is written, or expected over the probabilities at its place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from instructgym.llm_backends.base import LLM
from instructgym.rewards.judging.scores import parse_score, score_expectation
from instructgym.types import Completion, Sampling

__all__ = ["TOP_LOGPROBS", "Rating", "logprob_sampling", "read_rating"]

TOP_LOGPROBS = 20
"""How many alternatives are asked for: the most that common endpoints give."""


@dataclass(frozen=True, slots=True)
class Rating:
    """A score, and whether it came from log-probabilities."""

    value: float
    from_logprobs: bool = False


def logprob_sampling(llm: LLM, logprobs: bool) -> Sampling | None:
    """The LLM's sampling with log-probabilities asked for, or None (its own) if they are not wanted."""
    return replace(llm.sampling, top_logprobs=llm.sampling.top_logprobs or TOP_LOGPROBS) if logprobs else None


def read_rating(
    completion: Completion, *, low: int, high: int, label: str = "Score", logprobs: bool = False
) -> Rating | None:
    """The rating of a reply; None if no score within `low`..`high` can be read.

    With `logprobs` the expectation over the score tokens (Deita, arXiv 2312.15685), where the reply carries them.
    """
    expected = score_expectation(completion, low=low, high=high, label=label) if logprobs else None
    if expected is not None:
        return Rating(expected, from_logprobs=True)
    written = parse_score(completion.text, low=low, high=high, label=label)
    return None if written is None else Rating(written)
