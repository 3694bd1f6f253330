"""What the instructor sees of a state, in six modes. Nothing here knows what the expert will do."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.envs.dynamics import State
from instructgym.envs.operations import ActionSet
from instructgym.errors import ConfigError
from instructgym.llm_backends.base import is_instant
from instructgym.llm_backends.tokenizing import ByteTokenizer, Tokenizer
from instructgym.metrics.surface import SURFACE_FEATURES, surface_features
from instructgym.metrics.text import count_words
from instructgym.plugins import nearest
from instructgym.rewards.encoders.base import Encoder

__all__ = ["OBSERVATION_MODES", "ByteTokenizer", "Observer", "Tokenizer"]

OBSERVATION_MODES = ("flat", "dict", "features", "features_dict", "tokens", "last_operation")
EMBEDDING_MODES = ("flat", "dict", "features", "features_dict")
"""Modes that need an encoder; the last two for its cosines alone."""
_LOG_RATIO_BOUND = 3.0  # a text 20 times as long as its seed looks like any longer one
_SCALAR_LOW = np.array([0.0, -_LOG_RATIO_BOUND, -1.0, -1.0, 0.0], dtype=np.float32)
_SCALAR_HIGH = np.array([1.0, _LOG_RATIO_BOUND, 1.0, 1.0, 1.0], dtype=np.float32)

Vector = NDArray[np.float32]


class Observer:
    """Turns states into observations.

    Modes (A operations, D dimensions of the encoder, L `length`):

    - ``flat``: Box float32 (2 D + 5 + S + 2 A,): embedding, embedding shift from the seed, scalars (step / horizon,
      log of words over the seed's words in [-3, 3], cosine to the parent, cosine to the seed, last rewrite
      eliminated), the S `SURFACE_FEATURES` of the text (0 or 1), times each operation was chosen / horizon, last
      operation one-hot. "Parent" is the text before the last step.
    - ``dict``: ``embedding`` Box (D,), ``shift`` Box (D,), ``scalars`` Box (5,), ``surface``
      MultiBinary (S), ``counts`` Box (A,), ``used`` MultiBinary (A), ``last_operation`` Discrete (A + 1; A = none yet).
    - ``features`` and ``features_dict``: the same without ``embedding`` and ``shift``. A policy that sees embeddings of
      a hundred seeds learns the seeds by heart; without them it has to learn what texts have in common
      (docs/experiments.md has the numbers).
    - ``tokens``: ``history`` MultiDiscrete (horizon,), the operations chosen so far (A = none yet); ``ids`` Box int64
      (L,), ``mask`` Box int64 (L,) of the instruction with its input, cut at L tokens and padded with 0 on the right,
      and ``step`` Discrete (horizon + 1).
    - ``last_operation``: Box float32 (A,): one-hot, zeros at reset.

    An eliminated step's operation counts as the last one. Raises `ConfigError` for an unknown mode.
    """

    def __init__(
        self,
        mode: str,
        action_set: ActionSet,
        horizon: int,
        *,
        encoder: Encoder | None = None,
        tokenizer: Tokenizer | None = None,
        length: int = 512,
    ) -> None:
        check_mode(mode)
        if mode in EMBEDDING_MODES and encoder is None:
            raise ConfigError(f"observation '{mode}' needs an encoder, got None; pass one, e.g. HashingEncoder().")
        self.mode = mode
        self.space: spaces.Space[Any]
        self._index = {name: index for index, name in enumerate(action_set.names)}
        self._horizon = horizon
        self._encoder = encoder
        self._tokenizer: Tokenizer = tokenizer or ByteTokenizer()
        self._length = length
        self._observe: Callable[[State], Awaitable[Any]]
        dim = encoder.dim if encoder is not None else 0
        if mode == "flat":
            self._observe, self.space = self._flat, _flat_space(dim, len(action_set))
        elif mode == "dict":
            self._observe, self.space = self._dict, _dict_space(dim, len(action_set))
        elif mode == "features":
            self._observe, self.space = self._features, _features_space(len(action_set))
        elif mode == "features_dict":
            self._observe, self.space = self._features_dict, _dict_space(None, len(action_set))
        elif mode == "tokens":
            self._observe, self.space = self._tokens, _tokens_space(self._tokenizer, length, horizon, len(action_set))
        else:
            self._observe, self.space = self._last_operation, _unit_box(0.0, len(action_set))

    @property
    def instant(self) -> bool:
        """Whether an observation waits for nobody."""
        return self.mode not in EMBEDDING_MODES or is_instant(self._encoder)

    async def observe(self, state: State) -> Any:
        """The observation of `state`, a new object at each call. May raise `BackendError` through the encoder."""
        return await self._observe(state)

    async def _flat(self, state: State) -> Vector:
        embedding, shift, scalars = await self._embed(state)
        return np.concatenate((embedding, shift, *self._facts(state, scalars)))

    async def _features(self, state: State) -> Vector:
        _, _, scalars = await self._embed(state)
        return np.concatenate(self._facts(state, scalars))

    def _facts(self, state: State, scalars: Vector) -> tuple[Vector, ...]:
        surface = _surface(state).astype(np.float32)
        return scalars, surface, self._counts(state), self._one_hot(state)

    async def _dict(self, state: State) -> dict[str, Any]:
        embedding, shift, scalars = await self._embed(state)
        facts = self._named_facts(state, scalars) | {"embedding": embedding, "shift": shift}
        return {name: facts[name] for name in sorted(facts)}

    async def _features_dict(self, state: State) -> dict[str, Any]:
        _, _, scalars = await self._embed(state)
        return self._named_facts(state, scalars)

    def _named_facts(self, state: State, scalars: Vector) -> dict[str, Any]:
        counts = self._counts(state)
        last = state.history[-1].operation if state.history else None
        return {
            "counts": counts,
            "last_operation": np.int64(len(self._index) if last is None else self._index[last]),
            "scalars": scalars,
            "surface": _surface(state),
            "used": (counts > 0).astype(np.int8),
        }

    async def _tokens(self, state: State) -> dict[str, Any]:
        found = np.asarray(self._tokenizer.encode(state.instruction.render()), dtype=np.int64)[: self._length]
        ids = np.zeros(self._length, dtype=np.int64)
        mask = np.zeros(self._length, dtype=np.int64)
        ids[: len(found)] = found
        mask[: len(found)] = 1
        history = np.full(self._horizon, len(self._index), dtype=np.int64)
        history[: len(state.history)] = [self._index[transition.operation] for transition in state.history]
        return {"history": history, "ids": ids, "mask": mask, "step": np.int64(state.step)}

    async def _last_operation(self, state: State) -> Vector:
        return self._one_hot(state)

    async def _embed(self, state: State) -> tuple[Vector, Vector, Vector]:
        """Embedding (D,), its shift from the seed (D,), the five scalars."""
        assert self._encoder is not None  # the constructor saw to it
        last = state.history[-1] if state.history else None
        text, origin = state.instruction, state.seed.instruction
        parent = text if last is None else last.parent
        now, start, before = await self._encoder.encode([text.render(), origin.render(), parent.render()])
        ratio = math.log((count_words(text.render()) + 1) / (count_words(origin.render()) + 1))
        eliminated = last is not None and last.elimination is not None
        scalars = np.array([state.step / self._horizon, ratio, now @ before, now @ start, eliminated], dtype=np.float32)
        # float32 components and cosines of equal texts exceed 1 by a hair
        return _within(now, -1.0, 1.0), _within(now - start, -2.0, 2.0), _within(scalars, _SCALAR_LOW, _SCALAR_HIGH)

    def _counts(self, state: State) -> Vector:
        counts = np.zeros(len(self._index), dtype=np.float32)
        for transition in state.history:
            counts[self._index[transition.operation]] += 1
        counts /= self._horizon
        return counts

    def _one_hot(self, state: State) -> Vector:
        one_hot = np.zeros(len(self._index), dtype=np.float32)
        if state.history:
            one_hot[self._index[state.history[-1].operation]] = 1
        return one_hot


def check_mode(mode: str) -> None:
    """Raise `ConfigError` with the nearest name unless `mode` is one of `OBSERVATION_MODES`."""
    if mode not in OBSERVATION_MODES:
        raise ConfigError(f"unknown observation '{mode}'; {nearest(mode, OBSERVATION_MODES)}")


def _within(values: Vector, low: Any, high: Any) -> Vector:
    """`np.clip` in a quarter of its time, for short arrays."""
    bounded: Vector = np.minimum(values, high)
    np.maximum(bounded, low, out=bounded)
    return bounded


def _unit_box(low: float, *shape: int) -> spaces.Box:
    return spaces.Box(low, 1.0, shape, np.float32)


def _surface(state: State) -> NDArray[np.int8]:
    return np.array(surface_features(state.instruction.text, state.instruction.input), dtype=np.int8)


def _flat_space(dim: int, actions: int) -> spaces.Box:
    facts = _features_space(actions)
    low = np.concatenate((np.full(dim, -1.0), np.full(dim, -2.0), facts.low))
    high = np.concatenate((np.full(dim, 1.0), np.full(dim, 2.0), facts.high))
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _features_space(actions: int) -> spaces.Box:
    binary = len(SURFACE_FEATURES) + 2 * actions
    low, high = np.concatenate((_SCALAR_LOW, np.zeros(binary))), np.concatenate((_SCALAR_HIGH, np.ones(binary)))
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _dict_space(dim: int | None, actions: int) -> spaces.Dict:
    """With embeddings of `dim`, or without."""
    embeddings: dict[str, spaces.Space[Any]] = {}
    if dim is not None:
        embeddings = {"embedding": _unit_box(-1.0, dim), "shift": spaces.Box(-2.0, 2.0, (dim,), np.float32)}
    return spaces.Dict(
        {
            **embeddings,
            "counts": _unit_box(0.0, actions),
            "last_operation": spaces.Discrete(actions + 1),
            "scalars": spaces.Box(_SCALAR_LOW, _SCALAR_HIGH, dtype=np.float32),
            "surface": spaces.MultiBinary(len(SURFACE_FEATURES)),
            "used": spaces.MultiBinary(actions),
        }
    )


def _tokens_space(tokenizer: Tokenizer, length: int, horizon: int, actions: int) -> spaces.Dict:
    if length < 1:
        raise ConfigError(f"observation_length = {length}; expected 1 or more tokens.")
    return spaces.Dict(
        {
            "history": spaces.MultiDiscrete([actions + 1] * horizon),
            "ids": spaces.Box(0, tokenizer.vocab_size - 1, (length,), np.int64),
            "mask": spaces.Box(0, 1, (length,), np.int64),
            "step": spaces.Discrete(horizon + 1),
        }
    )
