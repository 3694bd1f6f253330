"""Encoders turn texts into vectors of length 1; a vector is a function of its text alone."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encoder"]

CACHE_TEXTS = 20_000
_INLINE_CHARACTERS = 4_000  # about a millisecond of hashing: more than that leaves the event loop


class Encoder:
    """Base of all encoders: caches vectors by text and keeps long work off the event loop.

    A subclass sets `name`, `dim` and `related_cosine`, and defines `_encode`. `related_cosine` is the cosine below
    which two texts share no subject under this encoder; the rule "off_topic" and the reward "validity" read it.
    """

    name: str = "encoder"
    dim: int = 0
    related_cosine: float = 0.0
    instant: bool = False
    """Whether short texts are encoded before control is given back."""

    def __init__(self, *, cache_texts: int = CACHE_TEXTS) -> None:
        self._cache: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._cache_texts = cache_texts
        self._lock = threading.Lock()

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Distinct texts that are not cached -> (n, dim), each row of length 1. Called by any thread, one at a time."""
        raise TypeError(f"{type(self).__name__} does not define _encode()")

    async def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of `texts`, (n, dim) float32; rows have length 1 (0 for a text without a character)."""
        missing = self._missing(texts)
        if sum(map(len, missing)) <= _INLINE_CHARACTERS:
            return self._encode_missing(texts, missing)
        return await asyncio.to_thread(self.encode_sync, texts)

    def encode_sync(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`encode` for code outside an event loop."""
        return self._encode_missing(texts, self._missing(texts))

    def _encode_missing(self, texts: Sequence[str], missing: Sequence[str]) -> NDArray[np.float32]:
        new = dict(zip(missing, self._locked_encode(missing), strict=True)) if missing else {}
        return self._gather(texts, new)

    def clear_cache(self) -> None:
        """Forget all vectors, so that a measurement starts from nothing."""
        with self._lock:
            self._cache.clear()

    def close(self) -> None:
        """Release threads and models; the encoder may be used again."""

    def _locked_encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._lock:
            return self._encode(texts)

    def _missing(self, texts: Sequence[str]) -> list[str]:
        cache = self._cache
        missing = [text for text in texts if text not in cache]
        return list(dict.fromkeys(missing)) if len(missing) > 1 else missing

    def _gather(self, texts: Sequence[str], new: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The rows of `texts` from the cache and from `new`, which goes into the cache."""
        result = np.empty((len(texts), self.dim), dtype=np.float32)
        evicted: list[int] = []
        with self._lock:
            for text, vector in new.items():
                self._cache[text] = vector
            for row, text in enumerate(texts):
                known = self._cache.get(text)
                if known is not None:
                    self._cache.move_to_end(text)
                    result[row] = known
                else:  # another thread's texts pushed it out since `_missing` looked
                    evicted.append(row)
            while len(self._cache) > self._cache_texts:
                self._cache.popitem(last=False)
            if evicted:
                result[evicted] = self._encode([texts[row] for row in evicted])
        return result
