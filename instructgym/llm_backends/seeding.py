"""The seed that a request carries: a function of the run's seed and the caller's sample index alone."""

from __future__ import annotations

import hashlib

from instructgym.types import Sample

__all__ = ["request_seed"]


def request_seed(run_seed: int, sample: Sample) -> int:
    """31 bits of a hash of (run seed, sample): what travels as the request's ``seed``, in ``[0, 2**31)``."""
    text = f"{run_seed}:{','.join(map(str, sample))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") & 0x7FFF_FFFF
