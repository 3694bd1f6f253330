"""A reward's answer is checked where it enters, so that no NaN, array or exception passes for a reward."""

from __future__ import annotations

import math
from typing import Any

from instructgym.errors import InstructGymError, RewardError
from instructgym.rewards.base import Reward
from instructgym.types import Score, Transition

__all__ = ["checked_score", "single_float"]

_EXCERPT = 60


async def checked_score(name: str, reward: Reward, transition: Transition) -> Score:
    """`reward.score`, or a `RewardError` that names the reward and the transition. Our own errors pass unchanged."""
    try:
        score: Any = await reward.score(transition)
    except InstructGymError:
        raise
    except Exception as error:
        raise raised(name, error, transition) from error
    if not isinstance(score, Score):
        got = f"a {type(score).__name__}"
        raise RewardError(f"reward '{name}' returned {got}; expected a Score.{_where(transition)}")
    if _is_plain(score):
        return score
    value = None if score.value is None else single_float(name, score.value, transition)
    terms = {key: single_float(f"{name}' in term '{key}", term, transition) for key, term in score.terms.items()}
    return Score(value, terms, score.usage, score.calls)


def _is_plain(score: Score) -> bool:
    """Whether all numbers are finite floats of Python's own already."""
    value, terms = score.value, score.terms.values()
    if value is not None and type(value) is not float:
        return False
    return math.isfinite(sum(terms, value or 0.0)) and all(type(term) is float for term in terms)


def raised(name: str, error: Exception, transition: Transition) -> RewardError:
    """The error for a reward that raised one."""
    return RewardError(
        f"reward '{name}' raised {type(error).__name__}: {error}; expected one float a transition.{_where(transition)}"
    )


def single_float(name: str, value: Any, transition: Transition) -> float:
    """`value` as a finite float. Raises `RewardError` for anything that is not one number."""
    shape = getattr(value, "shape", None)
    if shape is not None and tuple(shape) != ():
        got = f"an array of shape {tuple(shape)}"
    elif isinstance(value, (str, bytes, list, tuple, dict)) or not hasattr(value, "__float__"):
        got = f"a {type(value).__name__}"
    else:
        number = float(value)
        if math.isfinite(number):
            return number
        got = f"{number}"
    raise RewardError(f"reward '{name}' returned {got}; expected one float a transition.{_where(transition)}")


def _where(transition: Transition) -> str:
    text = " ".join(transition.parent.text.split())
    excerpt = text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 3]}..."
    return f" Transition: operation '{transition.operation}', step {transition.step}, parent {excerpt!r}."
