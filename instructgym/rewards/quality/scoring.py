"""What the rewards of this folder share: their options checked, a judgement turned into a score."""

from __future__ import annotations

import math

from instructgym.errors import ConfigError
from instructgym.rewards.judging.asking import Judgement
from instructgym.rewards.judging.rating import Rating
from instructgym.types import Score

__all__ = ["check_flag", "check_number", "check_whole", "score_of"]


def score_of(name: str, judgement: Judgement[Rating], *, logprobs: bool = False) -> Score:
    """The score of one judgement.

    Term ``/unparsable`` counts replies that could not be read; with `logprobs`, ``/from_logprobs`` is 1.0 if the
    endpoint gave log-probabilities that fit the reply, and 0.0 if the written verdict had to do.
    """
    terms = {f"{name}/unparsable": float(judgement.unparsable)}
    rating = judgement.value
    if rating is None:
        return Score(None, terms, judgement.usage, judgement.calls)
    if logprobs:
        terms[f"{name}/from_logprobs"] = float(rating.from_logprobs)
    return Score(rating.value, {name: rating.value, **terms}, judgement.usage, judgement.calls)


def check_flag(name: str, option: str, value: bool) -> bool:
    """`value`, or a `ConfigError` that names the reward and the option."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} got {option} = {value!r}; expected true or false.")
    return value


def check_whole(name: str, option: str, value: int, least: int) -> int:
    """`value`, or a `ConfigError` that names the reward and the option."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} got {option} = {value!r}; expected a whole number of {least} or more.")
    return value


def check_number(name: str, option: str, value: float) -> float:
    """`value` as a float above 0, or a `ConfigError` that names the reward and the option."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} got {option} = {value!r}; expected a finite number above 0.")
    return float(value)
