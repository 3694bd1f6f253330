"""Logged episodes as arrays: what an offline learner is given, whoever chose and whatever the task is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from instructgym.agents.spaces import Flattener
from instructgym.errors import UsageError

__all__ = ["Batch", "LoggedEpisodes"]


@dataclass(frozen=True)
class LoggedEpisodes:
    """M valid transitions, ordered by (episode, step). A step whose call failed is no transition and is left out.

    An episode whose last row is not `terminated` was cut off from outside: its rows are learned from, with a bootstrap
    from `next_obs`, but its return is unknown. `clusters` says which episodes are no independent draws (those that
    start at the same place); by default each is its own.

    Raises `UsageError` where the arrays contradict each other.
    """

    obs_space: spaces.Space[Any]
    obs: Any  # (M, ...) as `Flattener` takes it: an array, or a dict of arrays
    actions: NDArray[np.int64]  # (M,)
    rewards: NDArray[np.float64]  # (M,)
    next_obs: Any  # like `obs`; the true successor, also where the episode ended
    terminated: NDArray[np.bool_]  # (M,)
    masks: NDArray[np.bool_]  # (M, A): what was legal
    next_masks: NDArray[np.bool_]  # (M, A); whatever it is where the episode ended
    log_probs: NDArray[np.float64]  # (M,): of the behaviour policy's choice; NaN where it is not known
    episodes: NDArray[np.int64]  # (M,)
    steps: NDArray[np.int64]  # (M,): within the episode, from 0 without gaps
    clusters: NDArray[np.int64] | None = None  # (M,), the same within an episode

    def __post_init__(self) -> None:
        size = len(self.actions)
        for name in ("rewards", "terminated", "masks", "next_masks", "log_probs", "episodes", "steps", "clusters"):
            column = getattr(self, name)
            if column is not None and len(column) != size:
                raise UsageError(f"logged episodes: {name} has {len(column)} rows; expected {size}, one an action.")
        if size and (self.actions.min() < 0 or self.actions.max() >= self.num_actions):
            raise UsageError(
                f"logged episodes: actions from {self.actions.min()} to {self.actions.max()}; expected 0 to "
                f"{self.num_actions - 1}, as many as the masks have columns."
            )
        if not np.isfinite(self.rewards).all():
            raise UsageError("logged episodes: a reward is not a number; leave out the steps that have none.")
        starts = np.r_[True, self.episodes[1:] != self.episodes[:-1]][:size]
        expected = np.arange(size) - np.maximum.accumulate(np.where(starts, np.arange(size), 0))
        if size and ((np.diff(self.episodes) < 0).any() or not np.array_equal(self.steps, expected)):
            raise UsageError("logged episodes: rows out of order; expected (episode, step), the steps 0, 1, 2, ...")

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def num_actions(self) -> int:
        return int(self.masks.shape[1])

    @property
    def num_episodes(self) -> int:
        return len(np.unique(self.episodes))

    @property
    def horizon(self) -> int:
        """The length of the longest episode."""
        return int(self.steps.max(initial=-1)) + 1

    @property
    def knows_behaviour(self) -> bool:
        """True if the probability of every choice is known."""
        return not np.isnan(self.log_probs).any()

    def flat(self) -> NDArray[np.float32]:  # -> (M, D)
        return Flattener(self.obs_space)(self.obs)

    def next_flat(self) -> NDArray[np.float32]:  # -> (M, D)
        return Flattener(self.obs_space)(self.next_obs)

    def rows(self, keep: NDArray[Any]) -> LoggedEpisodes:
        """The rows that `keep` names (bool (M,) or indices), whole episodes or beginnings of them."""
        arrays: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                arrays[field.name] = value[keep]
            elif isinstance(value, dict):
                arrays[field.name] = rows_of(value, keep)
        return replace(self, **arrays)

    def complete(self) -> LoggedEpisodes:
        """Only the episodes that came to their end."""
        return self.rows(np.isin(self.episodes, self.episodes[self.terminated]))

    def returns(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Each episode and its undiscounted return."""
        names, places = np.unique(self.episodes, return_inverse=True)
        return names, np.bincount(places, weights=self.rewards, minlength=len(names)).astype(np.float64)

    @classmethod
    def joined(cls, parts: Sequence[LoggedEpisodes]) -> LoggedEpisodes:
        """Several logs as one, their episodes counted on; equal `clusters` of different logs stay equal.

        Raises `UsageError` for no log at all, and for logs that have different spaces or numbers of actions.
        """
        if not parts:
            raise UsageError("no logged episodes to join; expected at least one log.")
        first = parts[0]
        for other in parts[1:]:
            if other.obs_space != first.obs_space or other.num_actions != first.num_actions:
                raise UsageError("logged episodes of different observation spaces or numbers of actions.")
        offsets = np.cumsum([0, *(int(part.episodes.max(initial=-1)) + 1 for part in parts)])
        columns = ("actions", "rewards", "terminated", "masks", "next_masks", "log_probs", "steps")
        clustered = all(part.clusters is not None for part in parts)
        return cls(
            obs_space=first.obs_space,
            obs=_joined_obs([part.obs for part in parts]),
            next_obs=_joined_obs([part.next_obs for part in parts]),
            episodes=np.concatenate([part.episodes + offset for part, offset in zip(parts, offsets, strict=False)]),
            clusters=np.concatenate([part.clusters for part in parts]) if clustered else None,
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns},
        )


Batch = LoggedEpisodes
"""What `learn_from` takes."""


def rows_of(obs: Any, keep: NDArray[Any]) -> Any:
    """Some rows of a batch of observations, or of any nest of arrays with the rows in their first axis."""
    if isinstance(obs, dict):
        return {name: rows_of(value, keep) for name, value in obs.items()}
    if isinstance(obs, tuple):
        return tuple(rows_of(value, keep) for value in obs)
    return obs[keep]


def _joined_obs(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {name: _joined_obs([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)
