"""Images become evidence of every method: towers loaded once, each walked once for methods of one input."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip import Clip, load_clip
from ..environment import emulates
from ..errors import MethodError, is_out_of_memory
from ..images import Loaded, lanes, to_batch_images
from ..inputs import Backbone, Batch, Preprocess
from ..method import Drawing, Method, Observer, blamed
from ..samples import Sample
from .devices import images_at_once
from .gathered import Keep, Rows, Sent, at_home, joined
from .task import Pass, Task

Input = tuple[Backbone, Preprocess]
"""What methods have in common that can share a walk."""
Clips = dict[Backbone | Input, Clip]
"""Loaded CLIPs by backbone, and the same with a walk of their own by input."""


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
        clips: Clips | None = None,
        overlap: bool | None = None,
    ) -> None:
        self.tasks, self.device, self.dtype = tasks, device, dtype
        self.lanes = lanes(device, overlap)
        self.batch_size = batch_size or images_at_once(device)
        self.clips: Clips = {} if clips is None else clips
        waits = device.type == "cuda" and not self.lanes
        self._clock = partial(_waited, device) if waits else time.perf_counter
        self.report = Pass()

    def clip(self, backbone: Backbone) -> Clip:
        """Return the loaded CLIP of ``backbone``; those that differ in their position rule share weights."""
        if backbone not in self.clips and backbone != backbone.plain:
            self.clips[backbone] = self.clip(backbone.plain).alone(backbone.position)
        if backbone not in self.clips:
            start = time.perf_counter()
            self.clips[backbone] = load_clip(backbone, self.device, self.dtype)
            self.report.add("load", time.perf_counter() - start)
        return self.clips[backbone]

    def walk(self, method: Method) -> Clip:
        """Return the CLIP that ``method`` walks: what is asked of walks over other input costs it nothing."""
        key = self._input(method)
        if key not in self.clips:
            self.clips[key] = self.clip(key[0]).alone()
        return self.clips[key]

    def _input(self, method: Method) -> Input:
        """Return what ``method`` has in common with those it can share a walk with.

        When a picture becomes RGB makes no difference to one that is RGB already, as most are, and no rule
        resizes position embeddings to a grid they have.
        """
        backbone, spec = method.backbone, replace(method.preprocess, rgb="before")
        vision, fixed = self.clip(backbone).vision, spec.resize == "squash" or spec.tiles != "none"
        if fixed and vision.native == (spec.size // vision.patch,) * 2:
            backbone = backbone.plain
        return backbone, spec

    def prepare(self, task: Task, category: str) -> Observer:
        """Return the task's observer; an order-dependent method starts afresh with each category."""
        scope = category if task.order_dependent else ""
        if task.observer is None or task.prepared != scope:
            clip = self.walk(task.method)
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
        batches: dict[tuple[Any, ...], Batch] = {}
        found: list[Rows] = []
        spent: list[tuple[float, float]] = []
        pairs = zip(tasks, observers, strict=True)
        for clip, sharing in groupby(pairs, lambda pair: self.walk(pair[0].method)):
            clip.vision.clock = self._clock
            for task, observer in sharing:
                batch = self._batch(loaded, task.method, batches)
                start = time.perf_counter()
                with torch.no_grad(), blamed(observer, "observe"):
                    evidence = observer.observe(batch)
                    found.append(keep(evidence, batch, task.name, task.relates))
                seconds = time.perf_counter() - start
                self.report.add("encode", seconds)
                taken, used = clip.vision.took()
                spent.append((seconds - taken, used))
            clip.vision.forget()
        if not self.lanes:  # there nobody waits for the device, so nobody knows whose time it was
            for task, cost in zip(tasks, spent, strict=True):
                task.spent.add(*cost, images=len(loaded))
        return found

    def _batch(self, loaded: Sequence[Loaded], method: Method, made: dict[tuple[Any, ...], Batch]) -> Batch:
        """Return the batch of ``loaded`` images for ``method``; the same for the same prepared images."""
        _, spec = self._input(method)
        prepared = [item.inputs[method.preprocess] for item in loaded]
        key = spec, *map(id, prepared)
        if key not in made:
            start = time.perf_counter()
            made[key] = Batch(
                images=to_batch_images(prepared, spec, self.device, self.dtype, self.lanes),
                boxes=torch.from_numpy(np.stack([p.boxes for p in prepared])),
                frame=torch.from_numpy(np.stack([p.frame for p in prepared])),
                keys=[item.sample.key for item in loaded],
                categories=[item.sample.category for item in loaded],
            )
            self.report.add("transfer", time.perf_counter() - start)
        return made[key]

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
