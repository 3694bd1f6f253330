"""The actor-critic of our PPO: two MLP trunks over one flat parameter vector, and a masked categorical.

All parameters are views of one tensor, and their gradients views of another, so that clipping and Adam are a handful
of vector operations. `act` runs on numpy views of the same memory: at a few rows, half of a torch call is dispatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

__all__ = ["ActorCritic", "Adam", "masked_log_softmax", "masked_probs"]

_ILLEGAL = -1e9
"""Logit of an illegal action: finite, so that no product with it is NaN, and its exponential is exactly 0."""


class ActorCritic:
    """pi(a|s) and V(s): separate MLPs with tanh and orthogonal initialisation (gains sqrt 2, policy 0.01, value 1)."""

    def __init__(self, obs_dim: int, actions: int, hidden: Sequence[int], seed: int) -> None:
        shapes = {
            f"{trunk}.{layer}.{part}": shape
            for trunk, outputs in (("policy", actions), ("value", 1))
            for layer, (fan_in, fan_out) in enumerate(zip([obs_dim, *hidden], [*hidden, outputs], strict=True))
            for part, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,)))
        }
        size = sum(math.prod(shape) for shape in shapes.values())
        self.flat = torch.zeros(size)
        self.grad = torch.zeros(size)
        self.parameters: dict[str, Any] = {}
        start = 0
        for name, shape in shapes.items():
            stop = start + math.prod(shape)
            parameter = self.flat[start:stop].view(shape).requires_grad_()
            parameter.grad = self.grad[start:stop].view(shape)
            self.parameters[name] = parameter
            start = stop
        self._layers = {
            trunk: [
                (self.parameters[f"{trunk}.{layer}.weight"], self.parameters[f"{trunk}.{layer}.bias"])
                for layer in range(len(hidden) + 1)
            ]
            for trunk in ("policy", "value")
        }
        self._numpy = {
            trunk: [(weight.detach().numpy().T, bias.detach().numpy()) for weight, bias in layers]
            for trunk, layers in self._layers.items()
        }
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for trunk, last_gain in (("policy", 0.01), ("value", 1.0)):
            layers = self._layers[trunk]
            for weight, _ in layers[:-1]:
                torch.nn.init.orthogonal_(weight, gain=math.sqrt(2.0), generator=generator)
            torch.nn.init.orthogonal_(layers[-1][0], gain=last_gain, generator=generator)

    def forward(self, obs: Any) -> tuple[Any, Any]:  # (B, D) -> logits (B, A), values (B,), with gradients
        logits, values = (self._torch_trunk(trunk, obs) for trunk in ("policy", "value"))
        return logits, values.squeeze(1)

    def logits(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N, A)
        return self._numpy_trunk("policy", obs)

    def values(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N,)
        return self._numpy_trunk("value", obs)[:, 0]

    def _torch_trunk(self, trunk: str, x: Any) -> Any:
        *hidden, (weight, bias) = self._layers[trunk]
        for w, b in hidden:
            x = torch.tanh(F.linear(x, w, b))
        return F.linear(x, weight, bias)

    def _numpy_trunk(self, trunk: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        *hidden, (weight, bias) = self._numpy[trunk]
        for w, b in hidden:
            x = x @ w
            x += b
            np.tanh(x, out=x)
        return np.asarray(x @ weight + bias, np.float32)

    def state_dict(self) -> dict[str, NDArray[np.float32]]:
        return {name: parameter.detach().numpy().copy() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """In place. Raises ValueError for another architecture."""
        for name, parameter in self.parameters.items():
            given = np.asarray(state[name], np.float32) if name in state else None
            if given is None or given.shape != tuple(parameter.shape):
                got = "nothing" if given is None else f"shape {given.shape}"
                raise ValueError(f"weights '{name}': expected shape {tuple(parameter.shape)}, got {got}.")
            parameter.detach().copy_(torch.from_numpy(given.copy()))


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) on one vector, after clipping the gradient's norm."""

    def __init__(self, size: int, eps: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.mean = torch.zeros(size)
        self.square = torch.zeros(size)
        self.steps = 0
        self.eps = eps
        self.betas = betas

    def step(self, flat: Any, grad: Any, learning_rate: float, max_norm: float) -> None:
        """Change `flat` in place; `grad` is clipped in place."""
        self.steps += 1
        beta1, beta2 = self.betas
        norm = float(torch.linalg.vector_norm(grad))
        if norm > max_norm:
            grad.mul_(max_norm / (norm + 1e-6))
        self.mean.lerp_(grad, 1.0 - beta1)
        self.square.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        scale = math.sqrt(1.0 - beta2**self.steps)
        denominator = self.square.sqrt().mul_(1.0 / scale).add_(self.eps)
        flat.addcdiv_(self.mean, denominator, value=-learning_rate / (1.0 - beta1**self.steps))

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.numpy().copy(), "square": self.square.numpy().copy(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean.copy_(torch.from_numpy(np.array(state["mean"], np.float32)))
        self.square.copy_(torch.from_numpy(np.array(state["square"], np.float32)))
        self.steps = int(state["steps"])


def masked_log_softmax(logits: Any, mask: Any | None) -> Any:  # (B, A), bool (B, A) or None -> (B, A)
    """Log-probabilities over the legal actions. That of an illegal one is about -1e9, its exponential exactly 0."""
    return F.log_softmax(logits if mask is None else torch.where(mask, logits, _ILLEGAL), dim=1)


def masked_probs(logits: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """The same in numpy, as probabilities (N, A): illegal ones are exactly 0, rows sum to 1."""
    if mask is not None:
        logits = np.where(mask, logits, np.float32(_ILLEGAL))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)
