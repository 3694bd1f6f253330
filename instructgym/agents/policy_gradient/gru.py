"""A policy with a memory: a gated recurrent unit before the layers of policy and value.

What it carries from step to step is part of what it sees: a row of D + H numbers, the observation and the memory before
it. So acting, values and advantages are functions of such rows, and whoever collects them keeps the memory. Only
learning through time has to know more: `unroll`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from instructgym.agents.policy_gradient.mlp import Trunk, trunk_shapes
from instructgym.agents.policy_gradient.parameters import FlatParameters

__all__ = ["RecurrentActorCritic"]


class RecurrentActorCritic(FlatParameters):
    """pi(a|s, h) and V(s, h) over a gated recurrent unit (Cho et al. 2014) of `memory` units that both share."""

    def __init__(self, obs_dim: int, actions: int, hidden: Sequence[int], memory: int, seed: int) -> None:
        sizes = {"policy": [memory, *hidden, actions], "value": [memory, *hidden, 1]}
        super().__init__(
            {
                "gru.input.weight": (3 * memory, obs_dim),
                "gru.input.bias": (3 * memory,),
                "gru.memory.weight": (3 * memory, memory),
                "gru.memory.bias": (3 * memory,),
            }
            | {name: shape for trunk in sizes for name, shape in trunk_shapes(trunk, sizes[trunk]).items()}
        )
        self.memory = memory
        self._dim = obs_dim
        self._cell = tuple(self.parameters[f"gru.{part}"] for part in _CELL)
        self._numpy = tuple(parameter.detach().numpy() for parameter in self._cell)
        self._policy, self._value = (Trunk(self.parameters, trunk, len(hidden)) for trunk in sizes)
        generator = torch.Generator().manual_seed(seed)
        for weight in (self._cell[0], self._cell[2]):  # each gate is a square of its own
            for gate in weight.detach().split(memory):
                torch.nn.init.orthogonal_(gate, gain=1.0, generator=generator)
        self._policy.initialise(generator, 0.01)
        self._value.initialise(generator, 1.0)

    def forward(self, seen: Any) -> tuple[Any, Any]:  # (B, D + H) -> logits (B, A), values (B,), with gradients
        memory = self._next(seen[:, : self._dim], seen[:, self._dim :])
        return self._policy.torch(memory), self._value.torch(memory).squeeze(1)

    def unroll(self, obs: Any, memory: Any) -> tuple[Any, Any]:  # (C, T, D), (C, H) -> (C, T, A), (C, T)
        """C sequences of T steps, each from the memory before its first step; gradients go through time."""
        inputs = F.linear(obs, self._cell[0], self._cell[1])
        steps = []
        for time in range(obs.shape[1]):
            memory = self._gates(inputs[:, time], memory)
            steps.append(memory)
        memories = torch.stack(steps, dim=1)
        return self._policy.torch(memories), self._value.torch(memories).squeeze(2)

    def logits(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D + H) -> (N, A)
        return self._policy.numpy(self.next_memory(seen))

    def values(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D + H) -> (N,)
        return self._value.numpy(self.next_memory(seen))[:, 0]

    def next_memory(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D + H) -> (N, H)
        input_weight, input_bias, memory_weight, memory_bias = self._numpy
        memory = seen[:, self._dim :]
        from_obs = seen[:, : self._dim] @ input_weight.T + input_bias
        from_memory = memory @ memory_weight.T + memory_bias
        reset, update, new = np.split(from_obs, 3, axis=1)
        of_reset, of_update, of_new = np.split(from_memory, 3, axis=1)
        candidate = np.tanh(new + _sigmoid(reset + of_reset) * of_new)
        kept = _sigmoid(update + of_update)
        return np.asarray(candidate + kept * (memory - candidate), np.float32)

    def _next(self, obs: Any, memory: Any) -> Any:
        return self._gates(F.linear(obs, self._cell[0], self._cell[1]), memory)

    def _gates(self, from_obs: Any, memory: Any) -> Any:
        reset, update, new = from_obs.chunk(3, dim=1)
        of_reset, of_update, of_new = F.linear(memory, self._cell[2], self._cell[3]).chunk(3, dim=1)
        candidate = torch.tanh(new + torch.sigmoid(reset + of_reset) * of_new)
        kept = torch.sigmoid(update + of_update)
        return candidate + kept * (memory - candidate)


_CELL = ("input.weight", "input.bias", "memory.weight", "memory.bias")


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(0.5 * (np.tanh(0.5 * x) + 1.0), np.float32)
