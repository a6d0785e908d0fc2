"""The tensors of a TorchScript archive, without running or compiling its code.

OpenAI published CLIP as TorchScript (``ViT-L-14-336px.pt``).  Such a zip holds a pickle of the module
tree beside the code; here that pickle is read with inert objects in place of every class.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def is_archive(path: Path) -> bool:
    """Tell whether ``path`` is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the archive by their dotted names.

    Raises:
        pickle.UnpicklingError: if the archive names anything but tensors and plain modules.
    """
    with zipfile.ZipFile(path) as archive:
        data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        prefix = data.removesuffix("data.pkl")
        tree = _Reader(archive, prefix, archive.read(data)).load()
    tensors: dict[str, Tensor] = {}
    _collect(tree, "", tensors)
    return tensors


class _Module:
    """Stands in for any class of the archive; keeps the pickled state and nothing else."""

    state: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def _rebuild(
    storage: tuple[torch.dtype, bytes], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    dtype, raw = storage
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.as_strided(size, stride, offset).clone()


_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, prefix: str, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.archive, self.prefix = archive, prefix

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle":
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"the archive names {module}.{name}, which is not a tensor")

    def persistent_load(self, pid: Any) -> tuple[torch.dtype, bytes]:
        _, dtype, key, *_ = pid
        return dtype, self.archive.read(f"{self.prefix}data/{key}")


def _collect(node: Any, name: str, found: dict[str, Tensor]) -> None:
    if isinstance(node, Tensor):
        found[name] = node
    elif isinstance(node, _Module):
        for key, child in getattr(node, "state", {}).items():
            _collect(child, f"{name}.{key}" if name else str(key), found)
