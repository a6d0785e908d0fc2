"""One pass over the images, many methods: decode and encode once, keep the evidence.

A batch never crosses a slice of the sample list, so the evidence of a slice depends neither on which
methods run beside it nor on where an interrupted run went on.  On the overlapped path, off by default, the
next batch is started before the evidence of the last one is waited for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..images import Loaded, stream
from ..method import Relating
from ..records import Slice, plan
from ..samples import Sample
from .encoder import Encoder
from .gathered import Flight, Gathered, Group, related, too_few
from .task import Pass, Task

if TYPE_CHECKING:
    from ..progress import Progress


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
    report, tasks = encoder.report, _sharing(tasks, encoder)
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


def _sharing(tasks: Sequence[Task], encoder: Encoder) -> list[Task]:
    """Return the tasks so that those of one walk, and then of one preprocessing, follow each other.

    A walk is kept until the next one begins.
    """
    first: dict[Any, int] = {}
    for number, task in enumerate(tasks):
        first.setdefault(encoder.walk(task.method), number)
        first.setdefault(task.method.preprocess, number)
    return sorted(tasks, key=lambda task: (first[encoder.walk(task.method)], first[task.method.preprocess]))


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
