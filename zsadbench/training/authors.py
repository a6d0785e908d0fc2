"""Checkpoints as the authors of a method publish them: read as data, checked key by key, rewritten as ours.

A published file is a pickle.  Only tensors and plain containers are unpickled, nothing of it is executed,
and a file that holds anything else, or other keys or shapes than its method learns, is refused.
"""

from __future__ import annotations

import dataclasses
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..clip import (
    AuthorTable,
    Provenance,
    Text,
    Vision,
    compare_shapes,
    examine,
    find_weights,
    hub_address,
    is_address,
    joined,
    load_clip,
    local_file,
    reason,
    room_for,
    save_checkpoint,
    sound,
)
from ..data import describe, survey_dataset
from ..environment import installed
from ..errors import DatasetError, UsageError, WeightsError
from ..files import sha256_of
from ..inputs import Backbone
from ..method import recipe_of, resolve
from .inert import MODULE, TENSOR, read_inert

EMBEDDING_TOLERANCE = 1e-3


def import_checkpoint(
    files: Sequence[str | Path],
    method: str,
    *,
    trained_on: str | Sequence[str] = (),
    out: Path | None = None,
    epoch: int | None = None,
    data: Path | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    activation: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> tuple[Path, Provenance]:
    """Rewrite authors' ``files`` as a checkpoint of ``method``; returns the file and its provenance.

    ``files`` are paths or addresses of the Hugging Face Hub; without ``out`` the checkpoint goes beside the
    first one, or into this folder where that is of the Hub.

    ``trained_on`` is the dataset's id, or several; the content hashes of those of their images that are on
    this machine (``data`` as in ``run``) enter the provenance, with the number of the others.

    Raises:
        UsageError: for a method without authors' files, or if ``out`` exists.
        WeightsError: for a file that is absent, damaged, holds anything but tensors, or does not fit.
    """
    resolved = resolve(
        method, backbone=backbone, weights=weights, activation=activation, settings=settings or {}
    )
    out = out or Path(Path(files[0]).name if is_address(files[0]) else files[0]).with_suffix(".safetensors")
    if out.exists():
        raise UsageError(f"{out}: exists already; choose another name with --out")
    datasets = [trained_on] if isinstance(trained_on, str) else trained_on
    datasets = [name for name in datasets if name]
    recipe = recipe_of(resolved, *datasets[:1] or [""])
    if not hasattr(recipe, "author_tables"):
        raise UsageError(f"'{resolved.id}' has no published checkpoints to import")
    paths = [local_file(file) for file in files]
    tables = recipe.author_tables(resolved.method, outline(resolved.method.backbone))
    inert = any(table.key == MODULE for table in tables)
    needed = room_for(shape for table in tables for shape in table.shapes.values())
    contents = {str(path): read_tables(path, inert=inert, needed=needed) for path in paths}
    tensors: dict[str, Tensor] = {}
    for table in tables:
        tensors |= _taken(table, contents)
        _check_embeddings(table, contents, resolved.method.backbone)
    _refuse_idle(contents, tables, method)
    about = Provenance(
        method=resolved.card.id,
        parameters={key: value for key, value in resolved.parameters.items() if key != "checkpoint"},
        **_trained_on(datasets, data),
        epoch=epoch if epoch is not None else _epoch(contents, tables[-1]),
        source=", ".join(_described(path) for path in paths),
        versions={"zsadbench": installed("zsadbench")},
    )
    save_checkpoint(out, tensors, about)
    return out, about


def read_tables(path: Path, *, inert: bool = False, needed: int = 0) -> dict[str, Any]:
    """Return what a published file holds: tensors in dictionaries, and numbers and texts beside them.

    A bare tensor stands under the name ``TENSOR``; with ``inert`` a pickled module is read as data too.
    A compressed file may unpack to ``needed`` bytes.

    Raises:
        WeightsError: if it is absent, damaged, or holds anything else.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    examine(path, needed)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch each raise their own
        if inert:
            return dict(read_inert(path))
        raise WeightsError(
            f"{path}: cannot be read ({reason(error)}); it must be a complete .pth file of tensors only"
        ) from None
    if isinstance(content, Tensor):
        return {TENSOR: {"": content.detach()}}
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return dict(content)


def outline(backbone: Backbone) -> Any:
    """Return towers of the shapes of ``backbone`` without weights, and its ``tokenizer``."""
    plan = find_weights(dataclasses.replace(backbone, weights="random", activation="gelu"))
    model = plan.outline()
    return SimpleNamespace(
        vision=Vision(model.visual, backbone.position), text=Text(model), tokenizer=plan.tokenizer()
    )


def _taken(table: AuthorTable, contents: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the learned tensors of one table under our names."""
    holders = [path for path, content in contents.items() if _holds(content, table)]
    if len(holders) != 1:
        found = ", ".join(sorted({key for content in contents.values() for key in map(str, content)}))
        raise WeightsError(
            f"{', '.join(contents)}: one file must hold '{table.key}', {len(holders)} do (found: "
            f"{found[:200]}); give the files of that method, all of them"
        )
    path = holders[0]
    state = _state(contents[path], table)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: '{table.key}' holds something else than tensors")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    if table.surplus:
        state = {key: value for key, value in state.items() if key in table.shapes}
    if differences := compare_shapes({key: tuple(v.shape) for key, v in state.items()}, table.shapes):
        raise WeightsError(
            f"{path}: '{table.key}' does not fit: {differences}; give the backbone it was trained on with "
            "--backbone, and parameters of the method with --set"
        )
    for key, value in table.fixed.items():
        if not torch.equal(state[key].to(value.dtype), value):
            raise WeightsError(f"{path}: {key} is not what this method's prompts give; trained with others")
    for key, other in table.repeated.items():
        if not torch.equal(state[key], state[other]):
            raise WeightsError(f"{path}: {key} must repeat {other}, and differs; give the file as published")
    kept = {name: state[key] for name, key in table.learned.items()}
    whole = {name: sound(path, name, value, "give another file") for name, value in kept.items()}
    return {name: value.clone() for name, value in whole.items()}  # some files share memory


def _holds(content: Mapping[str, Any], table: AuthorTable) -> bool:
    return table.key in content if table.key else bool(_loose(content))


def _state(content: Mapping[str, Any], table: AuthorTable) -> Any:
    return content[table.key] if table.key else _loose(content)


def _loose(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that stand at the top of a file, beside its tables."""
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _check_embeddings(
    table: AuthorTable, contents: Mapping[str, Mapping[str, Any]], backbone: Backbone
) -> None:
    """Compare a table's copies of CLIP's token embeddings, where the weights can be had."""
    if not table.embedded:
        return
    try:
        clip = load_clip(backbone)
    except WeightsError:  # without them the method cannot run either, and says so then
        return
    path = next(path for path, content in contents.items() if _holds(content, table))
    for key, ids in table.embedded.items():
        found, wanted = _state(contents[path], table)[key].float(), clip.text.module.token_embedding(ids)
        if not torch.allclose(found, wanted, rtol=0, atol=EMBEDDING_TOLERANCE):
            raise WeightsError(
                f"{path}: {key} is not made of the token embeddings of {backbone.name}/{backbone.weights}; "
                "give the CLIP it was trained on with --backbone and --weights"
            )


def _refuse_idle(
    contents: Mapping[str, Mapping[str, Any]], tables: Sequence[AuthorTable], method: str
) -> None:
    for path, content in contents.items():
        if not any(_holds(content, table) for table in tables):
            keys = ", ".join(table.key or "tensors at its top" for table in tables)
            raise WeightsError(f"{path}: holds nothing that '{method}' learns ({keys})")


def _epoch(contents: Mapping[str, Mapping[str, Any]], table: AuthorTable) -> int | None:
    """Return the epoch a file states beside its table, else in the name it was first saved by, or has now."""
    for path, content in contents.items():
        if _holds(content, table):
            names = (saved_as(Path(path)), Path(path).stem)
            named = next(filter(None, (re.search(table.named, name) for name in names)), None)
            stated = content.get("epoch", named and int(named[1]))
            return stated if isinstance(stated, int) else None
    return None


def saved_as(path: Path) -> str:
    """Return the name, without suffix, by which a file was first saved: torch's archives keep it."""
    with suppress(OSError, zipfile.BadZipFile, IndexError), zipfile.ZipFile(path) as archive:
        return archive.namelist()[0].partition("/")[0]
    return ""


def _described(path: Path) -> str:
    first = saved_as(path)
    renamed = f"first saved as {first}, " if re.search(r"_\d+$", first) and first != path.stem else ""
    return f"{hub_address(path) or path.name} ({renamed}SHA-256 {sha256_of(path)})"


def _trained_on(specs: Sequence[str], data: Path | None) -> dict[str, Any]:
    """Return what is known of the images trained on: the fields ``dataset``, ``images`` and ``unhashed``."""
    found = [_known_images(spec, data) for spec in specs]
    return {
        "dataset": joined(name for name, _, _ in found),
        "images": tuple(sorted({digest for _, hashes, _ in found for digest in hashes})),
        "unhashed": sum(others for _, _, others in found),
    }


def _known_images(spec: str, data: Path | None) -> tuple[str, list[str], int]:
    """Return a dataset's id, the hashes of its images on this machine, and how many others there are."""
    try:
        found = survey_dataset(spec, data, allow_missing=True)
    except DatasetError:
        if data is not None:
            raise
        return spec, [], _expected(spec)
    hashes = [sha256_of(sample.image) for sample in found.samples if sample.image.is_file()]
    whole = max(sum(found.expect.total) if found.expect else 0, len(found.samples))
    return found.id, hashes, whole - len(hashes)


def _expected(spec: str) -> int:
    """Return how many images a dataset has; 1 where that is not known."""
    try:
        expect = describe(spec).expect
    except DatasetError:
        return 1
    return sum(expect.total) if expect else 1
