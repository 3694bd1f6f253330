"""Adam on a flat vector: a handful of vector operations, whatever the number of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["Adam"]


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) on one vector, after clipping the gradient's norm."""

    def __init__(self, size: int, eps: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.mean = torch.zeros(size)
        self.square = torch.zeros(size)
        self.steps = 0
        self.eps = eps
        self.betas = betas

    def step(self, flat: Any, grad: Any, learning_rate: float, max_norm: float) -> None:
        """Change `flat` in place; `grad` is clipped in place (`max_norm` infinite: not)."""
        self.steps += 1
        beta1, beta2 = self.betas
        norm = float(torch.linalg.vector_norm(grad))
        if norm > max_norm:
            grad.mul_(max_norm / (norm + 1e-6))
        self.mean.lerp_(grad, 1.0 - beta1)
        self.square.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        scale = math.sqrt(1.0 - beta2**self.steps)
        denominator = self.square.sqrt().mul_(1.0 / scale).add_(self.eps)
        flat.addcdiv_(self.mean, denominator, value=-learning_rate / (1.0 - beta1**self.steps))

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.numpy().copy(), "square": self.square.numpy().copy(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean.copy_(torch.from_numpy(np.array(state["mean"], np.float32)))
        self.square.copy_(torch.from_numpy(np.array(state["square"], np.float32)))
        self.steps = int(state["steps"])
