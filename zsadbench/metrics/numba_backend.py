"""The compiled counter: one look-up per pixel.

The key space is cut into 4096 blocks by the key's top 12 bits (sign, exponent, three bits of the
mantissa), and every block into about as many slots as it holds keys.  A pixel's slot says where
among the keys to look; a few steps from there end at the first key not below the pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from numba import int32, njit, uint32, void
from numba.types import Array
from numpy.typing import NDArray

from .keys import Counts, Floats, Keys

_BLOCK_BITS = 20
_BLOCKS = 1 << (32 - _BLOCK_BITS)
_HALF = _BLOCKS // 2
_WITHIN = (1 << _BLOCK_BITS) - 1
_FULL = (1 << 32) - 1


def _count(bits, keys, slots, first, shift, at_gap, at_key):  # type: ignore[no-untyped-def]
    for i in range(bits.size):
        bit = bits[i]
        key = int32(bit) if bit >= 0 else int32(-(bit & 0x7FFFFFFF))
        block = uint32((key >> _BLOCK_BITS) + _HALF)
        slot = uint32(first[block]) + (uint32(key & _WITHIN) >> uint32(shift[block]))
        low, high = uint32(slots[slot]), uint32(slots[slot + uint32(1)])
        while high - low > uint32(8):
            middle = (low + high) >> uint32(1)
            if keys[middle] < key:
                low = middle + uint32(1)
            else:
                high = middle
        while keys[low] < key:
            low += uint32(1)
        at_gap[low] += 1
        if keys[low] == key:
            at_key[low] += 1


def _compile(function: Callable[..., None]) -> Callable[..., None]:
    """Compile for use without the interpreter's lock; without a writable cache, for this run only."""
    # An argument declared read-only also takes arrays that are not.
    known, bins = Array(int32, 1, "C", readonly=True), Array(uint32, 1, "C")
    signature = [void(known, known, known, known, known, bins, bins)]
    try:
        compiled = njit(signature, cache=True, nogil=True)(function)
    except (RuntimeError, OSError):
        compiled = njit(signature, nogil=True)(function)
    return cast(Callable[..., None], compiled)


count = _compile(_count)


class _Bins:
    """Counters of one group: small and fast ones, emptied into large ones before they overflow.

    ``at_gap`` counts pixels above the key before and not above this one, ``at_key`` those equal to it.
    """

    def __init__(self, size: int) -> None:
        self.at_gap = np.zeros(size + 1, np.uint32)
        self.at_key = np.zeros(size + 1, np.uint32)
        self.room = _FULL
        self._old = np.zeros((2, 1), np.int64)

    def totals(self) -> Counts:
        return self._old + np.stack((self.at_gap, self.at_key))

    def empty(self) -> None:
        self._old = self.totals()
        self.at_gap[:] = 0
        self.at_key[:] = 0
        self.room = _FULL


class NumbaCounter:
    """Streams over pixels once, with two 4-byte counters per key and group."""

    def __init__(self, keys: Keys) -> None:
        self._keys = np.append(keys, np.int32(0x7FFFFFFF))
        self._slots, self._first, self._shift = _slots(keys)
        self._bins: dict[int, _Bins] = {}

    def add(self, values: Floats, group: int) -> None:
        """Count every pixel of a finite float32 map."""
        if group not in self._bins:
            self._bins[group] = _Bins(self._keys.size - 1)
        bins = self._bins[group]
        if bins.room < values.size:
            bins.empty()
        bins.room -= values.size
        bits = np.ascontiguousarray(values).reshape(-1).view(np.int32)
        count(bits, self._keys, self._slots, self._first, self._shift, bins.at_gap, bins.at_key)

    def counts(self, group: int) -> tuple[Counts, Counts]:
        """Return, per key, the pixels not above it and the pixels equal to it."""
        bins = self._bins.get(group)
        if bins is None:
            nothing = np.zeros(self._keys.size - 1, np.int64)
            return nothing, nothing
        at_gap, at_key = bins.totals()
        return np.cumsum(at_gap[:-1]), at_key[:-1]


def _slots(keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return where among ``keys`` each slot starts, each block's first slot and its key shift."""
    held = np.bincount((keys >> _BLOCK_BITS) + _HALF, minlength=_BLOCKS)
    bits = np.minimum(np.ceil(np.log2(np.maximum(held, 1))).astype(np.int64), _BLOCK_BITS)
    shift, size = _BLOCK_BITS - bits, 1 << bits
    first = np.cumsum(size) - size
    start = np.arange(size.sum()) - np.repeat(first, size)
    start <<= np.repeat(shift, size)
    start += np.repeat((np.arange(_BLOCKS) - _HALF) << _BLOCK_BITS, size)
    slots = np.append(np.searchsorted(keys, start.astype(np.int32)), keys.size)
    return slots.astype(np.int32), first.astype(np.int32), shift.astype(np.int32)
