"""A policy that knows its operations by what is known of them, and so can choose from others than it was trained on.

Each operation is a query: its features (an embedding of its description, say) and its own part of the observation. What
the observation says of the state are the keys and values. A logit comes from what an operation is and what it found
there, by the same weights for every operation (as with the action embeddings of Chandak et al. 2019, arXiv 1902.00183,
and the action sets of Jain et al. 2020, arXiv 2011.01928); no parameter's shape hangs on how many operations there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from numpy.typing import NDArray

from instructgym.agents.policy_gradient.mlp import Trunk, trunk_shapes
from instructgym.agents.policy_gradient.parameters import FlatParameters
from instructgym.errors import ConfigError

__all__ = ["CrossAttentionActorCritic", "ObservationParts"]

_HEADS = 4


@dataclass(frozen=True)
class ObservationParts:
    """Which columns of a flat observation say something of the state, and which of one operation each.

    `state` has a slice a part; `own` a slice of A columns a part.
    """

    state: tuple[slice, ...]
    own: tuple[slice, ...]

    @classmethod
    def of(cls, space: spaces.Space[Any], actions: int) -> ObservationParts:
        """From a Dict space: what has one number an action, or names an action (or none), is of the operations.

        That is a Box or MultiBinary of shape (A,), and a Discrete of A or A + 1. Raises `ConfigError` for another
        space, and where nothing says anything of the state.
        """
        if not isinstance(space, spaces.Dict):
            raise ConfigError(
                f"network 'cross_attention' got an observation {type(space).__name__}; expected a Dict, whose parts "
                "say what is of the state and what of an operation. In a run: env.observation = 'dict'."
            )
        state, own, start = [], [], 0
        for part in space.spaces.values():
            width = flatdim(part)
            if _of_operations(part, actions):
                own.append(slice(start, start + actions))
            else:
                state.append(slice(start, start + width))
            start += width
        if not state:
            raise ConfigError("network 'cross_attention': no part of the observation is of the state; expected one.")
        return cls(tuple(state), tuple(own))


def _of_operations(part: spaces.Space[Any], actions: int) -> bool:
    if isinstance(part, spaces.Discrete):
        return int(part.n) in (actions, actions + 1) and int(part.start) == 0
    return isinstance(part, (spaces.Box, spaces.MultiBinary)) and part.shape == (actions,)


class CrossAttentionActorCritic(FlatParameters):
    """pi(a|s) by attention from the operations to the parts of the observation, V(s) by an MLP.

    Args:
        parts: of the observation.
        features: float32 (A, E), what is known of each operation.
        hidden: the layers after attention, and those of the value.
        width: of queries, keys and values; a multiple of 4, the number of heads.
        seed: of the weights.
    """

    def __init__(
        self, parts: ObservationParts, features: NDArray[np.float32], hidden: Sequence[int], width: int, seed: int
    ) -> None:
        features = np.asarray(features, np.float32)
        self._parts = parts
        self._features = torch.from_numpy(features.copy())
        widths = [part.stop - part.start for part in parts.state]
        whole, own = sum(widths), len(parts.own)
        sizes = {
            "summary": [whole, *hidden, width],
            "policy": [3 * width, *hidden[-1:], 1],
            "value": [whole + 2 * own, *hidden, 1],
        }
        linear = {f"part.{number}": (size, width) for number, size in enumerate(widths)}
        linear |= {"operation": (features.shape[1], width), "own": (max(own, 1), width)}
        linear |= dict.fromkeys(("query", "key", "content"), (width, width))
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (inputs, outputs) in linear.items():
            shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
        for name, layers in sizes.items():
            shapes |= trunk_shapes(name, layers)
        super().__init__(shapes)
        generator = torch.Generator().manual_seed(seed)
        for name in linear:
            torch.nn.init.orthogonal_(self.parameters[f"{name}.weight"].detach(), gain=1.0, generator=generator)
        self._summary, self._policy, self._value = (
            Trunk(self.parameters, name, len(layers) - 2) for name, layers in sizes.items()
        )
        for trunk, gain in ((self._summary, 1.0), (self._policy, 0.01), (self._value, 1.0)):
            trunk.initialise(generator, gain)

    def forward(self, obs: Any) -> tuple[Any, Any]:  # (B, D) -> logits (B, A), values (B,), with gradients
        state = torch.cat([obs[:, part] for part in self._parts.state], dim=1)
        own = self._own(obs)  # (B, A, P)
        tokens = [torch.tanh(self._linear(f"part.{number}", obs[:, p])) for number, p in enumerate(self._parts.state)]
        memory = torch.stack([*tokens, torch.tanh(self._summary.torch(state))], dim=1)  # (B, J, W)
        operations = torch.tanh(self._linear("operation", self._features) + self._linear("own", own))  # (B, A, W)
        found = self._attend(operations, memory)
        joint = torch.cat([operations, found, operations * found], dim=2)
        logits = self._policy.torch(joint).squeeze(2)
        pooled = torch.cat([state, own.mean(dim=1), own.amax(dim=1)], dim=1) if self._parts.own else state
        return logits, self._value.torch(pooled).squeeze(1)

    def logits(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N, A)
        with torch.no_grad():
            return np.asarray(self.forward(torch.from_numpy(np.ascontiguousarray(obs)))[0].numpy(), np.float32)

    def values(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N,)
        state = np.concatenate([obs[:, part] for part in self._parts.state], axis=1)
        if self._parts.own:
            own = np.stack([obs[:, part] for part in self._parts.own], axis=2)
            state = np.concatenate([state, own.mean(axis=1), own.max(axis=1)], axis=1)
        return self._value.numpy(state)[:, 0]

    def _own(self, obs: Any) -> Any:  # (B, D) -> (B, A, P)
        if not self._parts.own:
            return obs.new_zeros(len(obs), len(self._features), 1)
        return torch.stack([obs[:, part] for part in self._parts.own], dim=2)

    def _attend(self, operations: Any, memory: Any) -> Any:  # (B, A, W), (B, J, W) -> (B, A, W)
        query, key = (self._heads(self._linear(name, x)) for name, x in (("query", operations), ("key", memory)))
        content = self._heads(self._linear("content", memory))
        weights = torch.softmax(query @ key.transpose(2, 3) / math.sqrt(query.shape[3]), dim=3)
        return (weights @ content).transpose(1, 2).flatten(2)

    def _heads(self, x: Any) -> Any:  # (B, N, W) -> (B, heads, N, W / heads)
        return x.unflatten(2, (_HEADS, -1)).transpose(1, 2)

    def _linear(self, name: str, x: Any) -> Any:
        return F.linear(x, self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])
