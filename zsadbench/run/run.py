"""``run``: methods on a dataset, from the image folder to the records."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..clip import Clip
from ..environment import emulates, environment
from ..errors import RecordError, UsageError, suggest
from ..files import contents_digest
from ..inputs import Backbone
from ..progress import Progress
from ..records import Record, find_records, write_observation
from ..scoring import (
    VALIDATION,
    EvaluationProtocol,
    contents_of,
    evaluated,
    frame,
    rules_for,
    score_observation,
)
from .engine import Encoder, observe, peak_memory_mb, pick_device, pick_dtype
from .found import observed
from .jobs import Job, Request
from .plan import Plan, plan_run

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
    methods: Sequence[str],
    datasets: Sequence[str],
    request: Request,
    stop: threading.Event | None = None,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Observe what is not observed yet, score every method, and return what came of it.

    Every dataset is listed and scanned before the first image is encoded.  ``stop`` ends the pass after
    the slice in work; a later run goes on there.  ``say`` is told what was noticed on the way there.

    Raises:
        ZsadError: before anything is computed, wherever that is possible.
        KeyboardInterrupt: after ``stop`` was set and the slices in work are stored.
    """
    device, dtype = pick_device(request.device), pick_dtype(request.dtype)
    plans = plan_run(methods, datasets, request)
    for job in (job for plan in plans for job in plan.jobs):
        # A wrong protocol or size says so before the first image.
        rules_for(job.resolved, request.protocol, _asked(job, request))
    outcome = Outcome([], {}, {}, [note for plan in plans for note in plan.notes])
    if device.type == "cpu" and emulates(request.dtype):
        outcome.notes.append(
            f"this processor has no instructions for {request.dtype}: it is several times slower than fp32; "
            "leave --dtype out"
        )
    if say:
        for note in outcome.notes:
            say(note)
    clips: dict[Backbone, Clip] = {}
    parts = [part for plan in plans for part in plan.parts]
    with Progress(parts, quiet=request.quiet, form=request.progress) as progress:
        for plan in plans:
            outcome.skipped |= plan.skipped
            encoder = Encoder(
                [job.task for job in plan.jobs if job.task.missing],
                device=device,
                dtype=dtype,
                batch_size=request.batch_size,
                clips=clips,
            )
            _observe(plan, request, encoder, progress, stop)
            _observe_validation(plan, request, encoder, progress, stop)
            for job in plan.jobs:
                if stop and stop.is_set():
                    raise KeyboardInterrupt
                progress.say(f"{plan.data.id}: scoring {job.task.name}")
                outcome.records.append(_score(job, plan, request))
                outcome.notes += _score_others_again(job, plan, request)
                outcome.failed |= {item["key"]: item["reason"] for item in job.observation["failed"]}
    return outcome


def _observe(
    plan: Plan, request: Request, encoder: Encoder, progress: Progress, stop: threading.Event | None
) -> None:
    data, about = plan.data, environment(encoder.device, request.dtype)
    todo = [job for job in plan.jobs if not job.finished]
    encoded = [job for job in todo if job.task.missing]
    for job in encoded:
        job.observation |= {"environment": about, "created": _now(), "batch_size": encoder.batch_size}
    for job in todo:
        job.observation = {"environment": about, "created": _now(), **job.observation, "complete": False}
        write_observation(job.run_dir, job.observation)
        for number, donor in job.copies.items():
            job.task.store.copy(number, donor)
    for job in encoded:
        encoder.prepare(job.task, data.categories[0])  # what cannot run says so before the first image
    start = time.perf_counter()
    orient = data.masks == "none"
    try:
        observe(
            encoder.tasks, data.samples, encoder, progress, workers=request.workers, orient=orient, stop=stop
        )
    finally:
        encoder.report.seconds["total"] = time.perf_counter() - start
        for job in todo:
            _remember(job, plan)
    for job in todo:
        _finish(job, encoder if job in encoded else None)


def _observe_validation(
    plan: Plan, request: Request, after: Encoder, progress: Progress, stop: threading.Event | None
) -> None:
    """Observe what is missing of the normal validation images, ``after`` the test images were."""
    data, contents = plan.validation, plan.validation_contents
    if data is None or contents is None:
        return
    pairs = [(job, job.validation) for job in plan.jobs if job.validation]
    for job, task in pairs:
        if not task.order_dependent:
            task.observer, task.prepared = job.task.observer, job.task.prepared
    encoder = Encoder(
        [task for _, task in pairs if task.missing],
        device=after.device,
        dtype=after.dtype,
        batch_size=after.batch_size,
        clips=after.clips,
    )
    orient = data.masks == "none"
    try:
        if data.samples:
            observe(
                encoder.tasks,
                data.samples,
                encoder,
                progress,
                workers=request.workers,
                orient=orient,
                stop=stop,
            )
    finally:
        for _, task in pairs:
            task.plan(data.samples)
            contents.learn(observed(task)[0])
            contents.keep(task.store.folder.parent)
    for _, task in pairs:
        task.store.cut(len(task.slices))


def _remember(job: Job, plan: Plan) -> None:
    """Keep what is known of the images whose evidence is stored, after an interrupt too."""
    missing = job.task.missing
    job.task.plan(plan.data.samples)
    job.task.missing = missing
    plan.contents.learn(observed(job.task)[0])
    plan.contents.keep(job.run_dir)


def _finish(job: Job, encoder: Encoder | None) -> None:
    """Complete the observation with what its evidence and the pass say, and write it."""
    if len(job.task.stored) < len(job.task.slices):
        raise RecordError(
            f"{job.run_dir}: evidence was taken away while this ran; repeat the command, it observes what is "
            "missing"
        )
    hashes, failed = observed(job.task)
    job.observation["dataset"]["contents"] = contents_digest(hashes)
    job.observation |= {
        "failed": [{"key": key, "reason": reason} for key, reason in failed.items()],
        "complete": True,
    }
    if encoder:
        report = encoder.report
        job.observation |= {
            "seconds": {name: round(seconds, 4) for name, seconds in report.seconds.items()},
            "images_per_second": round(report.images / max(report.seconds["total"], 1e-9), 3),
            "batch_size": report.batch_size,
            "peak_memory_mb": round(peak_memory_mb(encoder.device), 1),
        }
    job.observation = write_observation(job.run_dir, job.observation)


def _score(job: Job, plan: Plan, request: Request) -> Record:
    asked = _asked(job, request)
    rules = rules_for(job.resolved, request.protocol, asked)
    return _scored(job, plan, request, rules, evaluated(request.protocol, asked))


def _scored(
    job: Job, plan: Plan, request: Request, rules: EvaluationProtocol, command: Sequence[str]
) -> Record:
    return score_observation(
        job.run_dir,
        job.observation,
        job.resolved,
        plan.data,
        rules,
        command=command,
        workers=request.workers,
        contents=plan.contents,
        validation=plan.validation,
    )


def _score_others_again(job: Job, plan: Plan, request: Request) -> list[str]:
    """Score under their own rules the records that stand over other evidence than there is now.

    That happens where an image failed at first, or a damaged slice or a validation image was observed again.
    """
    notes = []
    for record in find_records([job.run_dir])[0]:
        if not _is_stale(record, job):
            continue
        asked = record.content.get("command", [])[len(record.observation.get("command", [])) :]
        try:
            _scored(job, plan, request, EvaluationProtocol.of(record.protocol), asked)
            notes.append(f"{record.path.parent}: its evidence has changed, so it was scored again")
        except RecordError as error:
            notes.append(
                f"{record.path.parent}: its evidence has changed, but it was not scored again: {error}"
            )
    return notes


def _is_stale(record: Record, job: Job) -> bool:
    validation = record.content.get(VALIDATION, {}).get("contents")
    if validation and job.validation and contents_of([*job.validation.stored.values()]) != validation:
        return True
    return bool(record.observation["dataset"]["contents"] != job.observation["dataset"]["contents"])


def _asked(job: Job, request: Request) -> dict[str, Any]:
    """Return the overrides of the protocol as ``scoring.protocol`` takes them."""
    return {
        "size": request.size,
        "mask_resize": request.mask_resize,
        "limits": request.aupro_limits,
        "exact": request.exact_maps,
        "metrics": request.metrics,
        "map_parameters": job.map_settings,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
