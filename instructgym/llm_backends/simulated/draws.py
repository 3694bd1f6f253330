"""Uniform numbers that are a function of a key alone: the simulator has no other source of chance."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Draws"]

T = TypeVar("T")
_SCALE = 2.0**-64


class Draws:
    """A stream of uniforms in [0, 1) keyed by bytes."""

    __slots__ = ("_block", "_key", "_left")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._block = 0
        self._left: list[int] = []

    def uniform(self) -> float:
        if not self._left:
            digest = hashlib.blake2b(self._key, digest_size=64, salt=self._block.to_bytes(8, "little")).digest()
            self._left = list(struct.unpack("<8Q", digest))
            self._block += 1
        return self._left.pop() * _SCALE

    def choice(self, items: Sequence[T]) -> T:
        return items[int(self.uniform() * len(items))]
