"""The numerics of a trust-region step: Fisher-vector products, conjugate gradient, the KL of masked categoricals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["FisherProduct", "conjugate_gradient", "flat_gradient", "mean_kl"]


class FisherProduct:
    """v -> (F + damping) v, where F is the Hessian of the batch's mean KL(old || new) at new = old.

    For a categorical with logits z(theta) and probabilities p that is exactly ``mean J' (diag(p) - p p') J`` with
    J = dz/dtheta, so no second derivative of the network is needed: J v by differentiating ``J' u``, which is linear in
    u, with respect to u, and J' w by one backward pass. An illegal action has p = 0 and drops out.

    Args:
        logits: (B, A), with their graph.
        probs: (B, A), of the legal actions; 0 for the others.
        parameters: those that the logits depend on.
        damping: added to the diagonal.
    """

    def __init__(self, logits: Any, probs: Any, parameters: Sequence[Any], damping: float) -> None:
        self._logits, self._probs, self._parameters, self._damping = logits, probs, list(parameters), damping
        self._dual = torch.zeros_like(logits, requires_grad=True)
        self._pulled = torch.cat(
            [part.reshape(-1) for part in torch.autograd.grad(logits, self._parameters, self._dual, create_graph=True)]
        )

    def __call__(self, vector: Any) -> Any:  # (P,) -> (P,)
        (moved,) = torch.autograd.grad(self._pulled, self._dual, vector, retain_graph=True)
        weighted = self._probs * (moved - (self._probs * moved).sum(dim=1, keepdim=True)) / len(moved)
        parts = torch.autograd.grad(self._logits, self._parameters, weighted, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in parts]).add_(vector, alpha=self._damping)


def conjugate_gradient(
    product: Callable[[Any], Any], target: Any, max_steps: int, tolerance: float = 1e-10
) -> Any:  # (P,) -> (P,)
    """x with ``product(x) = target``, approximately (Hestenes and Stiefel 1952), for a positive definite product.

    Ends after `max_steps`, or when the squared residual is below `tolerance` times the target's squared norm. For the
    zero vector it is the zero vector.
    """
    solution = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squared = residual.dot(residual)
    enough = tolerance * float(squared)
    for _ in range(max_steps):
        if float(squared) <= enough:
            break
        image = product(direction)
        step = squared / direction.dot(image)
        solution += step * direction
        residual -= step * image
        before, squared = squared, residual.dot(residual)
        direction = residual + (squared / before) * direction
    return solution


def flat_gradient(scalar: Any, parameters: Sequence[Any]) -> Any:  # () -> (P,)
    """The gradient as one vector; its graph is kept."""
    parts = torch.autograd.grad(scalar, list(parameters), retain_graph=True)
    return torch.cat([part.reshape(-1) for part in parts])


def mean_kl(old: NDArray[np.float32], new: NDArray[np.float32]) -> float:  # each (B, A)
    """Mean KL(old || new) of categoricals, nats. An action that `old` never takes counts nothing.

    Infinite where `new` never takes an action that `old` takes.
    """
    ratio = np.ones(old.shape)
    with np.errstate(divide="ignore"):
        np.divide(old, new, out=ratio, where=old > 0)
    return float((old * np.log(ratio)).sum(axis=1).mean())
