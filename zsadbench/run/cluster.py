"""A run on many devices: workers observe what is missing, and the process that was asked writes it.

The unit of work is a slice of the sample list with every method that needs it.  Workers are actors of Ray
(https://docs.ray.io).  Work that a dead worker held is handed out again, and another takes its place.
``--devices`` is the same on a Ray of this machine alone, which nothing outside reaches.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..environment import Devices, Seat, seats_here, seats_of
from ..errors import MethodError, UsageError, ZsadError
from ..progress import Progress
from ..records import Contents
from ..samples import Dataset
from .engine import Pass, Task, images_at_once
from .worker import Brief, Found, Worker, below, ray_at

IN_FLIGHT = 2
"""Units that a worker has at a time, so that it never waits for the next."""
TRIES = 3
"""How often workers may die over one unit, or one worker in a row, before that ends the run."""
PATIENCE = 300.0
"""Seconds that the first worker may take to start, and a worker to load towers."""
LATE = 60.0
"""Seconds that the others may start later than the first."""
INSTALL = "pip install 'zsadbench[cluster]'"


@dataclass(frozen=True)
class Unit:
    """Samples ``start`` to ``stop`` of the list, and the (task, slice) pairs whose slice they are."""

    start: int
    stop: int
    owners: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return self.stop - self.start


def units(tasks: Sequence[Task]) -> list[Unit]:
    """Return the missing slices of all tasks, those of the same samples together, the longest first."""
    owners: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for t, task in enumerate(tasks):
        for number in sorted(task.missing):
            part = task.slices[number]
            owners.setdefault((part.start, part.stop), []).append((t, number))
    found = [Unit(*part, tuple(pairs)) for part, pairs in owners.items()]
    return sorted(found, key=lambda unit: (-len(unit), unit.start))


@dataclass
class Hand:
    """A worker as the team sees it: its process, the calls it has in hand, and what it has done."""

    seat: Seat
    actor: Any
    number: int
    name: str = ""
    device: str = ""
    node: str = ""
    calls: deque[Any] = field(default_factory=deque)
    ready: bool = False
    failures: int = 0
    images: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Images per second of its own time."""
        return self.images / self.seconds if self.seconds else 0.0


class Team:
    """Workers that observe one dataset after the other.  ``stop`` is set when the user interrupts."""

    def __init__(
        self,
        ray: Any,
        seats: Sequence[Seat],
        options: tuple[Any, ...],
        own: bool,
        stop: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        self.ray, self.options, self.own, self.stop, self.say = ray, options, own, stop, say
        self.batch_size: int = options[1] or images_at_once(torch.device(seats[0].device))
        self.remote = ray.remote(concurrency_groups={"aside": 1})(Worker)
        self.brief: Any = None
        self.sizes: Any = None
        self.calls: dict[Any, tuple[Hand, Unit | None]] = {}
        self.lost = ""
        self.hands = [self._hired(seat, number) for number, seat in enumerate(seats)]
        self._gather()

    @property
    def about(self) -> str:
        """What the workers run on, each kind once."""
        return ", ".join(dict.fromkeys(hand.device for hand in self.hands))

    def _hired(self, seat: Seat, number: int, failures: int = 0) -> Hand:
        gpus = 1 if seat.device == "cuda" else 0
        actor = self.remote.options(
            num_cpus=seat.cpus,
            num_gpus=gpus,
            scheduling_strategy="SPREAD",
        ).remote(seat, *self.options)
        return Hand(seat, actor, number, failures=failures)

    def begin(self, tasks: Sequence[Task], data: Dataset, contents: Contents, progress: Progress) -> None:
        """Tell every worker of a dataset.

        Raises:
            ZsadError: from a worker that lacks something, before anything is encoded.
        """
        self.tasks, self.samples, self.progress = tasks, data.samples, progress
        self.brief = self.ray.put(Brief.of(tasks, data))
        self.sizes = None if self.own else self.ray.put(_sizes(data.root, contents))
        seen: set[str] = set()
        for hand in self.hands:
            self._tell(hand, look=hand.node not in seen)
            seen.add(hand.node)
        self._work(deque(), lambda hand, unit, found: None)

    def observe(self) -> Pass:
        """Observe every missing slice, and write each as it comes in.

        Raises:
            ZsadError: for anything that would fail for every image as well, or for every worker.
            KeyboardInterrupt: once ``stop`` is set and the units in work are stored.
        """
        report = Pass()
        covered = bytearray(len(self.samples))
        self.progress.start()

        def taken(hand: Hand, unit: Unit, found: Found) -> None:
            start = time.perf_counter()
            for t, number in unit.owners:
                if t in found.slices:
                    self.tasks[t].store.put(number, found.slices[t])
                    self.tasks[t].missing.discard(number)
            report.add("store", time.perf_counter() - start)
            if not found.slices:
                return
            for phase, seconds in found.report.seconds.items():
                report.add(phase, seconds)
            report.images += len(unit) - sum(covered[unit.start : unit.stop])
            covered[unit.start : unit.stop] = b"\1" * len(unit)
            report.batch_size = min(found.batch_size, report.batch_size or found.batch_size)
            report.memory_mb = max(found.memory_mb, report.memory_mb)
            hand.images, hand.seconds = hand.images + len(unit), hand.seconds + found.report.seconds["total"]
            self.progress.advance(len(unit))

        for hand in self.hands:
            hand.images, hand.seconds = 0, 0.0
        try:
            self._work(deque(units(self.tasks)), taken)
        finally:
            report.devices = [
                {"device": hand.device, "images": hand.images, "images_per_second": round(hand.rate, 3)}
                for hand in self.hands
            ]
            self._tell_rates()
        return report

    def _tell_rates(self) -> None:
        for hand in self.hands:
            if hand.images:
                where = f"{hand.device}, {hand.name}" if hand.name else hand.device
                self.say(
                    f"worker {hand.number + 1} ({where}): {hand.images} images, {hand.rate:.2f} images/s"
                )

    def _tell(self, hand: Hand, look: bool) -> None:
        """Hand a worker the brief; with ``look`` it compares the files of the dataset first."""
        hand.ready = False
        self._call(hand, None, hand.actor.take.remote(self.brief, self.sizes if look else None))

    def _call(self, hand: Hand, unit: Unit | None, ref: Any) -> None:
        self.calls[ref] = hand, unit
        hand.calls.append(ref)

    def _work(self, todo: deque[Unit], taken: Callable[[Hand, Unit, Found], None]) -> None:
        """Let the workers do ``todo``, or become ready where there is nothing to do, and take what comes."""
        deaths: Counter[Unit] = Counter()
        starting, last = not todo, time.monotonic()
        while todo or self._busy(starting):
            if self.stop.is_set():
                self._stop(todo)
                starting = False
            self._hand_out(todo)
            ready, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=0.5)
            for ref in ready:
                last = time.monotonic()
                self._took(ref, todo, deaths, taken)
            if time.monotonic() - last > PATIENCE and not any(
                hand.calls for hand in self.hands if hand.ready
            ):
                self._go_without()
        if self.stop.is_set():
            raise KeyboardInterrupt

    def _busy(self, starting: bool) -> bool:
        if starting and not all(hand.ready for hand in self.hands):
            return True
        return any(unit for _, unit in self.calls.values())

    def _hand_out(self, todo: deque[Unit]) -> None:
        for depth in range(1, IN_FLIGHT + 1):
            for hand in self.hands:
                if todo and hand.ready and len(hand.calls) < depth:
                    unit = todo.popleft()
                    samples = self.samples[unit.start : unit.stop]
                    wanted = [t for t, _ in unit.owners]
                    self._call(hand, unit, hand.actor.observe.remote(samples, wanted))

    def _took(
        self,
        ref: Any,
        todo: deque[Unit],
        deaths: Counter[Unit],
        taken: Callable[[Hand, Unit, Found], None],
    ) -> None:
        """Take what a worker answers: evidence, that it is ready, what is wrong, or nothing where it died."""
        hand, unit = self.calls.pop(ref)
        first = hand.calls[0] is ref
        hand.calls.remove(ref)
        try:
            answer = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayError as error:
            reason = _reason(error)
            if unit and not self.stop.is_set():
                todo.appendleft(unit)
                deaths[unit] += first
                if deaths[unit] >= TRIES:
                    key = self.samples[unit.start].key
                    raise MethodError(
                        f"{TRIES} workers died at {key} and the images after it: {reason}"
                    ) from None
            self._lost(hand, reason)
            return
        if isinstance(answer, ZsadError) and unit is None:
            raise type(answer)(f"the worker on {hand.name or 'another machine'} {answer}")
        if isinstance(answer, ZsadError):
            raise answer
        if unit is None:
            hand.name, hand.device, hand.node = answer
            hand.ready = True
        else:
            hand.failures = 0
            taken(hand, unit, answer)

    def _lost(self, hand: Hand, reason: str) -> None:
        """Put another worker in the place of one that died, unless too many died there in a row."""
        self.lost = reason
        if hand not in self.hands:
            return
        place = self.hands.index(hand)
        if hand.failures + 1 < TRIES:
            self.say(f"worker {hand.number + 1} ({hand.name}) is replaced: {reason}")
            self.hands[place] = self._hired(hand.seat, hand.number, hand.failures + 1)
            self.hands[place].images, self.hands[place].seconds = hand.images, hand.seconds
            self.hands[place].device = hand.device
            self._tell(self.hands[place], look=True)
            return
        self.say(f"worker {hand.number + 1} is given up after {TRIES} deaths: {reason}")
        del self.hands[place]
        if not self.hands:
            raise MethodError(f"no worker is left: {reason}")

    def _go_without(self) -> None:
        """Leave out workers that did not become ready in time."""
        ready = [hand for hand in self.hands if hand.ready]
        if not ready:
            raise UsageError(f"no worker was ready within {PATIENCE:.0f} s: {self.lost or 'see: ray status'}")
        self.say(f"{len(self.hands) - len(ready)} workers were not ready in time and are left out")
        for hand in self.hands:
            if not hand.ready:
                self.ray.kill(hand.actor)
        self.calls = {ref: call for ref, call in self.calls.items() if call[0].ready}
        self.hands = ready

    def _stop(self, todo: deque[Unit]) -> None:
        """Let units in work come to their end, and begin no other."""
        todo.clear()
        for hand in self.hands:
            hand.actor.stop.options(concurrency_group="aside").remote()

    def _gather(self) -> None:
        """Wait for the workers to start; those that do not, or much later than the first, are left out."""
        asked = {hand.actor.about.remote(): hand for hand in self.hands}
        waiting, end, reason = list(asked), time.monotonic() + PATIENCE, ""
        self.hands = []
        while waiting and time.monotonic() < end and not self.stop.is_set():
            there, waiting = self.ray.wait(waiting, num_returns=1, timeout=0.5)
            for ref in there:
                hand = asked.pop(ref)
                try:
                    hand.name, hand.device, hand.node = self.ray.get(ref)
                except self.ray.exceptions.RayError as error:
                    reason = _reason(error)
                    continue
                self.hands.append(hand)
                end = min(end, time.monotonic() + LATE)
        if self.stop.is_set():
            raise KeyboardInterrupt
        for hand in asked.values():
            self.ray.kill(hand.actor)
        if not self.hands:
            reason = reason or f"none within {PATIENCE:.0f} s; is the cluster busy? See: ray status"
            raise UsageError(f"no worker starts: {reason}")
        if asked or reason:
            self.say(f"{len(self.hands)} workers start, others do not: {reason or 'no place for them'}")


def _sizes(root: Path, contents: Contents) -> tuple[str, list[int]]:
    """Return the names of all files of a dataset below ``root``, a line each, and their sizes."""
    pairs = [(below(root, path), size) for path, size in contents.sizes()]
    return "\n".join(name for name, _ in pairs), [size for _, size in pairs]


def _reason(error: Exception) -> str:
    """Return in words why a worker is dead."""
    said = str(error)
    if getattr(error, "actor_init_failed", False):
        return said.strip().splitlines()[-1]
    if "node" in said and "died" in said.partition("node")[2][:40]:
        return "its machine was lost"
    if type(error).__name__ == "OutOfMemoryError":
        return "its machine ran out of memory; give fewer workers or a smaller --batch-size"
    return "its process ended; where memory ran out, give fewer workers or a smaller --batch-size"


@dataclass(frozen=True)
class Spread:
    """Workers that a run was asked for: those of this machine (``address`` is "local"), or a cluster's."""

    address: str
    devices: Devices


def where(device: str, devices: str | None, cluster: str | None) -> str | Spread:
    """Return the device of this process that a run was asked for, or workers.

    Raises:
        UsageError: for words that name none, or where Ray is missing.
    """
    if devices is None and cluster is None:
        return device
    if device != "auto":
        raise UsageError(f"--device {device} is that of one process; with workers say --devices 0,1 or cpu:2")
    chosen = Devices.of(devices or "auto")
    if cluster is None:
        seats, numbers = seats_here(chosen)
        if len(seats) == 1:
            return f"cuda:{numbers[0]}" if numbers else "cpu"
    if not find_spec("ray"):
        raise UsageError(f"workers need Ray: {INSTALL}")
    return Spread(cluster or "local", chosen)


@contextmanager
def team(
    spread: Spread,
    dtype: str,
    batch_size: int | None,
    decoders: int | None,
    stop: threading.Event,
    say: Callable[[str], None],
) -> Iterator[Team]:
    """Start Ray, or connect to it, and yield the workers; they end with it.

    Raises:
        UsageError: where Ray cannot be reached or started.
    """
    own = spread.address == "local"
    seats, numbers = seats_here(spread.devices) if own else ([], ())
    with ray_at(spread.address, len(seats), numbers) as ray:
        if not own:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            seats = seats_of(spread.devices, nodes)
        yield Team(ray, seats, (dtype, batch_size, decoders), own, stop, say)
