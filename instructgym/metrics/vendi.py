"""The effective number of distinct items in a set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["vendi_score"]

_NEGLIGIBLE = 1e-12


def vendi_score(embeddings: NDArray[Any], q: float = 1.0) -> float | None:  # (n, d) rows of length 1 -> float
    """The Vendi score of a set under the cosine kernel (Friedman and Dieng, arXiv 2210.02410, definition 3.1).

    The exponential of the entropy of the eigenvalues of K / n, K = X X': 1 for n equal rows, n for n orthogonal ones.
    For n > d the same eigenvalues come from the d x d matrix X' X / n (section 3.3): O(min(n, d)^3 + n d min(n, d)),
    exact in both forms.

    Args:
        embeddings: rows of length 1.
        q: the order of the entropy, Renyi's for q != 1 (Pasarkar and Dieng, arXiv 2310.12952): below 1 rare items count
            for more, ``math.inf`` sees the most common direction alone.

    Returns:
        None for an empty set.

    Raises:
        ValueError: the array is not two-dimensional or holds NaN or infinity, or q is negative.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"vendi_score got an array of shape {embeddings.shape}; expected (n, d).")
    if not q >= 0:
        raise ValueError(f"vendi_score got q = {q}; expected 0 or more.")
    n, d = embeddings.shape
    if n == 0:
        return None
    rows = embeddings.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("vendi_score got vectors with NaN or infinity; expected rows of length 1.")
    gram = rows.T @ rows if n > d else rows @ rows.T
    shares = np.linalg.eigvalsh(gram / n)
    shares = shares[shares > _NEGLIGIBLE]
    if not len(shares):
        return None
    shares = shares / shares.sum()
    if q == 1.0:
        return float(math.exp(-np.sum(shares * np.log(shares))))
    if math.isinf(q):
        return float(1.0 / shares.max())
    # By the largest share, whose power does not vanish: a tenth to the 400th is 0.
    most = float(shares.max())
    return float(np.sum((shares / most) ** q) ** (1.0 / (1.0 - q)) * most ** (q / (1.0 - q)))
