"""All parameters of a network in one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["FlatParameters"]


class FlatParameters:
    """Named parameters that are views of one tensor (`flat`), and their gradients, views of another (`grad`).

    So clipping, Adam and a step along a direction are a handful of vector operations, and `backward` fills `grad` by
    itself. Both start as zeros.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        size = sum(math.prod(shape) for shape in shapes.values())
        self.flat = torch.zeros(size)
        self.grad = torch.zeros(size)
        self.parameters: dict[str, Any] = {}
        start = 0
        for name, shape in shapes.items():
            stop = start + math.prod(shape)
            parameter = self.flat[start:stop].view(shape).requires_grad_()
            parameter.grad = self.grad[start:stop].view(shape)
            self.parameters[name] = parameter
            start = stop

    def state_dict(self) -> dict[str, NDArray[np.float32]]:
        return {name: parameter.detach().numpy().copy() for name, parameter in self.parameters.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """In place. Raises ValueError for another architecture."""
        for name, parameter in self.parameters.items():
            given = np.asarray(state[name], np.float32) if name in state else None
            if given is None or given.shape != tuple(parameter.shape):
                got = "nothing" if given is None else f"shape {given.shape}"
                raise ValueError(f"weights '{name}': expected shape {tuple(parameter.shape)}, got {got}.")
            parameter.detach().copy_(torch.from_numpy(given.copy()))
