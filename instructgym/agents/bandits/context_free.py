"""Bandits that see nothing: they find the action that is best on average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.agents.bandits.bandit import Bandit, Matrix, checked
from instructgym.agents.bandits.normal import normal_draws

__all__ = ["UCB1", "EpsilonGreedy", "Thompson"]


class _Counts(Bandit):
    """How often each action was chosen, the mean of what it brought and the squares around it (Welford)."""

    observes = False

    def __init__(self, obs_space: spaces.Space[Any], action_space: spaces.Space[Any], seed: int) -> None:
        super().__init__(obs_space, action_space, seed)
        self._counts = np.zeros(self.actions, np.int64)
        self._means = np.zeros(self.actions)
        self._squares = np.zeros(self.actions)

    def means(self, contexts: Matrix) -> Matrix:
        return np.tile(self._means, (len(contexts), 1))

    def take(self, contexts: Matrix, actions: NDArray[np.int64], rewards: Matrix) -> None:
        for action, reward in zip(actions, rewards, strict=True):
            self._counts[action] += 1
            distance = reward - self._means[action]
            self._means[action] += distance / self._counts[action]
            self._squares[action] += distance * (reward - self._means[action])

    def spread(self) -> float:
        """The standard deviation of a reward around its action's mean, pooled over actions; 1 with no two of one."""
        freedom = int(np.maximum(self._counts - 1, 0).sum())
        return math.sqrt(float(self._squares.sum()) / freedom) if freedom else 1.0

    def state_dict(self) -> dict[str, Any]:
        own = {"counts": self._counts, "means": self._means, "squares": self._squares}
        return super().state_dict() | {name: value.copy() for name, value in own.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._counts = np.array(state["counts"], np.int64)
        self._means, self._squares = (np.array(state[name], np.float64) for name in ("means", "squares"))


class EpsilonGreedy(_Counts):
    """The best action so far, and with probability `epsilon` any one (Sutton and Barto 2018, section 2.4).

    Args:
        epsilon: 0 to 1. An action that was never tried comes first.
    """

    name = "epsilon_greedy"

    def __init__(
        self, obs_space: spaces.Space[Any], action_space: spaces.Space[Any], seed: int = 0, *, epsilon: float = 0.1
    ) -> None:
        super().__init__(obs_space, action_space, seed)
        self._epsilon = checked(self.name, "epsilon", epsilon, 0.0, 1.0)

    def explore(self, contexts: Matrix, draws: Matrix, roll: Matrix) -> Matrix:
        greedy = np.where(self._counts == 0, np.inf, self._means)
        return np.where(roll[:, None] < self._epsilon, draws, greedy)


class UCB1(_Counts):
    """Upper confidence bounds ``mean + c s sqrt(2 ln t / n)`` (Auer et al. 2002; `s` is the rewards' deviation).

    Args:
        c: how wide the bounds are; the original's 1 is for rewards between 0 and 1, where `s` is 1/2 at most.
    """

    name = "ucb1"

    def __init__(
        self, obs_space: spaces.Space[Any], action_space: spaces.Space[Any], seed: int = 0, *, c: float = 1.0
    ) -> None:
        super().__init__(obs_space, action_space, seed)
        self._c = checked(self.name, "c", c, 0.0)

    def explore(self, contexts: Matrix, draws: Matrix, roll: Matrix) -> Matrix:
        tried = np.maximum(self._counts, 1)
        bounds = self._means + self._c * self.spread() * np.sqrt(2.0 * math.log(max(self._counts.sum(), 1)) / tried)
        return np.tile(np.where(self._counts == 0, np.inf, bounds), (len(contexts), 1))


class Thompson(_Counts):
    """Thompson sampling of each action's mean, with normal posteriors (Agrawal and Goyal 2013, arXiv 1209.3353).

    Args:
        scale: the posterior's standard deviation in units of ``s / sqrt(n + 1)``, where `s` is the rewards' deviation.
    """

    name = "thompson"

    def __init__(
        self, obs_space: spaces.Space[Any], action_space: spaces.Space[Any], seed: int = 0, *, scale: float = 1.0
    ) -> None:
        super().__init__(obs_space, action_space, seed)
        self._scale = checked(self.name, "scale", scale, 0.0)

    def explore(self, contexts: Matrix, draws: Matrix, roll: Matrix) -> Matrix:
        deviations = self._scale * self.spread() / np.sqrt(self._counts + 1.0)
        return np.asarray(self._means + deviations * normal_draws(draws))
