"""Bandits that see the observation: the reward of each action is taken for linear in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.agents.bandits.bandit import Bandit, Matrix, checked
from instructgym.agents.bandits.normal import normal_draws
from instructgym.agents.spaces import Flattener

__all__ = ["LinUCB", "LinearThompson"]


class _Linear(Bandit):
    """Ridge regression an action on (1, flat observation), kept up to date row by row (Sherman and Morrison).

    Observations are taken as they are: what varies little, as the components of an embedding do, is thereby held to
    matter little until much is known.
    """

    def __init__(
        self, obs_space: spaces.Space[Any], action_space: spaces.Space[Any], seed: int, width: float, ridge: float
    ) -> None:
        super().__init__(obs_space, action_space, seed)
        self._width, self._ridge = width, ridge
        self._flatten = Flattener(obs_space)
        dim = self._flatten.dim + 1
        self._inverse = np.tile(np.eye(dim) / ridge, (self.actions, 1, 1))  # (A, D, D), of the Gram matrices
        self._sums = np.zeros((self.actions, dim))  # (A, D), contexts times their rewards
        self._weights = np.zeros((self.actions, dim))

    def contexts(self, obs: Any, rows: int) -> Matrix:
        return np.concatenate([np.ones((rows, 1)), self._flatten(obs)], axis=1)

    def means(self, contexts: Matrix) -> Matrix:
        means: Matrix = contexts @ self._weights.T
        return means

    def deviations(self, contexts: Matrix) -> Matrix:  # (N, D) -> (N, A)
        """``sqrt(x' A^-1 x)``: how little is known of each action in each context."""
        squares = (np.matmul(contexts, self._inverse) * contexts).sum(axis=2)  # (A, N)
        return np.asarray(np.sqrt(np.maximum(squares, 0.0)).T)

    def take(self, contexts: Matrix, actions: NDArray[np.int64], rewards: Matrix) -> None:
        for context, action, reward in zip(contexts, actions, rewards, strict=True):
            inverse = self._inverse[action]
            gain = inverse @ context
            inverse -= np.outer(gain, gain / (1.0 + context @ gain))
            self._sums[action] += reward * context
        for action in np.unique(actions):
            self._weights[action] = self._inverse[action] @ self._sums[action]

    def state_dict(self) -> dict[str, Any]:
        own = {"inverse": self._inverse, "sums": self._sums, "weights": self._weights}
        return super().state_dict() | {name: value.copy() for name, value in own.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._inverse = np.array(state["inverse"], np.float64)
        self._sums, self._weights = (np.array(state[name], np.float64) for name in ("sums", "weights"))


class LinUCB(_Linear):
    """Upper confidence bounds of a ridge regression an action (Li et al. 2010, algorithm 1, disjoint).

    Args:
        alpha: how many deviations ``sqrt(x' A^-1 x)`` above its mean an action is worth trying, in reward units.
        ridge: what each Gram matrix starts with on its diagonal.
    """

    name = "linucb"

    def __init__(
        self,
        obs_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        seed: int = 0,
        *,
        alpha: float = 1.0,
        ridge: float = 3.0,
    ) -> None:
        alpha, ridge = checked(self.name, "alpha", alpha, 0.0), checked(self.name, "ridge", ridge, 1e-6)
        super().__init__(obs_space, action_space, seed, alpha, ridge)

    def explore(self, contexts: Matrix, draws: Matrix, roll: Matrix) -> Matrix:
        return self.means(contexts) + self._width * self.deviations(contexts)


class LinearThompson(_Linear):
    """Thompson sampling of a Bayesian ridge regression an action (Agrawal and Goyal 2013, arXiv 1209.3352).

    The posterior of an action's reward in a context is normal, and those of different actions are independent, so the
    rewards are drawn and not the weights.

    Args:
        scale: the posterior's standard deviation in units of ``sqrt(x' A^-1 x)`` (their ``v``), in reward units.
        ridge: what each Gram matrix starts with on its diagonal.
    """

    name = "linear_thompson"

    def __init__(
        self,
        obs_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        seed: int = 0,
        *,
        scale: float = 0.3,
        ridge: float = 3.0,
    ) -> None:
        scale, ridge = checked(self.name, "scale", scale, 0.0), checked(self.name, "ridge", ridge, 1e-6)
        super().__init__(obs_space, action_space, seed, scale, ridge)

    def explore(self, contexts: Matrix, draws: Matrix, roll: Matrix) -> Matrix:
        return self.means(contexts) + self._width * self.deviations(contexts) * normal_draws(draws)
