"""What a run is asked for, and its jobs: a method on a dataset, with an identity and a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cards import card_paths
from ..clip import Weights, find_seconds, find_weights, hub_address
from ..data import load_dataset, problem_report, subset
from ..engine import Task
from ..errors import DatasetError
from ..files import digest_of, sha256_of, whole_path
from ..images import scan
from ..inputs import Preprocess
from ..method import Resolved, places, source_digest, wordings
from ..records import EvidenceStore
from ..samples import Dataset
from ..scoring import OBSERVED, map_settings, observed, without
from .zeroshot import marks_of


@dataclass(frozen=True)
class Request:
    """Everything a run was asked for, beside its methods and its dataset."""

    data: Path | None = None
    backbone: str | None = None
    weights: str | None = None
    activation: str | None = None
    checkpoints: tuple[str | Path, ...] = ()
    wording: str = "method"
    words: Mapping[str, str] = field(default_factory=dict)
    prompts: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    categories: tuple[str, ...] | None = None
    seeds: int = 1
    protocol: str = "reference"
    size: int | None = None
    mask_resize: str | None = None
    aupro_limits: tuple[float, ...] = ()
    exact_maps: bool = False
    metrics: tuple[str, ...] = ()
    device: str = "auto"
    devices: str | None = None
    cluster: str | None = None
    dtype: str = "fp32"
    batch_size: int | None = None
    workers: int | None = None
    out: Path = Path("results")
    skip_bad: bool = False
    allow_missing: bool = False
    follow_outside: bool = False
    allow_seen: bool = False
    verify: bool = False
    latency: bool = False
    quiet: bool = False
    progress: str = "auto"


@dataclass
class Job:
    """One method (and seed) of a run.

    ``identity`` is what its digest covers, ``copies`` the slices to take over from other observations;
    it is ``finished`` when its observation on disk is complete and agrees with the evidence.
    ``validation`` is what to observe of normal validation images, where a metric needs them.
    """

    resolved: Resolved
    task: Task
    run_dir: Path
    observation: dict[str, Any]
    map_settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    copies: dict[int, EvidenceStore] = field(default_factory=dict)
    finished: bool = False
    validation: Task | None = None


def find_samples(spec: str, request: Request) -> tuple[Dataset, list[str]]:
    """Return the samples to work on and the keys of files left out with ``skip_bad``; reads headers only.

    Raises:
        DatasetError: listing every problem, unless ``skip_bad``.
    """
    data, left_out, _ = usable(list_samples(spec, request), request)
    return data, left_out


def list_samples(spec: str, request: Request) -> Dataset:
    """Return the samples that were asked for, before any file of theirs is opened.

    Raises:
        DatasetError: if the folder does not fit its description.
    """
    dataset = load_dataset(
        spec,
        request.data,
        skip_bad=request.skip_bad,
        allow_missing=request.allow_missing,
        follow_outside=request.follow_outside,
        categories=request.categories or (),
    )
    return subset(dataset, limit=request.limit, categories=request.categories)


def usable(
    dataset: Dataset, request: Request, specs: Sequence[Preprocess] = ()
) -> tuple[Dataset, list[str], list[str]]:
    """Return the samples whose files can be used, the keys of the others, and what else was noticed.

    Reads headers, and a few masks of each category.  An image that one of ``specs`` must refuse by its
    shape cannot be used either.

    Raises:
        DatasetError: listing every problem, unless ``skip_bad``.
    """
    problems = scan(
        dataset.samples,
        specs,
        orient=dataset.masks == "none",
        positive=dataset.mask_positive,
        mismatch="nearest" if dataset.mask_mismatch == "nearest" else "error",
        workers=request.workers,
    )
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors and not request.skip_bad:
        raise DatasetError(
            f"dataset '{dataset.id}' in {dataset.root}: {len(errors)} files cannot be used; correct them or "
            f"leave them out with --skip-bad:\n{problem_report(errors)}"
        )
    bad = sorted({problem.key for problem in errors})
    rest = without(dataset, bad)
    if not rest.samples:
        raise DatasetError(f"dataset '{dataset.id}' in {dataset.root}: no usable sample is left")
    return rest, bad, [str(problem) for problem in problems if problem.severity == "warning"]


def make_job(
    resolved: Resolved, seed: int | None, spec: str, data: Dataset, skipped: Sequence[str], request: Request
) -> Job:
    """Return the job of one method on the samples of ``data``: its identity decides its folder.

    Raises:
        WeightsError: if the weights cannot be had.
        UsageError: for words or map parameters that do not fit.
    """
    card = resolved.card
    held = {name: request.settings[name] for name in card.map_parameters if name in request.settings}
    changes = map_settings(resolved, held) if held else {}
    words = wordings(
        resolved,
        {category: data.words.get(category, "") for category in data.categories},
        request.wording,
        request.words,
    )
    weights, seconds = find_weights(resolved.method.backbone), find_seconds(resolved.method)
    parameters = {key: value for key, value in resolved.parameters.items() if key not in card.map_parameters}
    checkpoint = _describe_checkpoint(parameters)
    parameters["backbone"] = parameters["backbone"] | weights.identity()
    parameters |= {field: parameters[field] | {"weights": one.digest} for field, one in seconds.items()}
    identity = {
        "method": resolved.id,
        "version": card.version,
        "parameters": parameters | ({"checkpoint": checkpoint["sha256"]} if checkpoint else {}),
        "dataset": data.id,
        "samples": data.digest,
        "wordings": words,
        "dtype": request.dtype,
    }
    digest = digest_of(identity)
    run_dir = request.out / data.id / resolved.id.replace("/", "_") / digest[:12]
    task = Task(resolved.id, resolved.method, words, EvidenceStore(run_dir), card.order_dependent)
    observation: dict[str, Any] = {
        "observation": digest,
        "method": _describe_method(resolved),
        "backbone": _describe_backbone(weights, resolved),
        "second_towers": {field: one.described() for field, one in seconds.items()},
        "checkpoint": checkpoint,
        "dataset": describe_dataset(data, spec, skipped, request),
        "wordings": words,
        "prompts": request.prompts.name if request.prompts else "",
        "failed": [],
        "seed": seed,
        "marks": marks_of(resolved.parameters.get("checkpoint") or "", data),
        "complete": False,
        "command": _command(resolved, seed, spec, data, request),
    }
    return Job(resolved, task, run_dir, observation, changes, identity)


def _command(resolved: Resolved, seed: int | None, spec: str, data: Dataset, request: Request) -> list[str]:
    """Return the words of ``zsad run`` that make this job again, alone and from any folder."""
    card, known = resolved.card, places(resolved.method)
    at_scoring = (*card.map_parameters, "checkpoint")
    settings = {k: v for k, v in request.settings.items() if k in known and k not in at_scoring}
    weights = request.weights
    if seed is not None and "seed" in known:
        settings["seed"] = str(seed)
    if seed is not None and resolved.method.backbone.weights.partition(":")[0] == "random":
        weights = resolved.method.backbone.weights
    checkpoint, backbone = resolved.parameters.get("checkpoint"), data.backbone_or(request.backbone)
    options = {name: getattr(request, name) for name in OBSERVED if hasattr(request, name)} | {
        "data": request.data and request.data.resolve(),
        "category": request.categories,
        "settings": settings,
        "checkpoint": checkpoint and (hub_address(checkpoint) or Path(checkpoint).resolve()),
        "backbone": backbone and (whole_path(backbone) if backbone.endswith(".json") else backbone),
        "weights": weights and whole_path(weights),
        "prompts": request.prompts and request.prompts.resolve(),
    }
    plain = Request()
    given = {k: v for k, v in options.items() if v != getattr(plain, k, None)}
    method = resolved.id if card.path.suffix == ".toml" else _absolute_spec(card.entry)
    return observed(method, spec if spec in card_paths("datasets") else str(Path(spec).resolve()), given)


def _absolute_spec(entry: str) -> str:
    place, _, name = entry.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if place.endswith(".py") else entry


def _describe_method(resolved: Resolved) -> dict[str, Any]:
    card = resolved.card
    source = source_digest(card)
    return {
        "id": card.id,
        "spec": card.entry if source else resolved.id,
        **({"source_sha256": source} if source else {}),
        "variant": resolved.variant,
        "title": card.title,
        "version": card.version,
        "parameters": resolved.parameters,
        "trained": card.trained,
        "transductive": card.transductive,
        "order_dependent": card.order_dependent,
        "relates": resolved.relates,
        "constants_per_dataset": resolved.constants_per_dataset,
    }


def _describe_backbone(weights: Weights, resolved: Resolved) -> dict[str, Any]:
    source = weights.source if isinstance(weights.source, str) else Path(weights.tag).name
    return weights.identity() | {
        "weights": source,
        "position": resolved.method.backbone.position,
        "sha256": weights.digest,
    }


def _describe_checkpoint(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    path = parameters.get("checkpoint")
    if not path:
        return None
    from ..clip import read_provenance

    about = dataclasses.asdict(read_provenance(Path(path)))
    about.pop("images", None)
    address = {"address": found} if (found := hub_address(path)) else {}
    return {"file": Path(path).name, **address, "sha256": sha256_of(Path(path)), **about}


def describe_dataset(data: Dataset, spec: str, skipped: Sequence[str], request: Request) -> dict[str, Any]:
    """Return what an observation holds of its dataset."""
    anomalous = sum(sample.anomalous for sample in data.samples)
    chosen = {
        "limit": request.limit if data.cut else None,
        "categories": list(request.categories) if request.categories is not None else None,
    }
    return {
        "id": data.id,
        "spec": spec if spec in card_paths("datasets") else str(Path(spec).resolve()),
        "root": str(data.root.resolve()),
        "title": data.title,
        "domain": data.domain,
        "digest": data.digest,
        "contents": "",
        "samples": len(data.samples),
        "normal": len(data.samples) - anomalous,
        "anomalous": anomalous,
        "categories": list(data.categories),
        "masks": data.masks,
        "mask_positive": str(data.mask_positive),
        "selection": chosen,
        "skipped": list(skipped),
    }
