"""Value functions by least squares, apart from the policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from instructgym.agents.policy_gradient.adam import Adam

__all__ = ["fit_values"]


def fit_values(
    values: Callable[[Any], Any],
    owner: Any,
    optimiser: Adam,
    obs: NDArray[np.float32],
    targets: NDArray[np.float32],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    shuffled: Callable[[int], Any],
    l2: Any | None = None,
) -> float:
    """Minimise the mean squared error to `targets` (B,), in place; returns that of the last epoch.

    Args:
        values: torch, (b, D) -> (b,), with gradients.
        owner: has the parameters: `flat` and `grad`.
        optimiser: of `owner.flat`.
        obs: (B, D).
        targets: (B,).
        epochs: passes over all rows.
        batch_size: of a minibatch.
        learning_rate: of Adam.
        shuffled: the order of the rows, by epoch.
        l2: (P,), by parameter: what its square is multiplied by in the loss.
    """
    rows, wanted = torch.from_numpy(obs), torch.from_numpy(targets)
    losses: list[Any] = []
    for number in range(epochs):
        losses = []
        order = shuffled(number)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            error = torch.nn.functional.mse_loss(values(rows[part]), wanted[part])
            losses.append(error.detach())
            owner.grad.zero_()
            error.backward()
            if l2 is not None:
                owner.grad.addcmul_(l2, owner.flat, value=2.0)
            optimiser.step(owner.flat, owner.grad, learning_rate, math.inf)
    return float(torch.stack(losses).mean())
