"""The zero-shot rule: nothing is tested on images it was trained on; and which checkpoint a run takes.

Content hashes decide: an image counts as seen when the file that is tested is, byte for byte, one that was
trained on.  Where the hashes of a training are not all known, the dataset's id decides too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..clip import Provenance, load_checkpoint, read_provenance
from ..errors import UsageError, WeightsError
from ..files import sha256_of
from ..samples import Dataset

SEEN = "seen data"
UNKNOWN = "training images unknown"
FOLDER = "ZSAD_CHECKPOINTS"


def seen_images(provenance: Provenance, hashes: Mapping[str, str]) -> set[str]:
    """Return the keys of ``hashes`` (key -> SHA-256) whose images ``provenance`` was trained on."""
    trained = set(provenance.images)
    return {key for key, digest in hashes.items() if digest in trained}


def content_hashes(data: Dataset) -> dict[str, str]:
    """Return the SHA-256 of every image of a dataset, remembered from one time to the next."""
    return {sample.key: sha256_of(sample.image) for sample in data.samples if sample.image.is_file()}


def trained_by_name(provenance: Provenance, data: Dataset) -> bool:
    """Tell whether the training's images are not all known, but its dataset is that of ``data``."""
    return not provenance.complete and provenance.dataset == data.id


def marks_of(checkpoint: str | Path, data: Dataset) -> list[str]:
    """Return what a board must say of results on ``data``: seen images, or that it is not known."""
    if not checkpoint:
        return []
    provenance = read_provenance(Path(checkpoint))
    if trained_by_name(provenance, data) or _seen(provenance, data):
        return [SEEN]
    return [] if provenance.complete else [UNKNOWN]


def refuse_seen(checkpoint: str | Path, data: Dataset) -> None:
    """Refuse a checkpoint that was trained on images of ``data``.

    Raises:
        UsageError: saying how many, and how to test all the same.
    """
    provenance = read_provenance(Path(checkpoint))
    if seen := _seen(provenance, data):
        what = f"{len(seen)} of the {len(data.samples)} images of '{data.id}' (first {min(seen)})"
    elif trained_by_name(provenance, data):
        what = f"'{data.id}', which of its images is not known"
    else:
        return
    raise UsageError(
        f"{checkpoint}: was trained on {what}, so this is no zero-shot test; choose a checkpoint trained on "
        "another dataset, or pass --allow-seen, which marks the result"
    )


def _seen(provenance: Provenance, data: Dataset) -> set[str]:
    return seen_images(provenance, content_hashes(data)) if provenance.images else set()


def checkpoints_for(
    method: str,
    backbone: str,
    data: Dataset,
    files: Sequence[Path],
    *,
    allow_seen: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> list[Path]:
    """Return the checkpoints that ``method`` (an id) runs with on ``data``: its own among ``files``.

    Without any, the newest file in the folder ``ZSAD_CHECKPOINTS`` that was trained for this method and
    ``backbone`` on other images.

    Raises:
        MethodError: if there is none, saying how to come by one.
        UsageError: if one was trained on images of ``data``, unless ``allow_seen``.
        WeightsError: if a file is absent or damaged, or all are of other methods.
    """
    trained = {file: read_provenance(file).method for file in files}
    own = [file for file, name in trained.items() if name == method]
    if trained and not own:
        given = ", ".join(f"{file} is of '{name}'" for file, name in trained.items())
        raise WeightsError(f"no checkpoint of '{method}' was given: {given}; pass one of its own")
    if not own and (folder := environ.get(FOLDER)):
        own = _newest(Path(folder), method, backbone, data, allow_seen)
    if not own:
        load_checkpoint("", method, {})  # says how to come by one
    if not allow_seen:
        for file in own:
            refuse_seen(file, data)
    return own


def _newest(folder: Path, method: str, backbone: str, data: Dataset, allow_seen: bool) -> list[Path]:
    if not folder.is_dir():
        raise UsageError(
            f"{FOLDER}={folder}: no such folder; correct the variable, or pass --checkpoint FILE"
        )
    hashes: dict[str, str] = {}
    for file in _by_age(folder.rglob("*.safetensors")):
        try:
            provenance = read_provenance(file)
        except WeightsError:
            continue
        if provenance.method != method or _backbone(provenance.parameters) not in ("", backbone):
            continue
        if trained_by_name(provenance, data) and not allow_seen:
            continue
        hashes = hashes or content_hashes(data)
        if allow_seen or not seen_images(provenance, hashes):
            return [file]
    return []


def _by_age(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, str(file)), reverse=True)


def _backbone(parameters: Mapping[str, Any]) -> str:
    backbone = parameters.get("backbone")
    return str(backbone.get("name", "")) if isinstance(backbone, Mapping) else ""
