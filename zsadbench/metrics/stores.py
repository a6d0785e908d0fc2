"""Where maps wait for their second look: in memory, in a file, or with whoever made them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..errors import MetricError


class Store(Protocol):
    """Maps by image id."""

    def put(self, image_id: str, values: Any) -> None:
        """Keep a map."""
        ...

    def get(self, image_id: str) -> Any:
        """Return the map again."""
        ...


class RamStore:
    """Copies of the maps, so that callers may reuse their buffers."""

    def __init__(self) -> None:
        self._maps: dict[str, Any] = {}

    def put(self, image_id: str, values: Any) -> None:
        """Keep a copy of an array or tensor."""
        self._maps[image_id] = values.copy() if isinstance(values, np.ndarray) else values.clone()

    def get(self, image_id: str) -> Any:
        """Return the copy."""
        return self._maps[image_id]


class DiskStore:
    """One temporary file in the system's folder for such, gone with the store."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="zsadbench-maps-")  # noqa: SIM115 - lives as long as we do
        self._places: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}

    def put(self, image_id: str, values: Any) -> None:
        """Append the map to the file."""
        array = values if isinstance(values, np.ndarray) else values.cpu().numpy()
        self._places[image_id] = self._file.seek(0, 2), array.shape, array.dtype
        self._file.write(array.tobytes())

    def get(self, image_id: str) -> Any:
        """Return the map as a memory-mapped array."""
        start, shape, kind = self._places[image_id]
        self._file.flush()
        return np.memmap(self._file, kind, mode="c", offset=start, shape=shape)


class SourceStore:
    """Keeps nothing and asks the caller for a map a second time."""

    def __init__(self, source: Callable[[str], Any]) -> None:
        self.get = source

    def put(self, image_id: str, values: Any) -> None:
        """Keep nothing."""


def make_store(keep: str, source: Callable[[str], Any] | None) -> Store:
    """Return the store named ``keep``; ``"source"`` needs the callable that renders a map again."""
    if (keep == "source") != (source is not None):
        raise MetricError('keep="source" and source=... go together: give both or neither')
    if source is not None:
        return SourceStore(source)
    if keep not in ("ram", "disk"):
        raise MetricError(f"cannot keep maps in '{keep}': use ram, disk or source")
    return RamStore() if keep == "ram" else DiskStore()
