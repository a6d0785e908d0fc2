"""Weight files as data: looked at before they are unpacked, read without running anything of them.

Safetensors and pickles of tensors are read as such.  OpenAI published CLIP as TorchScript
(``ViT-L-14-336px.pt``): such a zip holds a pickle of the module tree beside the code; here that pickle is
read with inert objects in place of every class.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from ..files import stand_in
from ..text import terminal

LARGEST_PICKLE = 16 * 2**20
"""Bytes of the pickle in an archive, which holds names and shapes but no numbers."""

MOST_NODES = 100_000
"""Modules, tensors and other values that the tree of an archive may hold."""


def examine(path: Path, needed: int = 0) -> None:
    """Refuse a file that is plainly no weights, or an archive that would unpack to too much.

    An archive of tensors is not compressed: it may unpack to its own size, a compressed one to the
    ``needed`` bytes.

    Raises:
        WeightsError: saying what the file is.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(512)
        size = path.stat().st_size
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not start:
        raise WeightsError(f"{path}: the file is empty; download it again")
    if other := stand_in(start):
        raise WeightsError(f"{path}: {other}")
    declared = sum(item.file_size for item in _members(path))
    if declared > max(size, needed):
        raise WeightsError(
            f"{path}: its {size:,} bytes unpack to {declared:,}, more than tensors "
            "take; get the file from where it was published"
        )


def room_for(shapes: Iterable[tuple[int, ...]]) -> int:
    """Return the bytes that tensors of these shapes take at most, as float64."""
    return 8 * sum(map(math.prod, shapes))


def is_torchscript(path: Path) -> bool:
    """Tell whether ``path`` is a TorchScript archive."""
    return any(item.filename.endswith("/constants.pkl") for item in _members(path))


def _members(path: Path) -> list[zipfile.ZipInfo]:
    """Return what an archive says of its files; nothing where there is no whole archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return []


def reason(error: BaseException) -> str:
    """Return why a file cannot be read, as one line; torch's advice to trust the file is not passed on."""
    text = str(error)
    if "weights_only" in text:
        named = re.search(r"GLOBAL ([\w.]+)", text)
        return f"it names {named[1]}, which is no tensor" if named else "it is no pickle of tensors"
    line = next(iter(text.strip().splitlines()), type(error).__name__)
    return terminal(line[:160])


def sound(path: Path | str, key: str, value: Tensor, remedy: str) -> Tensor:
    """Return a tensor of any shape as float32.

    Raises:
        WeightsError: if it holds anything but finite real numbers; it ends with the ``remedy``.
    """
    if not value.is_floating_point():
        kind = str(value.dtype).removeprefix("torch.")
        raise WeightsError(f"{path}: {key} holds {kind}, not real numbers; {remedy}")
    value = value.float()
    if not bool(torch.isfinite(value).all()):
        raise WeightsError(f"{path}: {key} holds infinite or undefined numbers; {remedy}")
    return value


def read_state(path: Path, needed: int = 0) -> dict[str, Tensor]:
    """Read a CLIP state dict from .safetensors, a tensor-only pickle or a TorchScript archive.

    ``needed`` is how many bytes the tensors of the architecture may take; a compressed archive that
    declares more is refused before it is unpacked.

    Raises:
        WeightsError: if the file is damaged or holds anything but tensors.
    """
    examine(path, needed)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        elif is_torchscript(path):
            state = read_torchscript(path)
        else:
            stored = [item.compress_type == zipfile.ZIP_STORED for item in _members(path)]
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=bool(stored) and all(stored))
    except Exception as error:
        raise WeightsError(
            f"{path}: cannot be read as weights ({reason(error)}); it must be a complete .safetensors file "
            "or a .pt file that holds tensors only"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}, not a dict of tensors")
    tensors = {_plain_key(str(k)): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors")
    return tensors


def _plain_key(key: str) -> str:
    key = key.removeprefix("module.")
    return key.removeprefix("text.") if key.startswith("text.") else key


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the archive by their dotted names.

    Raises:
        pickle.UnpicklingError: if the archive names anything but tensors and plain modules, or has no end.
    """
    with zipfile.ZipFile(path) as archive:
        data = next(item for item in archive.infolist() if item.filename.endswith("/data.pkl"))
        if data.file_size > LARGEST_PICKLE:
            raise pickle.UnpicklingError(f"its list of tensors takes {data.file_size:,} bytes")
        tree = _Reader(archive, data.filename.removesuffix("data.pkl"), _unpacked(archive, data)).load()
        return _tensors(tree)


def _unpacked(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> bytes:
    """Return one file of an archive, never more than it declares."""
    with archive.open(item) as stream:
        return stream.read(item.file_size)


class _Module:
    """Stands in for any class of the archive; keeps the pickled state and nothing else."""

    state: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def _rebuild(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return flat.as_strided(size, stride, offset)


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
        self.storages: dict[str, Tensor] = {}

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

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        if key not in self.storages:
            raw = _unpacked(self.archive, self.archive.getinfo(f"{self.prefix}data/{key}"))
            self.storages[key] = (
                torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
            )
        return self.storages[key]


def _tensors(tree: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    nodes = [("", tree)]
    for name, node in nodes:  # the list grows while it is read
        if isinstance(node, Tensor):
            found[name] = node
        elif isinstance(node, _Module):
            held = getattr(node, "state", {})
            nodes += [(f"{name}.{key}" if name else str(key), child) for key, child in held.items()]
        if len(nodes) > MOST_NODES:
            raise pickle.UnpicklingError(f"its tree holds more than {MOST_NODES:,} values")
    return found
