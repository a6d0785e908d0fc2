"""``train``: a method's recipe on a dataset, from the image folder to a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clip import Clip, Provenance, find_seconds, joined, load_clip, save_checkpoint
from ..engine import pick_device
from ..environment import installed
from ..errors import UsageError, suggest
from ..files import digest_of, sha256_of
from ..method import (
    Resolved,
    blamed,
    convert,
    describe,
    hints,
    parse_spec,
    places,
    recipe_of,
    resolve,
    wordings,
)
from ..progress import Progress
from ..run import Request, find_samples
from ..samples import Dataset
from .data import TrainingSet, category_of, few_shot, require_masks
from .feeder import CacheBounds, Feeder
from .loop import Losses, Position, ResumeFile, fit, images_left
from .stages import Stage


@dataclass(frozen=True)
class TrainRequest:
    """Everything a training was asked for, beside its method, its datasets and where the result goes."""

    data: Path | None = None
    backbone: str | None = None
    weights: str | None = None
    activation: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    shots: int | None = None
    epochs: int | None = None
    seed: int | None = None
    batch_size: int | None = None
    limit: int | None = None
    categories: tuple[str, ...] | None = None
    device: str = "auto"
    workers: int | None = None
    memory_gb: float = 4.0
    disk_gb: float = 64.0
    skip_bad: bool = False
    allow_missing: bool = False
    quiet: bool = False
    progress: str = "auto"


@dataclass(frozen=True)
class Trained:
    """What came of a training: its files (one per epoch, then the last) and the losses of each epoch."""

    files: tuple[Path, ...]
    losses: Losses


def train(method: str, dataset: str | Sequence[str], out: Path | str, **options: Any) -> Trained:
    """Train ``method`` on one dataset or several; writes a checkpoint to ``out``, one per epoch beside it.

    ``options`` are the fields of :class:`TrainRequest`.  Repeated after an interruption it goes on after
    the last complete epoch, with the same result as if it had not been interrupted.

    Raises:
        ZsadError: with one line that says what is wrong and what to do.
    """
    known = {entry.name for entry in dataclasses.fields(TrainRequest)}
    for name in options:
        if name not in known:
            raise UsageError(f"train has no option '{name}'.{suggest(name, known)}")
    datasets = [dataset] if isinstance(dataset, str) else list(dataset)
    return execute(method, datasets, Path(out), TrainRequest(**options))


def execute(spec: str, datasets: Sequence[str], out: Path, request: TrainRequest) -> Trained:
    """Carry out ``train``."""
    _check_out(out)
    parse_spec(spec)
    device = pick_device(request.device)
    data = [find_training_samples(dataset, request) for dataset in datasets]
    _check_apart(data)
    found = resolve_joint(spec, data, request)
    resolved, recipe = found[0]
    if request.shots is not None:
        data = [few_shot(one, request.shots, recipe.seed) for one in data]
    clip = load_clip(resolved.method.backbone, device)
    words = joint_words([one for one, _ in found], data)
    stages = make_stages(recipe, resolved, clip, words)
    about = _provenance(resolved, recipe, clip, data)
    out.parent.mkdir(parents=True, exist_ok=True)
    resume = ResumeFile(out.with_suffix(".resume"), _identity(about, words, data))
    begin = resume.load(stages)
    last = Position(len(stages) - 1, stages[-1].epochs)

    def finished(position: Position) -> None:
        if position.stage == last.stage:
            save_checkpoint(
                epoch_file(out, position.epochs),
                learned(stages),
                dataclasses.replace(about, epoch=position.epochs),
            )
        resume.save(stages, position)

    count = sum(len(one.samples) for one in data)
    parts = [(f"{resolved.id} on {about.dataset}", images_left(stages, begin, count))]
    with Progress(parts, quiet=request.quiet, form=request.progress) as progress:
        feeder = _feeder(resolved, data, device, recipe.seed, out.parent, request, progress)
        losses = fit(stages, feeder, begin, finished, progress)
    save_checkpoint(out, learned(stages), dataclasses.replace(about, epoch=last.epochs))
    resume.remove()
    return Trained((*(epoch_file(out, epoch + 1) for epoch in range(last.epochs)), out), losses)


def _feeder(
    resolved: Resolved,
    data: Sequence[Dataset],
    device: torch.device,
    seed: int,
    folder: Path,
    request: TrainRequest,
    progress: Progress,
) -> Feeder:
    rule: Any = resolved.mask_resize
    return Feeder(
        TrainingSet(tuple(data), resolved.method.preprocess, rule),
        device,
        seed,
        bounds=CacheBounds(int(request.memory_gb * 2**30), int(request.disk_gb * 2**30), folder),
        workers=request.workers,
        say=progress.say,
    )


def learned(stages: Sequence[Stage]) -> dict[str, Tensor]:
    """Return what all stages learn."""
    return {key: value for stage in stages for key, value in stage.parameters.items()}


def epoch_file(out: Path, epoch: int) -> Path:
    """Return where the checkpoint of an epoch goes."""
    return out.with_name(f"{out.stem}-epoch{epoch:02d}{out.suffix}")


def find_training_samples(dataset: str, request: TrainRequest) -> Dataset:
    """Return the samples to train on.

    Raises:
        DatasetError: if there is a problem with a file, an anomalous image has no mask, or no mask a defect.
    """
    wanted = Request(
        data=request.data,
        limit=request.limit,
        categories=request.categories,
        workers=request.workers,
        skip_bad=request.skip_bad,
        allow_missing=request.allow_missing,
    )
    data, _ = find_samples(dataset, wanted)
    require_masks(data)
    return data


def resolve_training(spec: str, data: Dataset, request: TrainRequest) -> tuple[Resolved, Any]:
    """Return the method and its recipe for a dataset; a setting is one of the recipe, else of the method.

    Raises:
        UsageError: for a method that learns nothing, or an unknown setting or value.
    """
    plain = resolve(spec, dataset=data.id, domain=data.domain)
    recipe = recipe_of(plain, data.id)
    if recipe is None:
        raise UsageError(f"'{spec}' needs no training; `zsad methods` tells which methods are trained")
    own = {entry.name for entry in dataclasses.fields(recipe)}
    known = {*own, *places(plain.method)}
    for name in request.settings:
        if name not in known:
            raise UsageError(f"--set {name}: '{spec}' has no such parameter.{suggest(name, known)}")
    options = {name: getattr(request, name) for name in ("epochs", "seed", "batch_size")}
    changes: dict[str, Any] = {name: value for name, value in request.settings.items() if name in own}
    changes |= {name: value for name, value in options.items() if value is not None}
    resolved = resolve(
        spec,
        dataset=data.id,
        domain=data.domain,
        backbone=data.backbone_or(request.backbone),
        weights=request.weights,
        activation=request.activation,
        settings={name: value for name, value in request.settings.items() if name not in own},
    )
    return resolved, with_settings(recipe_of(resolved, data.id), changes)


def resolve_joint(spec: str, data: Sequence[Dataset], request: TrainRequest) -> list[tuple[Resolved, Any]]:
    """Return method and recipe for each of ``data``, to be trained on together: the same but for the words.

    Raises:
        UsageError: as `resolve_training`, or naming the parameters that differ from dataset to dataset.
    """
    found = [resolve_training(spec, one, request) for one in data]
    tables = [
        {**resolved.parameters, "mask_resize": resolved.mask_resize, **dataclasses.asdict(recipe)}
        for resolved, recipe in found
    ]
    for name in tables[0]:
        values = [table[name] for table in tables]
        if any(value != values[0] for value in values):
            told = ", ".join(f"{one.id}: {value}" for one, value in zip(data, values, strict=True))
            raise UsageError(
                f"'{spec}' has another {name} for each of these datasets ({told}); set one for all with "
                f"--set {name}=..., or train on one dataset"
            )
    return found


def joint_words(found: Sequence[Resolved], data: Sequence[Dataset]) -> dict[str, str]:
    """Return the words of every category of all datasets, as the method words each dataset."""
    words: dict[str, str] = {}
    for resolved, one in zip(found, data, strict=True):
        own = wordings(resolved, {category: one.words.get(category, "") for category in one.categories})
        words |= {category_of(one, category, len(data) > 1): text for category, text in own.items()}
    return words


def with_settings(recipe: Any, changes: Mapping[str, Any]) -> Any:
    """Return ``recipe`` with some fields changed, each of its field's type."""
    types = hints(type(recipe))
    values: dict[str, Any] = {}
    for name, value in changes.items():
        try:
            values[name] = convert(value, types[name])
        except ValueError:
            raise UsageError(f"{name}={value}: must be {describe(types[name])}") from None
    return dataclasses.replace(recipe, **values)


def make_stages(recipe: Any, resolved: Resolved, clip: Clip, words: Mapping[str, str]) -> list[Stage]:
    """Return the stages of a recipe.

    Raises:
        UsageError: if the optimiser does not accept a number of the recipe.
    """
    try:
        with blamed(recipe, "stages"):
            return list(recipe.stages(resolved.method, clip, words))
    except ValueError as error:
        raise UsageError(f"{resolved.id}: {error}; change it with --set") from None


def _check_out(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: a checkpoint is a .safetensors file; name one")
    if out.exists():
        raise UsageError(f"--out {out}: exists already; choose another name, or delete it to train again")


def _check_apart(data: Sequence[Dataset]) -> None:
    if not data:
        raise UsageError("there is no dataset to train on; name one")
    names = [one.id for one in data]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"--dataset {min(twice)} is named twice; two folders need different names")


def _provenance(resolved: Resolved, recipe: Any, clip: Clip, data: Sequence[Dataset]) -> Provenance:
    backbone = resolved.parameters["backbone"] | {
        "activation": clip.weights.activation,
        "weights": Path(resolved.method.backbone.weights).name,
        "sha256": clip.weights.digest,
    }
    parameters = {key: value for key, value in resolved.parameters.items() if key != "checkpoint"}
    parameters |= {field: one.described() for field, one in find_seconds(resolved.method).items()}
    return Provenance(
        method=resolved.card.id,
        parameters={**parameters, "backbone": backbone, "training": dataclasses.asdict(recipe)},
        dataset=joined(one.id for one in data),
        images=tuple(sorted({sha256_of(sample.image) for one in data for sample in one.samples})),
        seed=recipe.seed,
        versions={name: installed(name) for name in ("zsadbench", "torch", "open_clip_torch")},
    )


def _identity(about: Provenance, words: Mapping[str, str], data: Sequence[Dataset]) -> str:
    """Return the digest of everything that the learned parameters depend on."""
    return digest_of([dataclasses.asdict(about), dict(words), *(one.digest for one in data)])
