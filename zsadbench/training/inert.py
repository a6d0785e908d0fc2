"""Published files that are no dictionary of tensors, read as data: a bare tensor, or a pickled module.

A pickled module names classes.  Here every name stands for an inert object that only keeps what it was
given, so no class is looked up and nothing of the file is run; the numbers are then cut out of the
archive by their declared place, type and size.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip import LARGEST_PICKLE
from ..errors import WeightsError

TENSOR, MODULE = "bare tensor", "pickled module"
"""Under which names the contents of such files stand beside tables of ordinary ones."""


class Inert:
    """Stands for every class and function that a pickle names; keeps arguments, state and items."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.arguments = (*self.arguments, (key, value))

    def append(self, value: Any) -> None:
        """Take an item of a pickled list."""
        self.arguments = (*self.arguments, value)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type(name, (Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        return pid


def read_inert(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the float32 tensors of a zipped ``torch.save`` of one tensor or one module.

    A module's tensors have their dotted names, a bare tensor the empty name.

    Raises:
        WeightsError: if the file is of another form, damaged, or holds other numbers than float32.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root, folder = _root(archive)
            if _is(root, "_rebuild_parameter", "_rebuild_tensor_v2"):
                return {TENSOR: {"": _tensor(archive, folder, root)}}
            return {MODULE: {name: _tensor(archive, folder, node) for name, node in _walk(root)}}
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except Exception as error:  # a hostile pickle may raise anything
        raise WeightsError(
            f"{path}: cannot be read as a saved tensor or module ({type(error).__name__})"
        ) from None


def _root(archive: zipfile.ZipFile) -> tuple[Any, str]:
    names = [item for item in archive.infolist() if item.filename.endswith("/data.pkl")]
    if len(names) != 1 or names[0].file_size > LARGEST_PICKLE:
        raise WeightsError("not one pickle of a sensible size; give a complete file that torch.save wrote")
    with archive.open(names[0]) as stream:
        return _Reader(stream).load(), names[0].filename.removesuffix("/data.pkl")


def _is(node: Any, *names: str) -> bool:
    return isinstance(node, Inert) and type(node).__name__ in names


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and parameters of a module and of those below it."""
    state = node.state if isinstance(node, Inert) else None
    if not isinstance(state, Mapping) or "_modules" not in state:
        raise WeightsError("holds something else than tensors and modules")
    for kind in ("_parameters", "_buffers"):
        for name, value in _pairs(state.get(kind)):
            if value is not None:
                yield f"{prefix}{name}", value
    for name, child in _pairs(state["_modules"]):
        if child is not None:
            yield from _walk(child, f"{prefix}{name}.")


def _pairs(node: Any) -> list[tuple[str, Any]]:
    if node is None:
        return []
    items = node.items() if isinstance(node, Mapping) else [pair for pair in node.arguments if len(pair) == 2]
    return [(str(name), value) for name, value in items]


def _tensor(archive: zipfile.ZipFile, folder: str, node: Any) -> Tensor:
    """Return the contiguous float32 tensor that ``node`` describes."""
    if _is(node, "_rebuild_parameter"):
        node = node.arguments[0]
    if not _is(node, "_rebuild_tensor_v2"):
        raise WeightsError("holds something else than tensors")
    (_, kind, key, _, count), offset, shape, stride = node.arguments[:4]
    total, contiguous = math.prod(shape), [math.prod(shape[place + 1 :]) for place in range(len(shape))]
    if kind.__name__ != "FloatStorage" or list(stride) != contiguous:
        raise WeightsError("holds other numbers than contiguous float32")
    item = archive.getinfo(f"{folder}/data/{key}")
    if item.file_size != 4 * count or not 0 <= offset <= offset + total <= count:
        raise WeightsError("a tensor's declared size is not that of its numbers")
    numbers = np.frombuffer(archive.read(item), "<f4")[offset : offset + total]
    return torch.from_numpy(numbers.copy()).reshape(tuple(shape))
