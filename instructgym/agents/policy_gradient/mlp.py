"""Multilayer perceptrons: the actor-critic that our learners have by default, and a value function on its own.

Acting runs on numpy views of the parameters' memory: at a few rows, half of a torch call is dispatch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from instructgym.agents.policy_gradient.parameters import FlatParameters

__all__ = ["ActorCritic", "Trunk", "ValueNetwork", "trunk_shapes"]


class ActorCritic(FlatParameters):
    """pi(a|s) and V(s): separate MLPs with tanh and orthogonal initialisation (gains sqrt 2, policy 0.01, value 1)."""

    def __init__(self, obs_dim: int, actions: int, hidden: Sequence[int], seed: int) -> None:
        sizes = {"policy": [obs_dim, *hidden, actions], "value": [obs_dim, *hidden, 1]}
        super().__init__({name: shape for trunk in sizes for name, shape in trunk_shapes(trunk, sizes[trunk]).items()})
        self._policy, self._value = (Trunk(self.parameters, trunk, len(hidden)) for trunk in sizes)
        generator = torch.Generator().manual_seed(seed)
        self._policy.initialise(generator, 0.01)
        self._value.initialise(generator, 1.0)

    def forward(self, obs: Any) -> tuple[Any, Any]:  # (B, D) -> logits (B, A), values (B,), with gradients
        return self._policy.torch(obs), self._value.torch(obs).squeeze(1)

    def logits(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N, A)
        return self._policy.numpy(obs)

    def values(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N,)
        return self._value.numpy(obs)[:, 0]


class ValueNetwork(FlatParameters):
    """A value function on its own: the value trunk of `ActorCritic`."""

    def __init__(self, obs_dim: int, hidden: Sequence[int], seed: int) -> None:
        super().__init__(trunk_shapes("value", [obs_dim, *hidden, 1]))
        self._value = Trunk(self.parameters, "value", len(hidden))
        self._value.initialise(torch.Generator().manual_seed(seed), 1.0)

    def forward(self, obs: Any) -> Any:  # (B, D) -> (B,), with gradients
        return self._value.torch(obs).squeeze(1)

    def values(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N,)
        return self._value.numpy(obs)[:, 0]


class Trunk:
    """One MLP over named parameters (`trunk_shapes`), for torch and for numpy. The last axis is the features'."""

    def __init__(self, parameters: Mapping[str, Any], name: str, hidden: int) -> None:
        self._layers = [
            (parameters[f"{name}.{layer}.weight"], parameters[f"{name}.{layer}.bias"]) for layer in range(hidden + 1)
        ]
        self._numpy = [(weight.detach().numpy().T, bias.detach().numpy()) for weight, bias in self._layers]

    def initialise(self, generator: Any, last_gain: float) -> None:
        for weight, _ in self._layers[:-1]:
            torch.nn.init.orthogonal_(weight, gain=math.sqrt(2.0), generator=generator)
        torch.nn.init.orthogonal_(self._layers[-1][0], gain=last_gain, generator=generator)

    def torch(self, x: Any) -> Any:
        *hidden, (weight, bias) = self._layers
        for w, b in hidden:
            x = torch.tanh(F.linear(x, w, b))
        return F.linear(x, weight, bias)

    def numpy(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        *hidden, (weight, bias) = self._numpy
        for w, b in hidden:
            x = x @ w
            x += b
            np.tanh(x, out=x)
        return np.asarray(x @ weight + bias, np.float32)


def trunk_shapes(trunk: str, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The parameters of a `Trunk` by name: from sizes[0] inputs to sizes[-1] outputs."""
    return {
        f"{trunk}.{layer}.{part}": shape
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes))
        for part, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,)))
    }
