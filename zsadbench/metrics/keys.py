"""Float32 scores as int32 keys of the same order.

Integers compare exactly whatever the processor does with subnormal numbers, and -0.0 and +0.0
share one key, so every back end counts the same pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.int32]
Floats = NDArray[np.float32]
Counts = NDArray[np.int64]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_SIGN = np.int32(-0x80000000)


def to_keys(values: Floats) -> Keys:
    """Return the keys of finite float32 ``values``; same shape, same order, ties stay ties."""
    bits = np.ascontiguousarray(values).view(np.int32)
    return np.where(bits >= 0, bits, -(bits & _MAGNITUDE))


def from_keys(keys: Keys) -> Floats:
    """Return the float32 values of ``keys`` (+0.0 for either zero)."""
    return np.where(keys >= 0, keys, -keys | _SIGN).view(np.float32)
