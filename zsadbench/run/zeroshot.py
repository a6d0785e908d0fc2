"""The zero-shot rule: nothing is tested on images it was trained on; and which checkpoint a run takes.

Content hashes decide: an image counts as seen when the file that is tested is, byte for byte, one that was
trained on.  Where the hashes of a training are not all known, the dataset's id decides too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..clip import Provenance, hub_address, load_checkpoint, read_provenance
from ..errors import UsageError, WeightsError
from ..samples import Dataset

SEEN = "seen data"
UNKNOWN = "training images unknown"
FOLDER = "ZSAD_CHECKPOINTS"


def seen_images(provenance: Provenance, hashes: Mapping[str, str]) -> set[str]:
    """Return the keys of ``hashes`` (key -> SHA-256) whose images ``provenance`` was trained on."""
    trained = set(provenance.images)
    return {key for key, digest in hashes.items() if digest in trained}


def trained_by_name(provenance: Provenance, data: Dataset) -> bool:
    """Tell whether the training's images are not all known, but ``data`` is one of its datasets."""
    return not provenance.complete and data.id in provenance.datasets


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
        f"{hub_address(checkpoint) or checkpoint}: was trained on {what}, so this is no zero-shot test; "
        "choose a checkpoint trained on another dataset, or pass --allow-seen, which marks the result"
    )


def _seen(provenance: Provenance, data: Dataset) -> set[str]:
    return seen_images(provenance, data.hashes) if provenance.images else set()


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
        given = ", ".join(f"{hub_address(file) or file} is of '{name}'" for file, name in trained.items())
        raise WeightsError(f"no checkpoint of '{method}' was given: {given}; pass one of its own")
    if not own and environ.get(FOLDER):
        own = _newest(method, backbone, data, allow_seen, environ)
    if not own:
        load_checkpoint("", method, {})  # says how to come by one
    if not allow_seen:
        for file in own:
            refuse_seen(file, data)
    return own


def trained_on(checkpoint: str | Path, backbone: str) -> dict[str, str]:
    """Return the options that choose the CLIP a checkpoint was trained on; none where that is ``backbone``.

    They are ``backbone``, ``weights`` and ``activation``, as far as they are known.

    Raises:
        UsageError: if its backbone or weights were a file, which only the user can name.
    """
    provenance = read_provenance(Path(checkpoint))
    if provenance.backbone in ("", backbone):
        return {}
    keys = {"backbone": "name", "weights": "weights", "activation": "activation"}
    options = {option: str(provenance.towers.get(key) or "") for option, key in keys.items()}
    if Path(options["backbone"]).suffix or Path(options["weights"]).suffix:
        raise UsageError(
            f"{hub_address(checkpoint) or checkpoint}: was trained on {Path(options['backbone']).name} "
            f"with the weights {Path(options['weights']).name}, not on {backbone}; name both with --backbone "
            "and --weights, or pass another checkpoint"
        )
    return {option: value for option, value in options.items() if value}


def held_checkpoints(
    folder: Path | None = None, environ: Mapping[str, str] = os.environ
) -> dict[Path, Provenance | str]:
    """Return the checkpoints below ``folder``, else ``ZSAD_CHECKPOINTS``, newest first, with provenance.

    A file that cannot be used has the reason in place of a provenance.

    Raises:
        UsageError: if no folder is named, or it does not exist.
    """
    chosen = folder or (Path(environ[FOLDER]) if environ.get(FOLDER) else None)
    if chosen is None:
        raise UsageError(f"name a folder of checkpoints, or set {FOLDER} to one")
    if not chosen.is_dir():
        where = f"{folder}" if folder else f"{FOLDER}={chosen}"
        raise UsageError(f"{where}: no such folder; correct it, or name a file with --checkpoint FILE")
    found: dict[Path, Provenance | str] = {}
    for file in _by_age(chosen.rglob("*.safetensors")):
        try:
            found[file] = read_provenance(file)
        except WeightsError as error:
            found[file] = str(error)
    return found


def _newest(
    method: str, backbone: str, data: Dataset, allow_seen: bool, environ: Mapping[str, str]
) -> list[Path]:
    for file, provenance in held_checkpoints(environ=environ).items():
        if isinstance(provenance, str) or provenance.method != method:
            continue
        if provenance.backbone not in ("", backbone):
            continue
        if allow_seen:
            return [file]
        if not (trained_by_name(provenance, data) or _seen(provenance, data)):
            return [file]
    return []


def _by_age(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, str(file)), reverse=True)
