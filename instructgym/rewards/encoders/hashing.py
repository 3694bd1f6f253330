"""The embedded default encoder: signed feature hashing of words, word pairs and character n-grams. No download."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from instructgym.errors import ConfigError
from instructgym.metrics.text import STOP_WORDS, words
from instructgym.rewards.encoders.base import CACHE_TEXTS, Encoder

__all__ = ["HashingEncoder"]

_SEED = 0x1D5F
_MAX_TOKENS = 20_000  # rows of the token table; at 256 dimensions 20 MB
_MAX_TOKEN_CHARACTERS = 48
_GRAMS = (3, 4, 5)
_GRAM_WEIGHT = 0.7  # of all the n-grams of a word together; the word itself has 1
_PAIR_WEIGHT = 0.5

_U64 = np.uint64
_ODD = _U64(0x9E3779B97F4A7C15)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): spreads 64-bit values evenly."""
    mixed = values + _U64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> _U64(27))) * _U64(0x94D049BB133111EB)
    return mixed ^ (mixed >> _U64(31))


class HashingEncoder(Encoder):
    """Texts -> vectors by the hashing trick (Weinberger et al. 2009), the same in every process and on every machine.

    Features are words, pairs of neighbouring words, and the character 3- to 5-grams of each word with its borders. A
    word that occurs c times weighs 1 + ln c; function words weigh `function_words` of that. Hashes of words are kept,
    so that a text of known words costs a gather and a matrix product.

    Args:
        dim: length of a vector, 16 or more. Unrelated texts have cosines of about 0 +- 1/sqrt(dim).
        function_words: weight of function words, 0 to 1; 1 turns the down-weighting off.
    """

    related_cosine = 0.15
    instant = True

    def __init__(self, dim: int = 256, *, function_words: float = 0.2, cache_texts: int = CACHE_TEXTS) -> None:
        super().__init__(cache_texts=cache_texts)
        if dim < 16:
            raise ConfigError(f"hashing encoder got dim = {dim}; expected 16 or more, e.g. 'hashing:256'.")
        self.name = f"hashing:{dim}"
        self.dim = dim
        self._function_words = function_words
        self._forget()

    def _forget(self) -> None:
        self._rows: dict[str, int] = {}
        self._table = np.zeros((0, self.dim), dtype=np.float32)  # a token's own features
        self._weights = np.zeros(0, dtype=np.float32)
        self._left = np.zeros(0, dtype=np.int64)  # a token's hash as the first and as the second of a pair, 30 bits
        self._right = np.zeros(0, dtype=np.int64)
        self._roots = np.zeros(0, dtype=np.float64)  # a pair weighs the product of its tokens' roots

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        result = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            # Texts of signs or emoji alone have no words; their characters stand in.
            tokens = words(text) or [character for character in text if not character.isspace()]
            if tokens:
                result[row] = self._one(tokens)
        return result

    def _one(self, tokens: list[str]) -> NDArray[np.float32]:
        try:
            order = [self._rows[token] for token in tokens]
        except KeyError:
            new = [token for token in dict.fromkeys(tokens) if token not in self._rows]
            if len(self._rows) + len(new) > _MAX_TOKENS:
                self._forget()
                new = list(dict.fromkeys(tokens))
            self._learn(new)
            order = [self._rows[token] for token in tokens]
        counts = Counter(order)
        unique = np.fromiter(counts, dtype=np.intp, count=len(counts))
        weights = self._weights.take(unique)
        if len(counts) < len(order):
            weights *= 1.0 + np.log(np.fromiter(counts.values(), dtype=np.float32, count=len(counts)))
        vector: NDArray[np.float32] = weights @ self._table.take(unique, axis=0)
        if len(order) > 1:
            vector += self._pairs(order)
        length = float(np.sqrt(vector @ vector))
        return vector / np.float32(length) if length > 0 else vector

    def _pairs(self, order: list[int]) -> NDArray[np.float32]:
        repeated: dict[int, int] = {}
        different = set(pairwise(order))
        if len(different) == len(order) - 1:
            all_rows = np.array(order)
            first, second = all_rows[:-1], all_rows[1:]
        else:
            counts = Counter(pairwise(order))
            first, second = np.array(list(counts)).T
            repeated = {place: times for place, times in enumerate(counts.values()) if times > 1}
        mixed = self._left.take(first) ^ self._right.take(second)
        weights = self._roots.take(first) * self._roots.take(second)
        for place, times in repeated.items():
            weights[place] *= 1.0 + math.log(times)
        np.negative(weights, out=weights, where=(mixed & 1) == 0)
        return np.bincount((mixed >> 1) % self.dim, weights=weights, minlength=self.dim).astype(np.float32)

    def _scatter(
        self, hashes: NDArray[np.uint64], weights: NDArray[np.float32], rows: NDArray[np.intp] | None = None, n: int = 1
    ) -> NDArray[np.float32]:
        """Each weight at the place of its hash (of row `rows[i]` of `n`), with a sign from another bit of the hash."""
        places = ((hashes >> _U64(33)) % _U64(self.dim)).astype(np.intp)
        if rows is not None:
            places += rows * self.dim
        signs = ((hashes >> _U64(31)) & _U64(2)).astype(np.float32) - 1.0
        return np.bincount(places, weights=weights * signs, minlength=self.dim * n).astype(np.float32)

    def _learn(self, tokens: list[str]) -> None:
        """Append tokens to the tables."""
        hashes: list[int] = []
        weights: list[float] = []
        owners: list[int] = []
        for row, token in enumerate(tokens):
            data = token.encode("utf-8", "surrogatepass")
            hashes.append(zlib.crc32(data, _SEED) << 32 | zlib.crc32(data, _SEED + 1))
            framed = f"<{token[:_MAX_TOKEN_CHARACTERS]}>"
            grams = [framed[i : i + n] for n in _GRAMS for i in range(len(framed) - n + 1)]
            hashes += [zlib.crc32(gram.encode("utf-8", "surrogatepass"), _SEED + 2) for gram in grams]
            weights += [1.0, *[_GRAM_WEIGHT / math.sqrt(len(grams))] * len(grams)]
            owners += [row] * (1 + len(grams))
        mixed = _mix(np.array(hashes, dtype=np.uint64))
        rows = np.array(owners, dtype=np.intp)
        table = self._scatter(mixed, np.array(weights, dtype=np.float32), rows, len(tokens)).reshape(-1, self.dim)
        whole = mixed[np.searchsorted(rows, np.arange(len(tokens)))]
        start = len(self._rows)
        self._reserve(start + len(tokens))
        self._table[start : start + len(tokens)] = table
        token_weights = [self._function_words if token in STOP_WORDS else 1.0 for token in tokens]
        self._weights[start : start + len(tokens)] = token_weights
        stop = start + len(tokens)
        self._roots[start:stop] = [math.sqrt(_PAIR_WEIGHT * weight) for weight in token_weights]
        self._left[start:stop] = _mix(whole) >> _U64(34)
        self._right[start:stop] = _mix(whole ^ _ODD) >> _U64(34)
        self._rows.update(zip(tokens, range(start, start + len(tokens)), strict=True))

    def _reserve(self, rows: int) -> None:
        """Make the tables hold at least so many rows, doubling them."""
        more = max(rows, 2 * len(self._table), 1024) - len(self._table)
        if rows > len(self._table):
            for name in ("_table", "_weights", "_left", "_right", "_roots"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros((more, *old.shape[1:]), dtype=old.dtype)]))
