"""``run``: methods on a dataset, from the image folder to the records."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..engine import Encoder, Pass, latency, pick_device, pick_dtype
from ..environment import Spread, emulates, environment, where
from ..errors import RecordError, UsageError, suggest
from ..files import contents_digest
from ..progress import Progress
from ..records import Record, find_records, write_observation
from ..scoring import (
    VALIDATION,
    EvaluationProtocol,
    Scoring,
    contents_of,
    evaluated,
    frame,
    rules_for,
    scored,
    scoring_of,
    stored_scoring,
)
from .cluster import Team, team
from .found import observed
from .here import Here
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
    place = _place(request)
    pick_dtype(request.dtype)
    if request.latency and isinstance(place, Spread):
        raise UsageError("--latency is measured in this process; leave --devices and --cluster out")
    stop = stop or threading.Event()
    plans = plan_run(methods, datasets, request)
    for job in (job for plan in plans for job in plan.jobs):
        # A wrong protocol or size says so before the first image.
        rules_for(job.resolved, request.protocol, _asked(job, request))
    outcome = Outcome([], {}, {}, [note for plan in plans for note in plan.notes])
    if isinstance(place, torch.device) and place.type == "cpu" and emulates(request.dtype):
        outcome.notes.append(
            f"this processor has no instructions for {request.dtype}: it is several times slower than fp32; "
            "leave --dtype out"
        )
    if say:
        for note in outcome.notes:
            say(note)
    parts = [part for plan in plans for part in plan.parts]
    with (
        Progress(parts, quiet=request.quiet, form=request.progress) as progress,
        _crew(place, plans, request, stop, progress) as crew,
    ):
        for plan in plans:
            outcome.skipped |= plan.skipped
            _observe(plan, crew, request, progress)
            _observe_validation(plan, crew, progress)
            if isinstance(crew, Here) and request.latency:
                _time_single_images(plan, crew, progress)
            with closing(_score(plan, request, crew)) as records:
                for job in plan.jobs:
                    if stop.is_set():
                        raise KeyboardInterrupt
                    progress.say(f"{plan.data.id}: scoring {job.task.name}")
                    outcome.records.append(next(records))
                    outcome.notes += _score_others_again(job, plan, request)
                    outcome.failed |= {item["key"]: item["reason"] for item in job.observation["failed"]}
    if kept := sum(record.kept for record in outcome.records):
        outcome.notes.append(
            f"{kept} of {len(outcome.records)} records are kept: what they were scored from is the same"
        )
    return outcome


def score_runs(
    run_dirs: Sequence[Path],
    protocol: str,
    *,
    devices: str | None = None,
    cluster: str | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = print,
    **options: Any,
) -> list[Record]:
    """Score finished runs again from their evidence, side by side, here or by workers.

    ``devices`` and ``cluster`` as for :func:`execute`; ``options`` are those of one run.

    Raises:
        ZsadError: before anything is scored, wherever that is possible.
    """
    place = where("auto", devices, cluster)
    scorings = [stored_scoring(run_dir, protocol, **options) for run_dir in run_dirs]
    if isinstance(place, str):
        return [*scored(scorings, workers)]
    with team(place, ("fp32", None, workers), threading.Event(), say) as crew:
        for scoring in scorings:
            crew.see(scoring.dataset, scoring.contents)
        return [*scored(scorings, workers, crew.sharing)]


def _place(request: Request) -> torch.device | Spread:
    """Return the device of this process that a run was asked for, or workers."""
    place = where(request.device, request.devices, request.cluster)
    return pick_device(place) if isinstance(place, str) else place


@contextmanager
def _crew(
    place: torch.device | Spread,
    plans: Sequence[Plan],
    request: Request,
    stop: threading.Event,
    progress: Progress,
) -> Iterator[Here | Team]:
    """Yield what observes: this process, or workers where some were asked for and there is work for them."""
    if isinstance(place, torch.device):
        yield Here(place, request, stop)
    elif not any(images for plan in plans for _, images in plan.parts):
        yield Here(torch.device("cpu"), request, stop)
    else:
        options = request.dtype, request.batch_size, request.workers
        with team(place, options, stop, progress.say) as crew:
            yield crew


def _observe(plan: Plan, crew: Here | Team, request: Request, progress: Progress) -> None:
    about = {**environment("cpu", request.dtype), "device": crew.about}
    todo = [job for job in plan.jobs if not job.finished]
    encoded = [job for job in todo if job.task.missing]
    for job in encoded:
        job.observation |= {"environment": about, "created": _now(), "batch_size": crew.batch_size}
    for job in todo:
        job.observation = {"environment": about, "created": _now(), **job.observation, "complete": False}
        write_observation(job.run_dir, job.observation)
        for number, donor in job.copies.items():
            job.task.store.copy(number, donor)
    report = None
    if encoded:  # what cannot run says so before the first image
        progress.say(f"{plan.data.id}: loading towers and encoding prompts")
        crew.begin([job.task for job in encoded], plan.data, plan.contents, progress)
    start = time.perf_counter()
    try:
        if encoded:
            report = crew.observe()
            report.seconds["total"] = time.perf_counter() - start
        else:
            progress.start()
    finally:
        for job in todo:
            _remember(job, plan)
    for job in todo:
        _finish(job, report if job in encoded else None, crew.threads)


def _observe_validation(plan: Plan, crew: Here | Team, progress: Progress) -> None:
    """Observe what is missing of the normal validation images, after the test images were."""
    data, contents = plan.validation, plan.validation_contents
    if data is None or contents is None:
        return
    pairs = [(job, job.validation) for job in plan.jobs if job.validation]
    for job, task in pairs:
        if not task.order_dependent:
            task.observer, task.prepared = job.task.observer, job.task.prepared
    missing = [task for _, task in pairs if task.missing]
    try:
        if missing:
            crew.begin(missing, data, contents, progress)
            crew.observe()
        elif data.samples:
            progress.start()
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


def _finish(job: Job, report: Pass | None, threads: int) -> None:
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
    if report:
        job.observation |= {
            "seconds": {name: round(seconds, 4) for name, seconds in report.seconds.items()},
            "images_per_second": round(report.images / max(report.seconds["total"], 1e-9), 3),
            "batch_size": report.batch_size,
            "peak_memory_mb": round(report.memory_mb, 1),
            "devices": report.devices or [{"device": job.observation["environment"]["device"]}],
        }
    if (spent := job.task.spent).images:
        job.observation["cost"] = {**spent.described(), "threads": threads}
    job.observation = write_observation(job.run_dir, job.observation)


def _time_single_images(plan: Plan, crew: Here, progress: Progress) -> None:
    """Write down the latency of every method that judges an image by itself."""
    encoder = Encoder([], device=crew.device, dtype=crew.dtype, clips=crew.clips)
    for job in plan.jobs:
        failed = {item["key"] for item in job.observation["failed"]}
        first = [
            s for s in plan.data.samples if s.category == plan.data.categories[0] and s.key not in failed
        ]
        if job.task.relates or not first:
            continue
        progress.say(f"{plan.data.id}: latency of {job.task.name}")
        found = latency(job.task, first, encoder)
        cost = {"threads": crew.threads, **job.observation.get("cost", {}), "latency": found}
        job.observation = write_observation(job.run_dir, {**job.observation, "cost": cost})


def _score(plan: Plan, request: Request, crew: Here | Team) -> Generator[Record, None, None]:
    """Score every method of a dataset, and yield its record."""
    scorings = []
    for job in plan.jobs:
        asked = _asked(job, request)
        rules = rules_for(job.resolved, request.protocol, asked)
        scorings.append(_scoring(job, plan, rules, evaluated(request.protocol, asked)))
    crew.see(plan.data, plan.contents)
    yield from scored(scorings, request.workers, crew.sharing)


def _scoring(job: Job, plan: Plan, rules: EvaluationProtocol, command: Sequence[str]) -> Scoring:
    return scoring_of(
        job.run_dir,
        job.observation,
        job.resolved,
        plan.data,
        rules,
        command=command,
        contents=plan.contents,
        validation=plan.validation,
        found=job.task.stored,
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
            scoring = _scoring(job, plan, EvaluationProtocol.of(record.protocol), asked)
            next(scored([scoring], request.workers))
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
