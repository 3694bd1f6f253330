"""A reward's memory as JSON: plain values and arrays, equal memory being equal bytes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["decode_memory", "encode_memory"]

_ARRAY = "__array__"


def encode_memory(value: Any) -> Any:
    """`value` with arrays as {dtype, shape, base64 of the bytes}, mappings and sequences as JSON has them."""
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
        return {_ARRAY: data, "dtype": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): encode_memory(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode_memory(inner) for inner in value]
    return value


def decode_memory(value: Any) -> Any:
    """The inverse of `encode_memory`, but for tuples, which come back as lists."""
    if isinstance(value, list):
        return [decode_memory(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        data = base64.b64decode(value[_ARRAY])
        return np.frombuffer(data, dtype=np.dtype(value["dtype"])).reshape(value["shape"]).copy()
    return {name: decode_memory(inner) for name, inner in value.items()}
