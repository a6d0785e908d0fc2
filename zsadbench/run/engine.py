"""One pass over the images, many methods: decode and encode once, keep the evidence.

A batch never crosses a slice of the sample list, so the evidence of a slice depends neither on which
methods run beside it nor on where an interrupted run went on.  On the overlapped path, off by default, the
next batch is started before the evidence of the last one is waited for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..clip import Clip, load_clip
from ..environment import emulates
from ..errors import MethodError, UsageError, is_out_of_memory, suggest
from ..images import Loaded, lanes, stream, to_batch_images
from ..inputs import Backbone, Batch, Preprocess
from ..method import Drawing, Method, Observer, Relating, blamed
from ..records import EvidenceStore, Slice, plan
from ..samples import Sample
from .gathered import Flight, Gathered, Group, Keep, Rows, Sent, Spent, at_home, joined, related, too_few

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
    spent: Spent = field(default_factory=Spent)

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
    """What a pass cost: seconds per phase (of several workers their sum), images encoded, and the rest.

    ``batch_size`` is the one it ended with, ``memory_mb`` the peak of a device; where there were workers,
    ``devices`` says of each what it is and what it did.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0
    batch_size: int = 0
    memory_mb: float = 0.0
    devices: list[dict[str, Any]] = field(default_factory=list)

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


def images_at_once(device: torch.device) -> int:
    """Return how many images are encoded together where nothing is said."""
    return 32 if device.type == "cuda" else 8


def pick_dtype(name: str) -> torch.dtype:
    """Return the number type of the image tower called ``name``.

    Raises:
        UsageError: for an unknown one.
    """
    if name not in DTYPES:
        raise UsageError(f"unknown dtype '{name}'.{suggest(name, DTYPES)}")
    return DTYPES[name]


class Encoder:
    """Turns loaded images into evidence of every task, halving the batch when memory runs out.

    ``overlap`` is whether batches overlap; by default an environment variable decides (`images.lanes`).
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        batch_size: int | None = None,
        clips: dict[Backbone, Clip] | None = None,
        overlap: bool | None = None,
    ) -> None:
        self.tasks, self.device, self.dtype = tasks, device, dtype
        self.lanes = lanes(device, overlap)
        self.batch_size = batch_size or images_at_once(device)
        self.clips = {} if clips is None else clips
        waits = device.type == "cuda" and not self.lanes
        self._clock = partial(_waited, device) if waits else time.perf_counter
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
        return [joined(part, task.name) for part, task in zip(parts, tasks, strict=True)]

    def start(self, loaded: Sequence[Loaded], tasks: Sequence[Task]) -> Callable[[], list[Rows]]:
        """Begin to observe images of one category, a batch at most; what is returned waits for the evidence.

        Without lanes it is there already.
        """
        if self.lanes and loaded:
            sent = Sent(self.lanes)
            try:
                self._observe(loaded, tasks, sent.take)
                sent.leave()
                return sent.landed
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._shrink(error, tasks)
        found = self.observe(loaded, tasks)
        return lambda: found

    def draw_ahead(self, samples: Sequence[Sample], tasks: Sequence[Task]) -> None:
        """Let methods draw random numbers for the images that come next, while the device is busy."""
        for task in tasks:
            if isinstance(task.observer, Drawing):
                task.observer.draw_ahead([s.key for s in samples], [s.category for s in samples])

    def _observe(self, loaded: Sequence[Loaded], tasks: Sequence[Task], keep: Keep = at_home) -> list[Rows]:
        observers = [self.prepare(task, loaded[0].sample.category) for task in tasks]
        batches: dict[Preprocess, Batch] = {}
        found: list[Rows] = []
        spent: list[tuple[float, float]] = []
        for task, observer in zip(tasks, observers, strict=True):
            spec, vision = task.method.preprocess, self.clip(task.method.backbone).vision
            vision.clock = self._clock
            if spec not in batches:
                start = time.perf_counter()
                batches[spec] = self.batch(loaded, spec)
                self.report.add("transfer", time.perf_counter() - start)
            start = time.perf_counter()
            with torch.no_grad(), blamed(observer, "observe"):
                evidence = observer.observe(batches[spec])
                found.append(keep(evidence, batches[spec], task.name, task.relates))
            seconds = time.perf_counter() - start
            self.report.add("encode", seconds)
            taken, used = vision.took()
            spent.append((seconds - taken, used))
        if not self.lanes:  # there nobody waits for the device, so nobody knows whose time it was
            for task, cost in zip(tasks, spent, strict=True):
                task.spent.add(*cost, images=len(loaded))
        for clip in self.clips.values():
            clip.vision.forget()
        return found

    def batch(self, loaded: Sequence[Loaded], spec: Preprocess) -> Batch:
        """Return the batch of ``loaded`` images under one preprocessing, on the device."""
        prepared = [item.inputs[spec] for item in loaded]
        return Batch(
            images=to_batch_images(prepared, spec, self.device, self.dtype, self.lanes),
            boxes=torch.from_numpy(np.stack([p.boxes for p in prepared])),
            frame=torch.from_numpy(np.stack([p.frame for p in prepared])),
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
            half = "" if self.device.type == "cpu" and emulates("bf16") else " or --dtype bf16"
            raise MethodError(
                f"out of memory on {self.device} with a batch of {self.batch_size}; {remedy}, another "
                f"--device{half}"
            ) from error
        self.batch_size //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _waited(device: torch.device) -> float:
    """Return the time in seconds, once a device has done what it was told."""
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _observer(made: Any, name: str) -> Observer:
    if not isinstance(made, Observer):
        raise MethodError(f"{name}: prepare() returns {type(made).__name__}, which has no observe(batch)")
    return made


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
        for flight in _flights(tasks, samples, groups, loader, encoder):
            indices, owners = flight.group
            start = time.perf_counter()
            evidence = flight.landed()
            report.add("encode", time.perf_counter() - start)
            for (t, number), rows in zip(owners, evidence, strict=True):
                whole = len(tasks[t].slices[number])
                gathered.setdefault((t, number), Gathered(whole, tasks[t].name)).add(flight.loaded, rows)
            report.images += len(flight.loaded)
            progress.advance(len(flight.loaded))
            if not flight.last:
                continue
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


def _flights(
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    groups: Sequence[Group],
    loader: Iterator[Loaded],
    encoder: Encoder,
) -> Iterator[Flight]:
    """Yield all batches in order; with lanes the next one is started first."""
    waiting: deque[Flight] = deque()
    for number, (indices, owners) in enumerate(groups):
        done = 0
        while done < len(indices):
            start = time.perf_counter()
            loaded = list(islice(loader, min(encoder.batch_size, len(indices) - done)))
            encoder.report.add("decode wait", time.perf_counter() - start)
            done += len(loaded)
            good = [item for item in loaded if item.error is None]
            landed = encoder.start(good, [tasks[t] for t, _ in owners])
            waiting.append(Flight((indices, owners), loaded, landed, done == len(indices)))
            if encoder.lanes:
                rest = [(indices[done:], owners), *groups[number + 1 : number + 2]]
                following, theirs = next((group for group in rest if group[0]), ((), []))
                soon = [samples[i] for i in following[: encoder.batch_size]]
                encoder.draw_ahead(soon, [tasks[t] for t, _ in theirs])
            while len(waiting) > (1 if encoder.lanes else 0):
                yield waiting.popleft()
    yield from waiting


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
    seconds = time.perf_counter() - start
    encoder.report.add("relate", seconds)
    task.spent.add(seconds)
    return found


def _groups(tasks: Sequence[Task], samples: Sequence[Sample]) -> Iterator[Group]:
    """Yield runs of samples with the (task, slice) pairs that need them, cut as the finest plan cuts."""
    owners: dict[tuple[int, int], int] = {}
    for t, task in enumerate(tasks):
        owners.update({(t, i): number for number in task.missing for i in task.slices[number]})
    for part in plan(samples):
        needed = [(t, owners[t, part.start]) for t in range(len(tasks)) if (t, part.start) in owners]
        if needed:
            yield part, needed
