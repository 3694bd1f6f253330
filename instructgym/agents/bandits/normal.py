"""Normal numbers from uniform ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["normal_draws"]

_LEAST = 2.0**-53


def normal_draws(uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normal numbers of the same shape, by the inverse of the distribution function; finite at 0 and 1."""
    from scipy.special import ndtri

    return np.asarray(ndtri(np.clip(uniforms, _LEAST, 1.0 - _LEAST)), np.float64)
