"""A small network that says how likely each legal action is, in numpy: at this size, loading torch costs more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Classifier"]

_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8

Array = NDArray[np.float32]


class Classifier:
    """Layers of `sizes` with tanh between them, and a softmax over the legal actions at the end.

    Orthogonal initial weights (the last layer's a hundredth of that, so that it starts uniform), and AdamW (Loshchilov
    and Hutter 2019, algorithm 2) on the mean negative log-likelihood.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.parameters: list[Array] = []
        for number, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            gain = 0.01 if number == len(sizes) - 2 else 1.0
            self.parameters += [_orthogonal(rng, fan_out, fan_in, gain), np.zeros(fan_out, np.float32)]
        self.moments = [(np.zeros_like(one), np.zeros_like(one)) for one in self.parameters]
        self.steps = 0

    def probabilities(self, inputs: Array, legal: NDArray[np.bool_]) -> NDArray[np.float64]:  # (N, D), (N, A) -> (N, A)
        return _softmax(self._forward(inputs)[-1], legal)

    def learn(
        self,
        inputs: Array,
        legal: NDArray[np.bool_],
        actions: NDArray[np.int64],
        learning_rate: float,
        weight_decay: float,
    ) -> NDArray[np.float64]:
        """One step on a minibatch (B, D); the probabilities (B, A) before it."""
        layers = self._forward(inputs)
        probs = _softmax(layers[-1], legal)
        slope = probs.copy()
        slope[np.arange(len(actions)), actions] -= 1.0
        slope = (slope / len(actions)).astype(np.float32)
        gradients: list[Array] = []
        for number in reversed(range(len(self.parameters) // 2)):
            weight: Array = np.asarray(slope.T @ layers[number], np.float32)
            gradients = [weight, slope.sum(axis=0), *gradients]
            if number:
                slope = (slope @ self.parameters[2 * number]) * (1.0 - layers[number] ** 2)
        self._step(gradients, learning_rate, weight_decay)
        return probs

    def state_dict(self) -> dict[str, Array]:
        return {f"network.{number}": parameter.copy() for number, parameter in enumerate(self.parameters)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """In place. Raises ValueError for another architecture."""
        for number, parameter in enumerate(self.parameters):
            given = np.array(state[f"network.{number}"], np.float32)
            if given.shape != parameter.shape:
                raise ValueError(f"weights 'network.{number}': expected shape {parameter.shape}, got {given.shape}.")
            parameter[...] = given

    def _forward(self, inputs: Array) -> list[Array]:
        """The inputs, each hidden layer, and the logits."""
        layers = [inputs]
        last = len(self.parameters) // 2 - 1
        for number in range(last + 1):
            weight, bias = self.parameters[2 * number : 2 * number + 2]
            out = layers[-1] @ weight.T + bias
            layers.append(out if number == last else np.tanh(out))
        return layers

    def _step(self, gradients: Sequence[Array], learning_rate: float, weight_decay: float) -> None:
        self.steps += 1
        scale1, scale2 = 1.0 - _BETA1**self.steps, 1.0 - _BETA2**self.steps
        for parameter, gradient, (mean, square) in zip(self.parameters, gradients, self.moments, strict=True):
            mean += (1.0 - _BETA1) * (gradient - mean)
            square += (1.0 - _BETA2) * (gradient**2 - square)
            parameter *= 1.0 - learning_rate * weight_decay
            parameter -= learning_rate * (mean / scale1) / (np.sqrt(square / scale2) + _EPS)


def _softmax(logits: Array, legal: NDArray[np.bool_]) -> NDArray[np.float64]:
    masked = np.where(legal, logits.astype(np.float64), -np.inf)
    weights = np.exp(masked - masked.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float64)


def _orthogonal(rng: np.random.Generator, rows: int, columns: int, gain: float) -> Array:  # -> (rows, columns)
    q, r = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))
    return np.ascontiguousarray(gain * (q if rows >= columns else q.T), np.float32)
