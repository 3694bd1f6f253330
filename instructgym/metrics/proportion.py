"""How sure a share of successes is."""

from __future__ import annotations

import math

__all__ = ["wilson_interval"]


def wilson_interval(successes: float, n: int, *, z: float = 1.959963984540054) -> tuple[float, float] | None:
    """Wilson's score interval of a share (JASA 22, 1927), 95% by default; None for no trials.

    `successes` may count ties as halves. Raises ValueError for a count outside 0..n.
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"wilson_interval got {successes} of {n}; expected 0 <= successes <= n.")
    if n == 0:
        return None
    share = successes / n
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    centre = share + z * z / (2 * n)
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
