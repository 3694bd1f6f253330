"""What a learner asks of its networks, which one it gets, and the masked categorical over their logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from instructgym.agents.policy_gradient.cross_attention import CrossAttentionActorCritic, ObservationParts
from instructgym.agents.policy_gradient.gru import RecurrentActorCritic
from instructgym.agents.policy_gradient.mlp import ActorCritic, ValueNetwork
from instructgym.errors import ConfigError

if TYPE_CHECKING:
    from gymnasium import spaces

    from instructgym.agents.policy_gradient.config import LearnerConfig

__all__ = [
    "Critic",
    "Network",
    "RecurrentNetwork",
    "make_critic",
    "make_network",
    "masked_log_softmax",
    "masked_probs",
]

_ILLEGAL = -1e9
"""Logit of an illegal action: finite, so that no product with it is NaN, and its exponential is exactly 0."""


class _Trainable(Protocol):
    """Parameters in one vector; see `FlatParameters`, which has all of this.

    `flat` (P,) holds all that is trained, `grad` (P,) is where `backward` leaves the gradients, `parameters` are
    views of `flat` by name, in the order in which they lie in it.
    """

    flat: Any
    grad: Any
    parameters: dict[str, Any]

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Network(_Trainable, Protocol):
    """A policy over A actions and a value, for flat observations (`Flattener`). Illegal actions are the caller's."""

    def forward(self, obs: Any) -> tuple[Any, Any]:  # (B, D) -> logits (B, A), values (B,)
        """In torch, with gradients."""

    def logits(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N, A)
        """In numpy, for acting."""

    def values(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N,)
        """In numpy, for advantages."""


class RecurrentNetwork(Network, Protocol):
    """A network that carries `memory` numbers (H) from step to step; 0 where an episode starts.

    The flat observation that the others see is here a row of D + H: the observation, and the memory before it.
    """

    memory: int

    def next_memory(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D + H) -> (N, H)
        """In numpy, for acting: what is carried on."""

    def unroll(self, obs: Any, memory: Any) -> tuple[Any, Any]:  # (C, T, D), (C, H) -> (C, T, A), (C, T)
        """In torch, with gradients through time: C sequences of T steps, each from the memory before its first."""


class Critic(_Trainable, Protocol):
    """A value function beside the network's own, of costs for instance."""

    def forward(self, obs: Any) -> Any:  # (B, D) -> (B,)
        """In torch, with gradients."""

    def values(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, D) -> (N,)
        """In numpy, for advantages."""


def make_network(
    config: LearnerConfig,
    obs_space: spaces.Space[Any],
    obs_dim: int,
    actions: int,
    seed: int,
    action_features: NDArray[np.float32] | None,
) -> Network:
    """The network of a config, by `config.network`. A learner asks nothing of it but `Network`.

    Raises `ConfigError` if the network needs another observation, or to know of the operations what is not given.
    """
    if config.network == "gru":
        return RecurrentActorCritic(obs_dim, actions, config.net_arch, config.memory_size, seed)
    if config.network == "cross_attention":
        parts = ObservationParts.of(obs_space, actions)
        if action_features is None:
            raise ConfigError(
                f"{config.agent}: network = 'cross_attention' knows its operations by their features, got none; pass "
                f"action_features, float32 ({actions}, E)."
            )
        if len(action_features) != actions:
            raise ConfigError(
                f"{config.agent}: action_features of shape {np.shape(action_features)}; expected ({actions}, E)."
            )
        return CrossAttentionActorCritic(parts, action_features, config.net_arch, config.attention_size, seed)
    return ActorCritic(obs_dim, actions, config.net_arch, seed)


def make_critic(config: LearnerConfig, obs_dim: int, seed: int) -> Critic:
    """A further value function of a learner."""
    return ValueNetwork(obs_dim, config.net_arch, seed)


def masked_log_softmax(logits: Any, mask: Any | None) -> Any:  # (B, A), bool (B, A) or None -> (B, A)
    """Log-probabilities over the legal actions. That of an illegal one is about -1e9, its exponential exactly 0."""
    return F.log_softmax(logits if mask is None else torch.where(mask, logits, _ILLEGAL), dim=1)


def masked_probs(logits: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """The same in numpy, as probabilities (N, A): illegal ones are exactly 0, rows sum to 1."""
    if mask is not None:
        logits = np.where(mask, logits, np.float32(_ILLEGAL))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)
