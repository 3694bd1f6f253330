"""Running normalisation of observations and scaling of rewards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ObservationNormaliser", "RewardScaler", "RunningMoments"]


class RunningMoments:
    """Mean and variance of a stream, in float64, merged batch by batch (Chan, Golub, LeVeque 1983).

    The result does not depend, but for rounding, on how the stream is cut into batches.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.count = 0
        self.mean = np.zeros(shape, np.float64)
        self.m2 = np.zeros(shape, np.float64)

    @property
    def var(self) -> NDArray[np.float64]:
        """Population variance; 1 as long as nothing was seen."""
        return self.m2 / self.count if self.count else np.ones_like(self.m2)

    def update(self, batch: NDArray[Any]) -> None:
        """Merge `batch` (B, *shape)."""
        size = len(batch)
        if size == 0:
            return
        values = np.asarray(batch, np.float64)
        mean = values.mean(axis=0)
        delta = mean - self.mean
        total = self.count + size
        self.m2 = self.m2 + ((values - mean) ** 2).sum(axis=0) + delta**2 * (self.count * size / total)
        self.mean = self.mean + delta * (size / total)
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "mean": self.mean.copy(), "m2": self.m2.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = int(state["count"])
        self.mean = np.array(state["mean"], np.float64).reshape(self.mean.shape)
        self.m2 = np.array(state["m2"], np.float64).reshape(self.m2.shape)


class ObservationNormaliser:
    """z-scores of flat observations, clipped at +-`clip`.

    Its owner updates it once a rollout, so that all rows of a rollout are seen through the same statistics and the
    first minibatch has a probability ratio of 1. Before the first update it only clips.
    """

    def __init__(self, dim: int, clip: float, eps: float = 1e-8) -> None:
        self.moments = RunningMoments((dim,))
        self.clip = clip
        self.eps = eps
        self._refresh()

    def __call__(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:  # (N, dim) -> (N, dim)
        scaled = (obs - self._mean) * self._scale
        return np.clip(scaled, -self.clip, self.clip, out=scaled)

    def update(self, obs: NDArray[np.float32]) -> None:  # (B, dim), not normalised
        self.moments.update(obs)
        self._refresh()

    def state_dict(self) -> dict[str, Any]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.moments.load_state_dict(state)
        self._refresh()

    def _refresh(self) -> None:
        self._mean = self.moments.mean.astype(np.float32)
        self._scale = (1.0 / np.sqrt(self.moments.var + self.eps)).astype(np.float32)


class RewardScaler:
    """Divides rewards by the running standard deviation of the discounted return (no shift, so 0 stays 0)."""

    def __init__(self, gamma: float, eps: float = 1e-8) -> None:
        self.gamma = gamma
        self.eps = eps
        self.moments = RunningMoments()
        self.returns: NDArray[np.float64] | None = None

    def restart(self) -> None:
        """Forget the running returns: the envs were reset."""
        self.returns = None

    def __call__(self, rewards: NDArray[np.float32]) -> NDArray[np.float32]:  # any shape
        return (rewards / np.sqrt(self.moments.var + self.eps)).astype(np.float32)

    def update(
        self,
        rewards: NDArray[np.float32],
        done: NDArray[np.bool_],
        valid: NDArray[np.bool_],
        present: NDArray[np.bool_],
    ) -> None:  # each (T, N)
        """Take a rollout in. Where `present` is False there was no step: the env's return waits for its next one."""
        returns = np.zeros(rewards.shape[1]) if self.returns is None else self.returns
        seen = np.empty(rewards.shape, np.float64)
        for t, reward in enumerate(rewards):
            returns = np.where(present[t], returns * self.gamma + reward, returns)
            seen[t] = returns
            returns = np.where(done[t], 0.0, returns)
        self.returns = returns
        self.moments.update(seen[valid])

    def state_dict(self) -> dict[str, Any]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.moments.load_state_dict(state)
        self.returns = None
