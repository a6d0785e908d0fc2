"""``run``: methods on a dataset, from the image folder to the records."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..clip import Clip
from ..environment import environment
from ..errors import MethodError, UsageError, ZsadError, suggest
from ..files import contents_digest
from ..inputs import Backbone
from ..method import Resolved, method_cards, parse_spec, places, resolve
from ..progress import Progress
from ..records import Record, read_observation, write_observation
from ..samples import Dataset
from ..scoring import frame, rules_for, score_observation
from .engine import DTYPES, Encoder, observe, peak_memory_mb, pick_device
from .jobs import Job, Request, list_samples, make_job, usable
from .zeroshot import FOLDER, checkpoints_for, refuse_seen

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Outcome:
    """Records of a run, methods that were skipped with the reason, and images that could not be read."""

    records: list[Record]
    skipped: dict[str, str]
    failed: dict[str, str]
    notes: list[str]


def run(method: str | Sequence[str], dataset: str | Sequence[str], **options: Any) -> pd.DataFrame:
    """Run one or several methods on one or several datasets; returns a row per method and category.

    ``method`` ids as on the command line (``"anoclip@tiled"``, ``"mine.py:Mine"``, ``"all"``); ``dataset``
    ids, descriptions or folders; ``options`` the fields of :class:`Request`.

    Raises:
        ZsadError: with one line that says what is wrong and what to do.
    """
    methods = [method] if isinstance(method, str) else list(method)
    datasets = [dataset] if isinstance(dataset, str) else list(dataset)
    known = {entry.name for entry in dataclasses.fields(Request)}
    for name in options:
        if name not in known:
            raise UsageError(f"run has no option '{name}'.{suggest(name, known)}")
    return frame(execute(methods, datasets, Request(**options)).records)


def execute(
    methods: Sequence[str], datasets: Sequence[str], request: Request, stop: threading.Event | None = None
) -> Outcome:
    """Observe what is not observed yet, score every method, and return what came of it.

    Every dataset is listed and scanned before the first image is encoded.  ``stop`` ends the pass after
    the slice in work; a later run goes on there.

    Raises:
        ZsadError: before anything is computed, wherever that is possible.
        KeyboardInterrupt: after ``stop`` was set and the slices in work are stored.
    """
    device = pick_device(request.device)
    if request.dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{request.dtype}'.{suggest(request.dtype, DTYPES)}")
    chosen = _chosen(methods)
    outcome = Outcome([], {}, {}, [])
    plans = [_plan(chosen, "all" in methods, spec, request, outcome) for spec in dict.fromkeys(datasets)]
    clips: dict[Backbone, Clip] = {}
    with Progress([_images_to_do(data, jobs) for data, jobs in plans], quiet=request.quiet) as progress:
        for data, jobs in plans:
            encoder = Encoder(
                [job.task for job in jobs if job.task.missing],
                device=device,
                dtype=DTYPES[request.dtype],
                batch_size=request.batch_size,
                clips=clips,
            )
            _observe(jobs, data, request, encoder, progress, stop)
            for job in jobs:
                progress.say(f"{data.id}: scoring {job.task.name}")
                outcome.records.append(_score(job, data, request))
                outcome.failed |= {item["key"]: item["reason"] for item in job.observation["failed"]}
    return outcome


def _plan(
    chosen: Sequence[str], everything: bool, spec: str, request: Request, outcome: Outcome
) -> tuple[Dataset, list[Job]]:
    """Return a dataset and its jobs; what is left out and what was noticed goes to ``outcome``."""
    listed = list_samples(spec, request)
    resolved, skipped = _methods(chosen, everything, listed, request)
    outcome.skipped |= skipped
    specs = list(dict.fromkeys(item.method.preprocess for item, _ in resolved))
    data, left_out, warnings = usable(listed, request, specs)
    outcome.notes += [f"{data.id}: {note}" for note in (*data.notes, *warnings)]
    jobs = [make_job(item, seed, spec, data, left_out, request) for item, seed in resolved]
    jobs = list({job.run_dir: job for job in jobs}.values())
    outcome.notes += _choices(jobs, request)
    for job in jobs:
        job.task.plan(data.samples)
    return data, jobs


def _choices(jobs: Sequence[Job], request: Request) -> list[str]:
    """Return which checkpoints were chosen where the user gave none."""
    return [
        f"{job.task.name} uses {job.resolved.parameters['checkpoint']}, the newest that fits in {FOLDER}"
        for job in jobs
        if job.observation["checkpoint"] and not request.checkpoints and "checkpoint" not in request.settings
    ]


def _images_to_do(data: Dataset, jobs: Sequence[Job]) -> tuple[str, int]:
    """Return what the progress calls this dataset, and how many of its images must be encoded."""
    wanted = {i for job in jobs for number in job.task.missing for i in job.task.slices[number]}
    return f"{data.id}: {', '.join(dict.fromkeys(job.task.name for job in jobs))}", len(wanted)


def _score(job: Job, data: Dataset, request: Request) -> Record:
    rules = rules_for(job.resolved, request.protocol, _protocol_options(request, job))
    return score_observation(job.run_dir, job.observation, job.resolved, data, rules, workers=request.workers)


def _protocol_options(request: Request, job: Job) -> dict[str, Any]:
    return {
        "size": request.size,
        "mask_resize": request.mask_resize,
        "limits": request.aupro_limits,
        "exact": request.exact_maps,
        "map_parameters": job.map_settings,
    }


def _chosen(specs: Sequence[str]) -> list[str]:
    """Return the methods of a run, each once; an unknown one is refused before anything is read."""
    chosen = [*method_cards()] if "all" in specs else list(dict.fromkeys(specs))
    if not chosen:
        raise UsageError("no method given; name one or several with --method, see: zsad methods")
    for spec in chosen:
        parse_spec(spec)
    return chosen


def _methods(
    chosen: Sequence[str], everything: bool, dataset: Dataset, request: Request
) -> tuple[list[tuple[Resolved, int | None]], dict[str, str]]:
    """Return the methods with their seeds, and those that ``all`` had to skip with the reason."""
    found: list[tuple[Resolved, int | None]] = []
    skipped: dict[str, str] = {}
    for spec in chosen:
        try:
            found += _with_seeds(spec, dataset, request, everything or len(chosen) > 1)
        except ZsadError as error:
            if not everything:
                raise
            skipped[spec] = str(error)
    if not found:
        raise MethodError("no method can run: " + "; ".join(f"{k}: {v}" for k, v in skipped.items()))
    _check_settings(request, [resolved for resolved, _ in found])
    return found, skipped


def _with_seeds(
    spec: str, dataset: Dataset, request: Request, several: bool
) -> list[tuple[Resolved, int | None]]:
    """Return the method once per checkpoint and seed."""
    if request.seeds < 1:
        raise UsageError(f"--seeds {request.seeds}: give 1 or more")
    found: list[tuple[Resolved, int | None]] = []
    for given in _checkpoints(spec, dataset, request):
        base = _resolve(spec, dataset, request, several, given)
        has_seed = "seed" in places(base.method)
        random = base.method.backbone.weights.partition(":")[0] == "random"
        if request.seeds == 1 or not (has_seed or random):
            found.append((base, None))
            continue
        for seed in range(request.seeds):
            extra = dict(given) | ({"seed": str(seed)} if has_seed else {})
            extra |= {"weights": f"random:{seed}"} if random else {}
            found.append((_resolve(spec, dataset, request, several, extra), seed))
    return found


def _checkpoints(spec: str, dataset: Dataset, request: Request) -> list[dict[str, str]]:
    """Return the setting that names each checkpoint to run with; an empty one for an untrained method."""
    card, _ = parse_spec(spec)
    if not card.trained:
        return [{}]
    if file := request.settings.get("checkpoint"):
        if not request.allow_seen:
            refuse_seen(file, dataset)
        return [{"checkpoint": file}]
    plain = resolve(spec, dataset=dataset.id, domain=dataset.domain)
    backbone = dataset.backbone_or(request.backbone) or plain.method.backbone.name
    files = checkpoints_for(card.id, backbone, dataset, request.checkpoints, allow_seen=request.allow_seen)
    return [{"checkpoint": str(file)} for file in files]


def _resolve(
    spec: str, dataset: Dataset, request: Request, several: bool, extra: Mapping[str, str]
) -> Resolved:
    plain = resolve(spec, dataset=dataset.id, domain=dataset.domain)
    known, at_scoring = places(plain.method), plain.card.map_parameters
    settings = {
        name: value
        for name, value in request.settings.items()
        if name not in at_scoring and (name in known or not several)
    }
    return resolve(
        spec,
        dataset=dataset.id,
        domain=dataset.domain,
        backbone=dataset.backbone_or(request.backbone),
        weights=request.weights,
        activation=request.activation,
        prompts=request.prompts,
        settings=settings | dict(extra),
    )


def _check_settings(request: Request, found: Sequence[Resolved]) -> None:
    """Refuse a setting that no method of the run has."""
    known = {name for resolved in found for name in places(resolved.method)}
    for name in request.settings:
        if name not in known:
            raise UsageError(f"--set {name}: no method of this run has that parameter.{suggest(name, known)}")


def _observe(
    jobs: Sequence[Job],
    data: Dataset,
    request: Request,
    encoder: Encoder,
    progress: Progress,
    stop: threading.Event | None,
) -> None:
    about = environment(encoder.device, request.dtype)
    todo = [job for job in jobs if job.task.missing]
    for job in todo:
        job.observation |= {"environment": about, "created": _now()}
        write_observation(job.run_dir, job.observation)
        encoder.prepare(job.task, data.categories[0])  # what cannot run says so before the first image
    start = time.perf_counter()
    orient = data.masks == "none"
    observe(encoder.tasks, data.samples, encoder, progress, workers=request.workers, orient=orient, stop=stop)
    encoder.report.seconds["total"] = time.perf_counter() - start
    for job in jobs:
        if job in todo:
            _finish(job, encoder)
        else:
            job.observation = read_observation(job.run_dir)


def _finish(job: Job, encoder: Encoder) -> None:
    """Complete the observation with what the pass found and write it."""
    report = encoder.report
    hashes: dict[str, str] = {}
    failed: dict[str, str] = {}
    for number in range(len(job.task.slices)):
        part = job.task.store.read(number)
        hashes |= dict(zip(part.keys, part.hashes, strict=True))
        failed |= part.failed
    job.observation["dataset"]["contents"] = contents_digest(hashes)
    job.observation |= {
        "failed": [{"key": key, "reason": reason} for key, reason in failed.items()],
        "seconds": {name: round(seconds, 4) for name, seconds in report.seconds.items()},
        "images_per_second": round(report.images / max(report.seconds["total"], 1e-9), 3),
        "batch_size": report.batch_size,
        "peak_memory_mb": round(peak_memory_mb(encoder.device), 1),
        "complete": True,
    }
    write_observation(job.run_dir, job.observation)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
