"""A rollout's transitions as minibatches: row by row, or by sequences where the network has a memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from instructgym.agents.policy_gradient.networks import Network, RecurrentNetwork
from instructgym.agents.rollout import Rollout

__all__ = ["Minibatch", "Minibatches", "Rows", "Sequences"]

Shuffle = Callable[[int], Any]
"""An order of so many items, torch int64 (size,)."""


@dataclass(frozen=True)
class Minibatch:
    """B transitions: what the network says of them now, and what was recorded."""

    logits: Any  # (B, A)
    values: Any  # (B,)
    actions: Any  # (B,)
    mask: Any | None  # (B, A); None where all is legal
    columns: Any  # (B, K): whatever the learner wants beside each row


class Minibatches(Protocol):
    """All learned transitions of a rollout, in minibatches, as often as asked."""

    def epoch(self, shuffle: Shuffle, size: int) -> Iterator[Minibatch]:
        """Each transition once. A minibatch is computed when it is reached, with the weights of then."""


class Rows:
    """Transitions on their own, `size` of them a minibatch, in any order."""

    def __init__(self, network: Network, rollout: Rollout, columns: list[NDArray[np.float32]]) -> None:
        keep = rollout.learned
        self._network = network
        self._width = rollout.obs.shape[1]
        masks = rollout.masks[keep]
        self._masks = None if masks.all() else torch.from_numpy(masks)
        self._actions = torch.from_numpy(rollout.actions[keep])
        # One row a transition, so that shuffling is one gather.
        stacked = np.stack([column[keep] for column in columns], axis=1)
        self._rows = torch.from_numpy(np.concatenate([rollout.obs[keep], stacked], axis=1))

    def epoch(self, shuffle: Shuffle, size: int) -> Iterator[Minibatch]:
        order = shuffle(len(self._rows))
        rows, actions = self._rows[order], self._actions[order]
        masks = None if self._masks is None else self._masks[order]
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            logits, values = self._network.forward(rows[part, : self._width])
            mask = None if masks is None else masks[part]
            yield Minibatch(logits, values, actions[part], mask, rows[part, self._width :])


class Sequences:
    """Pieces of an env's transitions, in order, within an episode, of at most `length` steps.

    A piece starts from the memory that the policy had there when it acted, and gradients go back to its start
    (truncated backpropagation through time from stored states; Kapturowski et al. 2019 compare the ways). What is not
    to be learned from is gone through and left out of the loss. A minibatch has whole pieces: about `size` transitions.
    """

    def __init__(
        self, network: RecurrentNetwork, rollout: Rollout, columns: list[NDArray[np.float32]], length: int
    ) -> None:
        self._network = network
        dim = rollout.obs.shape[1] - network.memory
        piece, place = _pieces(rollout, length)
        grid = (int(piece.max()) + 1, int(place.max()) + 1)

        def padded(values: NDArray[Any]) -> Any:
            out = np.zeros((*grid, *values.shape[1:]), values.dtype)
            out[piece, place] = values
            return torch.from_numpy(out)

        starts = np.zeros((grid[0], network.memory), np.float32)
        first = place == 0
        starts[piece[first]] = rollout.obs[first, dim:]
        learned = padded(rollout.learned)
        used = learned.any(dim=1)
        self._starts = torch.from_numpy(starts)[used]
        self._learned = learned[used]
        self._obs = padded(rollout.obs[:, :dim])[used]
        self._actions = padded(rollout.actions)[used]
        self._masks = None if rollout.masks[rollout.learned].all() else padded(rollout.masks)[used]
        self._columns = padded(np.stack(columns, axis=1))[used]
        self._counts = self._learned.sum(dim=1)

    def epoch(self, shuffle: Shuffle, size: int) -> Iterator[Minibatch]:
        order = shuffle(len(self._obs))
        group = (torch.cumsum(self._counts[order], 0) - 1) // size
        for number in torch.unique_consecutive(group).tolist():
            pieces = order[group == number]
            keep = self._learned[pieces]
            logits, values = self._network.unroll(self._obs[pieces], self._starts[pieces])
            mask = None if self._masks is None else self._masks[pieces][keep]
            yield Minibatch(logits[keep], values[keep], self._actions[pieces][keep], mask, self._columns[pieces][keep])


def _pieces(rollout: Rollout, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # -> (M,), (M,)
    """Of each transition: the number of its piece, and its place in it."""
    order = np.lexsort((rollout.times, rollout.rows))
    done = (rollout.terminated | rollout.truncated)[order]
    starts = np.ones(len(order), bool)
    starts[1:] = done[:-1] | (rollout.rows[order][1:] != rollout.rows[order][:-1])
    index = np.arange(len(order))
    step = index - np.maximum.accumulate(np.where(starts, index, 0))  # of the episode, in this rollout
    starts |= step % length == 0
    piece, place = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    piece[order] = np.cumsum(starts) - 1
    place[order] = step % length
    return piece, place
