"""One pass over the images, many methods: decode and encode once, keep the evidence.

A batch never crosses a slice of the sample list, so the evidence of a slice depends neither on which
methods run beside it nor on where an interrupted run went on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..clip import Clip, load_clip
from ..errors import MethodError, UsageError, is_out_of_memory, suggest
from ..images import Loaded, stream, to_batch_images
from ..inputs import Backbone, Batch, Preprocess
from ..method import Evidence, Method, Observer, Relating, blamed
from ..records import EvidenceStore, Slice, plan
from ..samples import Sample
from .gathered import Gathered, checked, related, require_alike, too_few

if TYPE_CHECKING:
    from ..progress import Progress

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Task:
    """One method on one dataset: what is to be observed and where it goes.

    ``stored`` are the slices found on disk, without their tensors, ``missing`` those to be observed.
    """

    name: str
    method: Method
    wordings: Mapping[str, str]
    store: EvidenceStore
    order_dependent: bool = False
    slices: list[range] = field(default_factory=list)
    stored: dict[int, Slice] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)
    observer: Observer | None = None
    prepared: str | None = None

    @property
    def relates(self) -> bool:
        """Whether the method judges the images of a category by each other."""
        return isinstance(self.method, Relating)

    def plan(self, samples: Sequence[Sample]) -> None:
        """Cut the sample list in slices and find those stored already; failed images are tried again."""
        self.slices = plan(samples, whole_categories=self.order_dependent or self.relates)
        keys = [[samples[i].key for i in part] for part in self.slices]
        found = {number: self.store.find(number, part) for number, part in enumerate(keys)}
        self.stored = {number: part for number, part in found.items() if part}
        self.missing = {number for number, part in found.items() if not part or part.failed}


@dataclass
class Pass:
    """What a pass cost: seconds per phase, images encoded, and the batch size it ended with."""

    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0
    batch_size: int = 0

    def add(self, phase: str, seconds: float) -> None:
        """Count ``seconds`` towards ``phase``."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; ``auto`` is the GPU if there is one.

    Raises:
        MethodError: if that device is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` makes tensors that hold no number
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise MethodError(
            f"device '{name}' cannot be used ({reason[:100]}); use --device auto or cpu"
        ) from None
    return device


def pick_dtype(name: str) -> torch.dtype:
    """Return the number type of the image tower called ``name``.

    Raises:
        UsageError: for an unknown one.
    """
    if name not in DTYPES:
        raise UsageError(f"unknown dtype '{name}'.{suggest(name, DTYPES)}")
    return DTYPES[name]


class Encoder:
    """Turns loaded images into evidence of every task, halving the batch when memory runs out."""

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        batch_size: int | None = None,
        clips: dict[Backbone, Clip] | None = None,
    ) -> None:
        self.tasks, self.device, self.dtype = tasks, device, dtype
        self.batch_size = batch_size or (32 if device.type == "cuda" else 8)
        self.clips = {} if clips is None else clips
        self.report = Pass()

    def clip(self, backbone: Backbone) -> Clip:
        """Return the loaded CLIP of ``backbone``; equal backbones share one."""
        if backbone not in self.clips:
            start = time.perf_counter()
            self.clips[backbone] = load_clip(backbone, self.device, self.dtype)
            self.report.add("load", time.perf_counter() - start)
        return self.clips[backbone]

    def prepare(self, task: Task, category: str) -> Observer:
        """Return the task's observer; an order-dependent method starts afresh with each category."""
        scope = category if task.order_dependent else ""
        if task.observer is None or task.prepared != scope:
            clip = self.clip(task.method.backbone)
            start = time.perf_counter()
            wordings = {category: task.wordings[category]} if task.order_dependent else task.wordings
            with blamed(task.method, "prepare"):
                task.observer = _observer(task.method.prepare(clip, wordings), task.name)
            task.prepared = scope
            self.report.add("text", time.perf_counter() - start)
        return task.observer

    def observe(self, loaded: Sequence[Loaded], tasks: Sequence[Task]) -> list[dict[str, Tensor]]:
        """Return the evidence (B, ...) of each task for images of one category, rows in their order."""
        if not loaded:
            return [{} for _ in tasks]
        parts: list[list[dict[str, Tensor]]] = [[] for _ in tasks]
        rest = list(loaded)
        while rest:
            now = rest[: self.batch_size]
            try:
                found = self._observe(now, tasks)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink(error, tasks)
                continue
            for part, evidence in zip(parts, found, strict=True):
                part.append(evidence)
            rest = rest[len(now) :]
        return [_joined(part, task.name) for part, task in zip(parts, tasks, strict=True)]

    def _observe(self, loaded: Sequence[Loaded], tasks: Sequence[Task]) -> list[dict[str, Tensor]]:
        observers = [self.prepare(task, loaded[0].sample.category) for task in tasks]
        batches: dict[Preprocess, Batch] = {}
        found: list[dict[str, Tensor]] = []
        for task, observer in zip(tasks, observers, strict=True):
            spec = task.method.preprocess
            if spec not in batches:
                start = time.perf_counter()
                batches[spec] = self.batch(loaded, spec)
                self.report.add("transfer", time.perf_counter() - start)
            start = time.perf_counter()
            with torch.no_grad(), blamed(observer, "observe"):
                evidence = observer.observe(batches[spec])
                found.append(_to_rows(evidence, batches[spec], task))
            self.report.add("encode", time.perf_counter() - start)
        for clip in self.clips.values():
            clip.vision.forget()
        return found

    def batch(self, loaded: Sequence[Loaded], spec: Preprocess) -> Batch:
        """Return the batch of ``loaded`` images under one preprocessing, on the device."""
        prepared = [item.inputs[spec] for item in loaded]
        return Batch(
            images=to_batch_images(prepared, spec, self.device, self.dtype),
            boxes=torch.stack([p.boxes for p in prepared]),
            frame=torch.stack([p.frame for p in prepared]),
            keys=[item.sample.key for item in loaded],
            categories=[item.sample.category for item in loaded],
        )

    def _shrink(self, error: Exception, tasks: Sequence[Task]) -> None:
        if not is_out_of_memory(error):
            raise error
        for clip in self.clips.values():
            clip.vision.forget()
        carried = [task.name for task in tasks if task.order_dependent]
        if self.batch_size == 1 or carried:
            remedy = (
                "give --batch-size 1"
                if carried and self.batch_size > 1
                else "choose a smaller --set size=..."
            )
            raise MethodError(
                f"out of memory on {self.device} with a batch of {self.batch_size}; {remedy}, another "
                "--device or --dtype bf16"
            ) from error
        self.batch_size //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _observer(made: Any, name: str) -> Observer:
    if not isinstance(made, Observer):
        raise MethodError(f"{name}: prepare() returns {type(made).__name__}, which has no observe(batch)")
    return made


def _to_rows(evidence: Evidence, batch: Batch, task: Task) -> dict[str, Tensor]:
    """Return evidence on the CPU with the frame added, checked for rows and finite numbers.

    It is float32, but what is to be related may stay in half precision: it is not kept.
    """
    rows = checked(evidence, batch.keys, f"{task.name}: observe()", half=task.relates)
    return {**rows, "frame": batch.frame.to("cpu", torch.float32)}


def _joined(parts: Sequence[Mapping[str, Tensor]], name: str) -> dict[str, Tensor]:
    """Return the evidence of several batches as one."""
    for part in parts[1:]:
        require_alike(parts[0], part, name)
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def observe(
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    encoder: Encoder,
    progress: Progress,
    *,
    workers: int | None = None,
    orient: bool = False,
    max_pixels: int | None = None,
    stop: threading.Event | None = None,
) -> Pass:
    """Observe every missing slice of every task in one pass over the images they need.

    Each finished slice is on disk before the next one starts, so an interruption costs at most the
    slices in work.  Images that cannot be read are kept as failures of their slice, and so are those of a
    category of too few images for a method that relates them.

    Raises:
        ZsadError: for anything that would fail for every image as well.
        KeyboardInterrupt: once ``stop`` is set and every slice in work is stored, but what is to be related.
    """
    report = encoder.report
    groups = list(_groups(tasks, samples))
    wanted = [samples[i] for indices, _ in groups for i in indices]
    specs = [task.method.preprocess for task in tasks if task.missing]
    options: dict[str, Any] = {} if max_pixels is None else {"max_pixels": max_pixels}
    gathered: dict[tuple[int, int], Gathered] = {}
    progress.start()
    with closing(stream(wanted, specs, workers=workers, orient=orient, **options)) as loader:
        for indices, owners in groups:
            active = [tasks[t] for t, _ in owners]
            done = 0
            while done < len(indices):
                start = time.perf_counter()
                loaded = list(islice(loader, min(encoder.batch_size, len(indices) - done)))
                report.add("decode wait", time.perf_counter() - start)
                evidence = encoder.observe([item for item in loaded if item.error is None], active)
                for (t, number), rows in zip(owners, evidence, strict=True):
                    whole = len(tasks[t].slices[number])
                    gathered.setdefault((t, number), Gathered(whole, tasks[t].name)).add(loaded, rows)
                report.images += len(loaded)
                progress.advance(len(loaded))
                done += len(loaded)
            finished = [(t, n) for t, n in owners if indices[-1] == tasks[t].slices[n][-1]]
            for t, number in sorted(finished, key=lambda owner: tasks[owner[0]].relates):
                part = gathered.pop((t, number)).slice()
                if tasks[t].relates:
                    part = _related(part, tasks[t], samples[indices[0]].category, encoder, progress, stop)
                start = time.perf_counter()
                tasks[t].store.write(number, part)
                tasks[t].missing.discard(number)
                report.add("store", time.perf_counter() - start)
            if stop and stop.is_set() and all(tasks[t].relates for t, _ in gathered):
                raise KeyboardInterrupt
    report.batch_size = encoder.batch_size
    return report


def _related(
    part: Slice, task: Task, category: str, encoder: Encoder, progress: Progress, stop: threading.Event | None
) -> Slice:
    """Return the evidence of a category related, or all of its images as failures where they are too few."""
    if reason := too_few(task.method, len(part.keys)):
        reason = f"{task.name} {reason}; '{category}' has {len(part.keys)}"
        return Slice({}, [], [], part.failed | dict.fromkeys(part.keys, reason))

    def tell(done: float) -> None:
        progress.step(f"{task.name} relates the images of '{category}'", done)
        if stop and stop.is_set():
            raise KeyboardInterrupt

    assert isinstance(task.method, Relating)
    start = time.perf_counter()
    found = related(part, task.method, task.name, encoder.device, tell)
    encoder.report.add("relate", time.perf_counter() - start)
    return found


def _groups(
    tasks: Sequence[Task], samples: Sequence[Sample]
) -> Iterator[tuple[range, list[tuple[int, int]]]]:
    """Yield runs of samples with the (task, slice) pairs that need them, cut as the finest plan cuts."""
    owners: dict[tuple[int, int], int] = {}
    for t, task in enumerate(tasks):
        owners.update({(t, i): number for number in task.missing for i in task.slices[number]})
    for part in plan(samples):
        needed = [(t, owners[t, part.start]) for t in range(len(tasks)) if (t, part.start) in owners]
        if needed:
            yield part, needed


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of the process (CPU) or of the device, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
