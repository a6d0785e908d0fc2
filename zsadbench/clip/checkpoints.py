"""Checkpoints of trained methods: safetensors with their provenance in the header.

The header holds one entry, ``provenance``, a JSON object (see ``Provenance``); the tensors are the
method's learned parameters under the names the method asks for.  Nothing of a file is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import MethodError, UsageError, WeightsError
from ..files import sha256_of, write_atomic
from .archives import examine, reason, sound
from .downloads import HubFile, hub_address, is_address, local_file

Shapes = Mapping[str, tuple[int, ...]]

_HEADER = "provenance"
_AND = " + "
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint comes from.

    ``dataset`` is the id of the auxiliary dataset, or several ids (`joined`), and ``images`` the content
    hashes of the images that were trained on; both are empty where unknown.  ``unhashed`` counts the images
    that an import did not find, so that their hashes are unknown; ``source`` names the file it was made from.
    """

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    images: tuple[str, ...] = ()
    epoch: int | None = None
    seed: int | None = None
    source: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    unhashed: int = 0

    @property
    def datasets(self) -> tuple[str, ...]:
        """The ids of the datasets that were trained on."""
        return tuple(self.dataset.split(_AND)) if self.dataset else ()

    @property
    def complete(self) -> bool:
        """Whether every image that was trained on is known by its hash."""
        return bool(self.images) and not self.unhashed

    @property
    def towers(self) -> Mapping[str, Any]:
        """The CLIP it was trained on: ``name``, ``weights`` and more; empty where unknown."""
        backbone = self.parameters.get("backbone")
        if isinstance(backbone, str):
            return {"name": backbone}
        return backbone if isinstance(backbone, Mapping) else {}

    @property
    def backbone(self) -> str:
        """The name of the backbone it was trained on; empty where unknown."""
        return str(self.towers.get("name") or "")


def joined(datasets: Iterable[str]) -> str:
    """Return the ids of several datasets as one text, which ``Provenance.datasets`` takes apart."""
    return _AND.join(datasets)


@dataclass(frozen=True)
class AuthorTable:
    """One state dict of the authors' files.

    It stands under ``key``, or at the top of the file where that is empty; ``shapes`` has every entry it
    must hold, ``learned`` our name of each one that is kept, ``fixed`` the values of entries that are not
    learned, and ``embedded`` the token ids of entries that hold CLIP's embeddings.  Entries of ``repeated``
    must equal the ones they name.  With ``surplus`` there may be more entries, which are not read.
    ``named`` finds the epoch in the name of a file.
    """

    key: str
    shapes: Shapes
    learned: Mapping[str, str]
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    embedded: Mapping[str, Tensor] = field(default_factory=dict)
    surplus: bool = False
    repeated: Mapping[str, str] = field(default_factory=dict)
    named: str = r"_(\d+)$"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], provenance: Provenance) -> None:
    """Write learned ``tensors`` (of any shape) and their ``provenance``, whole or not at all.

    Raises:
        RecordError: if the file cannot be written.
    """
    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_atomic(path, save(whole, {_HEADER: json.dumps(dataclasses.asdict(provenance), sort_keys=True)}))


def checkpoint_file(given: str | Path) -> Path:
    """Return the checkpoint that a path or an address ``hf://user/repo[@revision]/file`` names.

    Raises:
        UsageError: for a malformed address.
        WeightsError: if an address names no .safetensors file, or its file cannot be had.
    """
    if is_address(given) and Path(HubFile.parse(str(given)).file).suffix != _SUFFIX:
        raise WeightsError(
            f"{given}: no {_SUFFIX} file, so no checkpoint of zsadbench; convert the authors' file with "
            f"zsad checkpoints import {given} --method METHOD"
        )
    return local_file(given)


def pull_checkpoint(address: str, out: Path | None = None) -> Path:
    """Return the checkpoint at an address ``hf://...``, copied to ``out`` (a file, or a folder) where given.

    Raises:
        UsageError: for another kind of name, or if ``out`` holds something else already.
        WeightsError: if it cannot be had, or is no checkpoint of zsadbench.
    """
    if not is_address(address):
        raise UsageError(f"{address}: no address of the Hugging Face Hub; write hf://user/repo/file{_SUFFIX}")
    path = checkpoint_file(address)
    read_provenance(path)
    if out is None:
        return path
    target = out / path.name if out.is_dir() else out
    if target.suffix != _SUFFIX:
        raise UsageError(
            f"--out {out}: a checkpoint is a {_SUFFIX} file; name one, or a folder that is there"
        )
    if not target.exists():
        write_atomic(target, path.read_bytes())
    elif not target.is_file() or sha256_of(target) != sha256_of(path):
        raise UsageError(f"{target}: exists already and is another file; choose another name with --out")
    return target


def load_checkpoint(path: str | Path, method: str, shapes: Shapes) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint of ``method`` (a method id), as float32 on the CPU.

    ``shapes`` are the parameters the method has on its backbone: every key and shape must agree.

    Raises:
        MethodError: if ``path`` is empty, saying how to come by a checkpoint.
        WeightsError: if the file is absent, damaged, of another method or of other shapes.
    """
    if not str(path):
        raise MethodError(
            f"'{method}' is a trained method and needs a checkpoint: pass one with --checkpoint FILE; train "
            f"it with zsad train --method {method} --dataset DATASET --out FILE, or convert the file of its "
            f"authors with zsad checkpoints import FILE --method {method} --trained-on DATASET"
        )
    path = checkpoint_file(path)
    provenance, name = read_provenance(path), _called(path)
    if provenance.method != method:
        raise WeightsError(f"{name}: a checkpoint of '{provenance.method}', not of '{method}'; pass another")
    with _opened(path) as file:
        held = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        if differences := compare_shapes(held, shapes):
            own = f" ({provenance.backbone})" if provenance.backbone else ""
            raise WeightsError(
                f"{name}: does not fit '{method}' on this backbone: {differences}; choose the backbone it "
                f"was trained on{own} with --backbone, or another checkpoint"
            )
        tensors = {key: file.get_tensor(key) for key in shapes}
    return {key: sound(path, key, value, "train again") for key, value in tensors.items()}


def read_provenance(path: Path) -> Provenance:
    """Return the provenance in a checkpoint's header, without reading its tensors.

    Raises:
        WeightsError: if the file is absent, damaged, or has no such header.
    """
    with _opened(path) as file:
        text = (file.metadata() or {}).get(_HEADER, "")
    known = {entry.name for entry in dataclasses.fields(Provenance)}
    try:
        table = json.loads(text)
        found = Provenance(**{key: value for key, value in table.items() if key in known})
        return dataclasses.replace(found, images=tuple(found.images))
    except (ValueError, TypeError, AttributeError):
        raise WeightsError(
            f"{_called(path)}: has no provenance in its header, so it is not a checkpoint of zsadbench; "
            "convert the authors' files with zsad checkpoints import FILE --method METHOD"
        ) from None


def describe(path: Path) -> dict[str, Any]:
    """Return what a checkpoint's header says, in the order to be read; no tensor is read.

    Raises:
        WeightsError: as ``read_provenance``.
    """
    found = read_provenance(path)
    training = found.parameters.get("training") or {}
    rest = {key: value for key, value in found.parameters.items() if key != "training"}
    with _opened(path) as file:
        shapes = {key: _shape(tuple(file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
    address = hub_address(path)
    return {
        "file": str(path),
        **({"address": address} if address else {}),
        "sha256": sha256_of(path),
        "method": found.method,
        "trained on": found.dataset or "unknown",
        "images": _images(found),
        "epoch": "unknown" if found.epoch is None else found.epoch,
        "seed": "unknown" if found.seed is None else found.seed,
        "made by": f"import of {found.source}" if found.source else "zsad train",
        "versions": dict(found.versions) or "unknown",
        "training": dict(training) or "unknown",
        "parameters": rest or "unknown",
        "tensors": shapes,
    }


def _called(path: Path) -> str:
    """Return what a user calls a file by: the address of one in the cache of the Hub."""
    return hub_address(path) or str(path)


def _images(found: Provenance) -> str:
    if not found.images:
        return "unknown"
    return (
        f"{len(found.images)} known, {found.unhashed} unknown" if found.unhashed else str(len(found.images))
    )


def compare_shapes(held: Shapes, wanted: Shapes) -> str:
    """Return in words how a file's ``held`` shapes differ from the ``wanted`` ones; empty if they agree."""
    missing = [key for key in wanted if key not in held]
    surplus = [key for key in held if key not in wanted]
    other = [key for key in wanted if key in held and tuple(held[key]) != tuple(wanted[key])]
    parts = []
    if other:
        key = other[0]
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        parts.append(f"{key} is {_shape(held[key])} in the file, {_shape(wanted[key])} expected{more}")
    if missing:
        parts.append(f"{len(missing)} missing, first {missing[0]}")
    if surplus:
        parts.append(f"{len(surplus)} surplus, first {surplus[0]}")
    return "; ".join(parts)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise WeightsError(f"{path}: no such checkpoint file; check the path given with --checkpoint")
    examine(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{_called(path)}: cannot be read as a checkpoint ({reason(error)}); it must be a complete "
            ".safetensors file; convert the authors' .pth files with "
            "zsad checkpoints import FILE --method METHOD"
        ) from error
