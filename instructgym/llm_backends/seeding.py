"""The seed that a request carries: a function of the run's seed and the caller's sample index alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from instructgym.types import Message, Sample

__all__ = ["messages_index", "request_seed"]


def request_seed(run_seed: int, sample: Sample) -> int:
    """31 bits of a hash of (run seed, sample): what travels as the request's ``seed``, in ``[0, 2**31)``."""
    text = f"{run_seed}:{','.join(map(str, sample))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") & 0x7FFF_FFFF


def messages_index(messages: Sequence[Message]) -> int:
    """31 bits of a hash of messages, to be part of a sample index.

    Requests of one sample index have one seed, and with it the same noise, whatever they ask. Where many texts are put
    to one model with the same index (judgements, say), this gives each a seed of its own, and equal ones the same.
    """
    text = "\x1e".join(f"{message.role}\x1f{message.content}" for message in messages)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFF_FFFF
