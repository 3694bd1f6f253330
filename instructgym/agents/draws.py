"""Randomness of choices: one uniform a row, a function of (run seed, env or chain, episode, step) and of nothing else.

The mixing is SplitMix64 (Steele, Lea, Flood 2014), folded over the index. `uniforms` computes it for all rows of a
vector env at once; `row_rng` is a Generator whose first `random()` is the same number, so an agent that draws one
uniform a row chooses alike whether a runner hands it generators or a rollout hands it arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

__all__ = ["derive_seed", "first_uniforms", "row_rng", "sample_categorical", "uniforms"]

_BITS = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def uniforms(run_seed: int, *index: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Uniforms in [0, 1), float64 (N,), for rows whose index is given column by column (each (N,) or one number)."""
    word = np.full(1, _word(run_seed), np.uint64)
    golden, m1, m2 = np.uint64(_GOLDEN), np.uint64(_M1), np.uint64(_M2)
    for column in index:
        word = word + golden * (np.atleast_1d(np.asarray(column)).astype(np.uint64) + np.uint64(1))
        word = (word ^ (word >> np.uint64(30))) * m1
        word = (word ^ (word >> np.uint64(27))) * m2
        word = word ^ (word >> np.uint64(31))
    return np.asarray((word >> np.uint64(11)) * 2.0**-53, np.float64)


def row_rng(run_seed: int, *index: int) -> np.random.Generator:
    """The generator of one row; its first `random()` equals `uniforms(run_seed, *index)`."""
    first = _word(run_seed, *index)
    b, c = _mix(first ^ _GOLDEN), _mix(first ^ _M1)
    bits = np.random.SFC64(_NO_ENTROPY)  # type: ignore[arg-type]  # any ISeedSequence is taken
    state: Any = bits.state
    # SFC64 puts out the sum of words 0, 1 and 3 (its counter): choose word 0 so that the first output is `first`.
    state["state"]["state"] = np.array([(first - b - 1) & _BITS, b, c, 1], np.uint64)
    bits.state = state
    return np.random.Generator(bits)


def derive_seed(run_seed: int, *index: int) -> int:
    """31 bits that depend on the run seed and an index, for things that take an int as seed."""
    return _word(run_seed, *index) >> 33


def first_uniforms(rng: Sequence[np.random.Generator]) -> NDArray[np.float64]:
    """One uniform from each row's generator, (N,)."""
    return np.array([generator.random() for generator in rng])


def sample_categorical(probs: NDArray[Any], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Inverse-CDF sampling: probs (N, A), not necessarily normalised, and uniform (N,) -> actions (N,).

    An action of probability 0 is never chosen.
    """
    cdf = np.cumsum(probs, axis=1, dtype=np.float64)
    total = cdf[:, -1]
    # The product may round up to the total, which no entry exceeds; the number below it is in the last legal entry.
    threshold = np.minimum(uniform * total, np.nextafter(total, 0.0))
    return np.asarray((cdf > threshold[:, None]).argmax(axis=1), np.int64)


class _NoEntropy(ISeedSequence):
    """Spares the bit generator its own seeding, which the state set after it would overwrite."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return np.zeros(n_words, dtype)


_NO_ENTROPY = _NoEntropy()


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * _M1) & _BITS
    word = ((word ^ (word >> 27)) * _M2) & _BITS
    return word ^ (word >> 31)


def _word(run_seed: int, *index: int) -> int:
    word = _mix((run_seed + _GOLDEN) & _BITS)
    for value in index:
        word = _mix((word + _GOLDEN * (value + 1)) & _BITS)
    return word
