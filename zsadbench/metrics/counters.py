"""Counting pixels against the sorted scores of the anomalous ones.

A counter is made from the keys of all anomalous pixels and then fed maps, one at a time and in
any order; maps carry a group so that AUPIMO can tell normal images of different sizes apart.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..errors import MetricError, suggest
from .keys import Counts, Keys, to_keys

BACKENDS = ("auto", "numba", "numpy", "torch")

Tally = Callable[[list[Any], Keys], tuple[Counts, Counts]]
"""(waiting pixels, keys) -> per key, the pixels not above it and the pixels equal to it."""


class Counter(Protocol):
    """Counts of the pixels of each group, exact and independent of the order of calls."""

    def add(self, values: Any, group: int) -> None:
        """Count every pixel of a finite map."""
        ...

    def counts(self, group: int) -> tuple[Counts, Counts]:
        """Return, per key, the pixels not above it and the pixels equal to it."""
        ...


class SortingCounter:
    """Collects pixels, sorts them by the chunk and looks the keys up in the chunk."""

    def __init__(self, keys: Keys, convert: Callable[[Any], Any], tally: Tally, chunk: int) -> None:
        self._keys, self._convert, self._tally, self._chunk = keys, convert, tally, chunk
        self._waiting: dict[int, list[Any]] = defaultdict(list)
        self._pixels: dict[int, int] = defaultdict(int)
        self._counts: dict[int, Counts] = defaultdict(lambda: np.zeros((2, keys.size), np.int64))

    def add(self, values: Any, group: int) -> None:
        """Count every pixel of a finite map."""
        self._waiting[group].append(self._convert(values))
        self._pixels[group] += values.shape[0] * values.shape[1]
        if sum(self._pixels.values()) >= self._chunk:
            self._flush(max(self._pixels, key=lambda waiting: self._pixels[waiting]))

    def counts(self, group: int) -> tuple[Counts, Counts]:
        """Return, per key, the pixels not above it and the pixels equal to it."""
        self._flush(group)
        at_most, equal = self._counts[group]
        return at_most, equal

    def _flush(self, group: int) -> None:
        if self._pixels.pop(group, 0):
            for total, more in zip(
                self._counts[group], self._tally(self._waiting.pop(group), self._keys), strict=True
            ):
                total += more


def _tally(waiting: list[Keys], keys: Keys) -> tuple[Counts, Counts]:
    chunk = np.concatenate(waiting)
    chunk.sort()
    at_most = np.searchsorted(chunk, keys, side="right")
    return at_most, at_most - np.searchsorted(chunk, keys, side="left")


def choose_backend(name: str, values: Any) -> str:
    """Return the back end to use for maps like ``values``: torch on a GPU, else numba if it loads."""
    if name != "auto":
        return name
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor) and values.is_cuda:
        return "torch"
    return "numpy" if _why_not("numba") else "numba"


def check_backend(name: str) -> None:
    """Refuse a back end that cannot count.

    Raises:
        MetricError: if it is unknown or does not load, with those that do.
    """
    if name not in BACKENDS:
        raise MetricError(f"unknown metrics back end '{name}'.{suggest(name, BACKENDS)}")
    why_not = _why_not(name) if name in ("numba", "torch") else None
    if why_not:
        raise MetricError(
            f"metrics back end '{name}' does not load ({why_not}): "
            f"install {name}, or use the back end numpy (same numbers)"
        )


def _why_not(name: str) -> ImportError | None:
    try:
        importlib.import_module(f"{__package__}.{name}_backend")
    except ImportError as error:
        return error
    return None


def make_counter(backend: str, keys: Keys) -> Counter:
    """Return a counter against ``keys``, rising and distinct, at least one.

    Keys of float64 scores are counted by sorting: the compiled counter knows those of float32 alone.
    """
    wide = keys.dtype == np.int64
    if backend == "numba" and not wide:
        from .numba_backend import NumbaCounter

        return NumbaCounter(keys)
    if backend == "torch":
        from . import torch_backend

        convert = torch_backend.to_wide_keys if wide else torch_backend.to_keys
        return SortingCounter(keys, convert, torch_backend.tally, chunk=1 << 24)
    kind: type[np.floating[Any]] = np.float64 if wide else np.float32

    def convert_array(values: Any) -> Keys:
        return to_keys(np.asarray(values, kind)).ravel()

    return SortingCounter(keys, convert_array, _tally, chunk=1 << 22)
