"""What shall run: datasets, methods with their variants, checkpoints, seeds and settings become jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..clip import checkpoint_file, find_seconds, hub_address, is_address
from ..engine import Task, too_few
from ..errors import MethodError, UsageError, ZsadError, suggest
from ..images import read_saturations
from ..inputs import Preprocess
from ..method import WORDLESS, Resolved, method_cards, parse_spec, places, resolve
from ..metrics import spro_limit
from ..records import Contents
from ..samples import Dataset
from ..scoring import needs_normals, validation_of
from .found import find, find_validation
from .jobs import Job, Request, list_samples, make_job, usable
from .zeroshot import FOLDER, checkpoints_for, refuse_seen, trained_on


@dataclass(frozen=True)
class Plan:
    """A dataset, its files and jobs, the methods left out with the reason, and what was noticed."""

    data: Dataset
    contents: Contents
    jobs: tuple[Job, ...]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]
    validation: Dataset | None = None
    """Normal validation images, maybe none, where a metric needs them and the description names some."""
    validation_contents: Contents | None = None

    @property
    def title(self) -> str:
        """What the progress calls it."""
        return f"{self.data.id}: {', '.join(dict.fromkeys(job.task.name for job in self.jobs))}"

    @property
    def parts(self) -> list[tuple[str, int]]:
        """The passes over images: what the progress calls them, and how many images must be encoded."""
        parts = [(self.title, _images([job.task for job in self.jobs]))]
        if self.validation and self.validation.samples:
            tasks = [job.validation for job in self.jobs if job.validation]
            parts += [(f"{self.title}, validation images", _images(tasks))]
        return parts


def _images(tasks: Sequence[Task]) -> int:
    return len({i for task in tasks for number in task.missing for i in task.slices[number]})


def plan_run(methods: Sequence[str], datasets: Sequence[str], request: Request) -> list[Plan]:
    """Return one plan per dataset; every dataset is listed and scanned, no image is decoded.

    Raises:
        ZsadError: for whatever cannot run; where ``methods`` names ``all`` a method is left out instead.
    """
    chosen = _chosen(methods)
    request = _fetched(request)
    return [_plan(chosen, "all" in methods, spec, request) for spec in dict.fromkeys(datasets)]


def _fetched(request: Request) -> Request:
    """Return the request with the files of checkpoints that were named by addresses of the Hub."""
    settings = dict(request.settings)
    if is_address(file := settings.get("checkpoint", "")):
        settings["checkpoint"] = str(checkpoint_file(file))
    return replace(request, checkpoints=tuple(map(checkpoint_file, request.checkpoints)), settings=settings)


def _plan(chosen: Sequence[str], everything: bool, spec: str, request: Request) -> Plan:
    listed = list_samples(spec, request)
    resolved, skipped = _methods(chosen, everything, listed, request)
    specs = list(dict.fromkeys(item.method.preprocess for item, _ in resolved))
    data, left_out, warnings = usable(listed, request, specs)
    jobs = [make_job(item, seed, spec, data, left_out, request) for item, seed in resolved]
    jobs = list({job.run_dir: job for job in jobs}.values())
    asked = data.backbone_or(request.backbone)
    notes = [f"{data.id}: {note}" for note in (*data.notes, *warnings)] + _choices(jobs, request, asked)
    contents = Contents(data, verify=request.verify, workers=request.workers)
    for job in jobs:
        notes += find(job, data, contents)
    _check_saturations(data, request)
    validation = _validation(spec, data, request, specs)
    if validation is None:
        return Plan(data, contents, tuple(jobs), skipped, tuple(notes))
    beside = Contents(validation, verify=request.verify, workers=request.workers)
    for job in jobs:
        notes += find_validation(job, validation, beside)
    return Plan(data, contents, tuple(jobs), skipped, tuple(notes), validation, beside)


def _check_saturations(data: Dataset, request: Request) -> None:
    """Refuse files that do not say how much of each defect must be found, where a metric needs that."""
    if any(spro_limit(metric) for metric in request.metrics):
        for file in {sample.saturation for sample in data.samples if sample.saturation}:
            read_saturations(file)


def _validation(spec: str, data: Dataset, request: Request, specs: Sequence[Preprocess]) -> Dataset | None:
    """Return the normal validation images; None where no metric needs any, or the description names none.

    Those that cannot be read stay among them with ``skip_bad``, and fail when they are to be encoded.
    """
    if not needs_normals(request.metrics):
        return None
    follow = request.follow_outside
    found = validation_of(spec, data, request.limit, skip_bad=request.skip_bad, follow_outside=follow)
    if found and found.samples:
        usable(found, request, specs)
    return found


def _choices(jobs: Sequence[Job], request: Request, asked: str | None) -> list[str]:
    """Return which checkpoints, and which CLIP for one, were chosen for the user, and idle words."""
    trained = [job for job in jobs if job.observation["checkpoint"]]
    wordless = [job for job in jobs if request.words and job.resolved.card.wording == WORDLESS]
    named = request.checkpoints or "checkpoint" in request.settings
    notes = [
        f"{job.task.name} uses {job.resolved.parameters['checkpoint']}, the newest that fits in {FOLDER}"
        for job in trained
        if not named
    ]
    notes += [
        f"{job.task.name} uses {address}"
        for job in trained
        if (address := hub_address(job.resolved.parameters["checkpoint"]))
    ]
    notes += [f"{job.task.name}: --words changes nothing, its prompts name no category" for job in wordless]
    if asked is None:
        notes += [
            f"{job.task.name} runs on {name}, which its checkpoint was trained on"
            for job in trained
            if not job.resolved.card.backbone.startswith(f"{(name := job.resolved.method.backbone.name)}/")
        ]
    return notes


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
    _check_used(request, [resolved for resolved, _ in found], skipped)
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
        find_seconds(base.method)  # one that cannot be had costs `all` this method, not the run
        _check_enough(base, dataset)
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
    if card.path.suffix != ".toml" and request.checkpoints:  # a class in a file knows what fits it
        for given in request.checkpoints if not request.allow_seen else ():
            refuse_seen(given, dataset)
        return [{"checkpoint": str(given)} for given in request.checkpoints]
    plain = resolve(spec, dataset=dataset.id, domain=dataset.domain)
    backbone = dataset.backbone_or(request.backbone) or plain.method.backbone.name
    named = [Path(file) for file in request.checkpoints]
    files = checkpoints_for(card.id, backbone, dataset, named, allow_seen=request.allow_seen)
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
    towers = {"backbone": dataset.backbone_or(request.backbone)}
    if towers["backbone"] is None and extra.get("checkpoint"):
        towers |= trained_on(extra["checkpoint"], plain.method.backbone.name)
    given = {"weights": request.weights, "activation": request.activation}
    return resolve(
        spec,
        dataset=dataset.id,
        domain=dataset.domain,
        prompts=request.prompts,
        settings=settings | dict(extra),
        **towers | {name: value for name, value in given.items() if value is not None},
    )


def _check_enough(resolved: Resolved, dataset: Dataset) -> None:
    """Refuse a method that relates images where no category has enough of them."""
    most = max(Counter(sample.category for sample in dataset.samples).values(), default=0)
    if reason := too_few(resolved.method, most):
        raise MethodError(f"{resolved.id} {reason}; no category of '{dataset.id}' has more than {most}")


def _check_used(request: Request, found: Sequence[Resolved], skipped: Mapping[str, str]) -> None:
    """Refuse what no method of the run has any use for: a setting, a checkpoint, words."""
    names = ", ".join(dict.fromkeys(resolved.id for resolved in found))
    if request.checkpoints and not skipped and not any(resolved.card.trained for resolved in found):
        given = hub_address(request.checkpoints[0]) or request.checkpoints[0]
        raise UsageError(f"--checkpoint {given}: {names} takes none; leave it out")
    if request.words and all(resolved.card.wording == WORDLESS for resolved in found):
        raise UsageError(
            f"--words {next(iter(request.words))}=...: the prompts of {names} name no category; leave it out"
        )
    known = {name for resolved in found for name in places(resolved.method)}
    for name in request.settings:
        if name not in known:
            raise UsageError(f"--set {name}: no method of this run has that parameter.{suggest(name, known)}")
