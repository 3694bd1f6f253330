"""The only reader of verdicts in words ("Answerable", "Tie"), and of the probabilities at a verdict's place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from instructgym.rewards.judging.scores import SPACE, token_at
from instructgym.types import Completion, TokenLogprob

__all__ = ["Ruling", "find_verdict", "read_verdict"]

_LINE = re.compile(r"[^\r\n]+")
_MARKS = re.compile(rf"(?:{SPACE}|[*_.])+")


@dataclass(frozen=True, slots=True)
class Ruling:
    """What each verdict got: 1.0 for the written one, or probabilities that sum to 1."""

    shares: Mapping[str, float]
    from_logprobs: bool = False


def find_verdict(reply: str, verdicts: Sequence[str]) -> tuple[str, int] | None:
    """(the verdict as it stands in `verdicts`, where it begins in `reply`) of the last line that is one alone.

    Case, spacing, Markdown bold and a full stop do not matter; any other word on the line makes it no verdict. `reply`
    is newly generated text only, never the prompt.
    """
    pattern = _pattern(tuple(verdicts))
    found = None
    for line in _LINE.finditer(reply):
        found = pattern.fullmatch(reply, line.start(), line.end()) or found
    if found is None:
        return None
    written = _folded(found["verdict"])
    return next(verdict for verdict in verdicts if _folded(verdict) == written), found.start("verdict")


def read_verdict(completion: Completion, verdicts: Sequence[str], *, logprobs: bool = False) -> Ruling | None:
    """The ruling of a reply; None if it holds no verdict.

    With `logprobs` the mass of the tokens at the verdict's place, normalised over `verdicts`: a token counts for the
    one verdict that it begins ("Not", " In", "A"). Where the reply carries no log-probabilities that fit, the verdict
    as it is written.
    """
    found = find_verdict(completion.text, verdicts)
    if found is None:
        return None
    verdict, start = found
    token = token_at(completion, start) if logprobs else None
    shares = None if token is None else _shares(token, verdicts)
    # A written verdict without mass of its own means that the tokens say something else.
    if shares is not None and shares[verdict] > 0:
        return Ruling(shares, from_logprobs=True)
    return Ruling({each: float(each == verdict) for each in verdicts})


def _shares(token: TokenLogprob, verdicts: Sequence[str]) -> dict[str, float] | None:
    alternatives = dict(token.top)
    alternatives.setdefault(token.token, token.logprob)
    mass = dict.fromkeys(verdicts, 0.0)
    for text, logprob in alternatives.items():
        start = _folded(text)
        begun = [verdict for verdict in verdicts if start and _folded(verdict).startswith(start)]
        if len(begun) == 1:
            mass[begun[0]] += math.exp(logprob)
    total = sum(mass.values())
    return {verdict: share / total for verdict, share in mass.items()} if total > 0 else None


def _folded(text: str) -> str:
    return _MARKS.sub("", text).lower()


@lru_cache(maxsize=32)
def _pattern(verdicts: tuple[str, ...]) -> re.Pattern[str]:
    words = "|".join(rf"{SPACE}+".join(map(re.escape, verdict.split())) for verdict in verdicts)
    return re.compile(rf"{SPACE}*(?P<mark>\*\*|__|\*|)(?P<verdict>(?ai:{words}))(?:\.(?P=mark)|(?P=mark)\.?){SPACE}*")
