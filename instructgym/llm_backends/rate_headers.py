"""What an endpoint says in its replies' headers of how much may still be sent, and from when on more."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Allowance", "requests_left", "tokens_left"]

_REQUESTS = (  # remaining, reset, limit: OpenAI's, the IETF draft's, the plain ones
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests", "x-ratelimit-limit-requests"),
    ("ratelimit-remaining", "ratelimit-reset", "ratelimit-limit"),
    ("x-ratelimit-remaining", "x-ratelimit-reset", "x-ratelimit-limit"),
)
_TOKENS = (("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens", "x-ratelimit-limit-tokens"),)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DATE_S = 1e9  # as a duration 31 years, as seconds since the epoch the year 2001


class Allowance(NamedTuple):
    """`left` units until `reset_s` seconds from now, when there are `limit` again (None: unsaid)."""

    left: int
    reset_s: float
    limit: int | None = None


def requests_left(headers: Mapping[str, str], now_s: float) -> Allowance | None:
    """Requests; None if the headers do not say, or what they say is no number or no time.

    `now_s` is the time since the epoch. `headers` must find lower-case names.
    """
    return _allowance(headers, _REQUESTS, now_s)


def tokens_left(headers: Mapping[str, str], now_s: float) -> Allowance | None:
    """Tokens; as `requests_left`."""
    return _allowance(headers, _TOKENS, now_s)


def _allowance(
    headers: Mapping[str, str], families: tuple[tuple[str, str, str], ...], now_s: float
) -> Allowance | None:
    for remaining, reset, limit in families:
        text = headers.get(remaining)
        if text is None:
            continue
        left, reset_s = _number(text), _seconds(headers.get(reset, ""), now_s)
        if left is not None and reset_s is not None:
            full = _number(headers.get(limit, ""))
            return Allowance(int(left), reset_s, None if full is None else int(full))
    return None


def _number(text: str) -> float | None:
    """A finite number that is not negative."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0.0 <= number < math.inf else None


def _seconds(text: str, now_s: float) -> float | None:
    """Seconds from now: a number of them, seconds or milliseconds since the epoch, or words such as ``6m0s``."""
    number = _number(text)
    if number is None:
        parts = _DURATION.findall(text)
        if not parts or "".join(value + unit for value, unit in parts) != text.strip():
            return None
        return sum(float(value) * _UNITS_S[unit] for value, unit in parts)
    if number < _DATE_S:
        return number
    return max(0.0, (number if number < _DATE_S * 1e3 else number / 1e3) - now_s)
