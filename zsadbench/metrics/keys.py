"""Scores as whole numbers of the same order: float32 as int32, float64 as int64.

Integers compare exactly whatever the processor does with subnormal numbers, and -0.0 and +0.0
share one key, so every back end counts the same pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.signedinteger[Any]]
Floats = NDArray[np.floating[Any]]
Counts = NDArray[np.int64]


def to_keys(values: Floats) -> Keys:
    """Return the keys of finite ``values``; same shape, same order, ties stay ties."""
    bits: Keys = np.ascontiguousarray(values).view(np.int64 if values.dtype == np.float64 else np.int32)
    return np.where(bits >= 0, bits, -(bits & np.iinfo(bits.dtype).max))


def from_keys(keys: Keys) -> Floats:
    """Return the values of ``keys``, in the type they came from (+0.0 for either zero)."""
    bits = np.where(keys >= 0, keys, -keys | np.iinfo(keys.dtype).min)
    values: Floats = bits.view(np.float64 if keys.dtype == np.int64 else np.float32)
    return values


def widened(keys: Keys) -> Keys:
    """Return keys as those of float64, which float32 and float64 scores may share."""
    return keys if keys.dtype == np.int64 else to_keys(from_keys(keys).astype(np.float64))
