"""The only reader of scores on a scale, and of the score tokens' probabilities."""

from __future__ import annotations

import math
import re
from functools import lru_cache

from instructgym.types import Completion, TokenLogprob

__all__ = ["expected_score", "find_score", "parse_score", "score_expectation", "token_at"]

# Zero-width characters are spacing here: they may stand around a verdict, and glue nothing together.
SPACE = "[\\s\u00a0\u200b\u200c\u200d\u2060\ufeff]"
_LINE = re.compile(r"[^\r\n]+")
_NUMBER_TOKEN = re.compile(rf"(?:{SPACE}|[*_#:=])*+(?P<number>[0-9]{{1,9}})(?:{SPACE}|[*_.])*+")


def parse_score(reply: str, *, low: float, high: float, label: str = "Score") -> float | None:
    """The score of the last line that is ``Score: N`` alone; None if there is none, or if it is out of range.

    The label's case, Markdown bold, a full stop and ``N/HIGH`` are allowed; a reply that is a bare number is one too.
    The last such line decides: an out-of-range score there, or one of another scale (``N/100``), is unparsable,
    whatever stood before. `reply` is newly generated text only.
    """
    found = find_score(reply, high=high, label=label)
    return found[0] if found is not None and low <= found[0] <= high else None


def find_score(reply: str, *, high: float, label: str = "Score") -> tuple[float, int] | None:
    """(the score, where its number begins in `reply`), range unchecked; None where `parse_score` finds no score."""
    pattern = _pattern(label)
    last = None
    for line in _LINE.finditer(reply):
        last = pattern.fullmatch(reply, line.start(), line.end()) or last
    if last is None:
        last = _pattern("").fullmatch(reply)
    if last is None or (last["of"] is not None and float(last["of"]) != high):
        return None
    return float(last["number"]), last.start("number")


@lru_cache(maxsize=32)
def _pattern(label: str) -> re.Pattern[str]:
    # Every repetition is possessive: a line of a hundred thousand spaces or stars takes no longer than it is.
    marks = rf"{SPACE}*+[*_]*+{SPACE}*+"
    head = rf"(?ai:{re.escape(label)})[*_]*+{SPACE}*+[:=]{marks}" if label else ""
    number = r"(?P<number>-?[0-9]++(?:\.[0-9]++)?+)"
    scale = rf"(?:{SPACE}*+/{SPACE}*+(?P<of>[0-9]++(?:\.[0-9]++)?+))?+"
    return re.compile(rf"{SPACE}*+[*_#]*+{marks}{head}{number}{scale}[*_]*+\.?+[*_]*+{SPACE}*+")


def token_at(completion: Completion, start: int) -> TokenLogprob | None:
    """The generated token that holds character `start` of the text; None if its place is not known.

    The tokens' texts must join to the reply from its beginning up to and with that token, or from the beginning of
    its line to the reply's end: a token of part of a character (before it) or of an end mark (after it) has a text
    that is not in the reply. Spacing at the reply's ends may be missing from it.
    """
    tokens = completion.logprobs
    core = completion.text.strip()
    place = start - (len(completion.text) - len(completion.text.lstrip()))
    if not tokens or not 0 <= place < len(core):
        return None
    joined = "".join(token.token for token in tokens)
    line = max(core.rfind("\n", 0, place), core.rfind("\r", 0, place)) + 1
    from_beginning = len(joined) - len(joined.lstrip()), 0, None
    to_end = len(joined.rstrip()) - len(core), line, len(core)
    for offset, left, right in (from_beginning, to_end):
        found = _covering(tokens, place + offset)
        if found is None:
            continue
        token, begin, end = found
        # The characters of the reply on which tokens and text have to agree.
        left = max(min(left, begin - offset), 0)
        right = min(end - offset, len(core)) if right is None else right
        if offset + left >= 0 and joined[offset + left : offset + right] == core[left:right]:
            return token
    return None


def _covering(tokens: tuple[TokenLogprob, ...], place: int) -> tuple[TokenLogprob, int, int] | None:
    """(the token, where it begins, where it ends) that holds character `place` of the joined tokens."""
    end = 0
    for token in tokens:
        begin, end = end, end + len(token.token)
        if begin <= place < end:
            return token, begin, end
    return None


def expected_score(completion: Completion, *, low: int, high: int, label: str = "Score") -> float | None:
    """`score_expectation`, or the score as it is written where there is none; None if the reply cannot be read."""
    expected = score_expectation(completion, low=low, high=high, label=label)
    return parse_score(completion.text, low=low, high=high, label=label) if expected is None else expected


def score_expectation(completion: Completion, *, low: int, high: int, label: str = "Score") -> float | None:
    """``sum of k P(k)`` over the score tokens low..high at the place of the score (Deita, arXiv 2312.15685).

    The mass is normalised over the scores. None if the reply holds no score in range, if it carries no
    log-probabilities that fit, or if the token there is not the whole score ("4" of "4.5", "1" of "10"): then the
    tokens do not say what the scores' probabilities are.
    """
    found = find_score(completion.text, high=high, label=label)
    if found is None or not low <= found[0] <= high:
        return None
    token = token_at(completion, found[1])
    if token is None or _number(token.token) != found[0]:
        return None
    mass = dict.fromkeys(range(low, high + 1), 0.0)
    for text, logprob in {token.token: token.logprob, **dict(token.top)}.items():
        score = _number(text)
        if score in mass and not math.isnan(logprob):
            mass[score] += math.exp(min(logprob, 0.0))
    total = sum(mass.values())
    if total == 0.0 or _ambiguous(mass):
        return None
    return sum(score * share for score, share in mass.items()) / total


def _number(token: str) -> int | None:
    match = _NUMBER_TOKEN.fullmatch(token)
    return None if match is None else int(match["number"])


def _ambiguous(mass: dict[int, float]) -> bool:
    """Whether a score's token may be the first digit of another score: "1" of 10, and no 10 among the tokens."""
    if any(share > 0 for score, share in mass.items() if score > 9):
        return False
    return any(mass.get(int(str(score)[0]), 0.0) > 0 for score in mass if score > 9)
