"""A run on many devices: workers observe and score, and the process that was asked writes what they find.

A unit of work is a slice of the sample list with every method that needs it, or a category of a method to be
scored.  Workers are actors of Ray (https://docs.ray.io).  Work that a dead worker held is handed out again,
and another takes its place.  ``--devices`` is the same on a Ray of this machine alone, which nothing outside
reaches.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..engine import Pass, Task, images_at_once
from ..environment import Seat, Spread, seats_here, seats_of
from ..errors import MethodError, UsageError, ZsadError
from ..method import packed
from ..progress import Progress
from ..records import Contents
from ..samples import Dataset
from ..scoring import CategoryScores, Portion
from ..scoring import Unit as ScoringUnit
from .worker import Brief, Found, Worker, cause_of, ray_at, sizes_of

IN_FLIGHT = 2
"""Units that a worker has at a time, so that it never waits for the next."""
TRIES = 3
"""How often workers may die over one unit, or one worker in a row, before that ends the run."""
PATIENCE = 300.0
"""Seconds that the first worker may take to start, and a worker to load towers."""
LATE = 60.0
"""Seconds that the others may start later than the first."""


@dataclass(frozen=True)
class Unit:
    """Samples ``start`` to ``stop`` of the list, and the (task, slice) pairs whose slice they are."""

    start: int
    stop: int
    owners: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Lot:
    """A category of a method to be scored, the ``number``-th of all."""

    number: int
    unit: ScoringUnit


Work = Unit | Lot
Options = tuple[str, int | None, int | None]
"""What every worker computes with: number type, batch size and threads that decode, where they are said."""


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
    """Workers that observe and score, dataset by dataset.  ``stop`` is set when the user interrupts."""

    def __init__(
        self,
        ray: Any,
        seats: Sequence[Seat],
        options: Options,
        own: bool,
        stop: threading.Event,
        say: Callable[[str], None],
    ) -> None:
        self.ray, self.options, self.own, self.stop, self.say = ray, options, own, stop, say
        self.threads = seats[0].threads
        self.batch_size: int = options[1] or images_at_once(torch.device(seats[0].device))
        self.remote = ray.remote(concurrency_groups={"aside": 1})(Worker)
        self.brief: Any = None
        self.sizes: Any = None
        self.calls: dict[Any, tuple[Hand, Work | None]] = {}
        self.lost = ""
        self.seen: set[tuple[Path, str]] = set()
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
        self.tasks, self.samples, self.root, self.progress = tasks, data.samples, data.root, progress
        self.seen.add((data.root, data.digest))
        self.brief = self.ray.put(Brief.of(tasks, data))
        self.sizes = None if self.own else self.ray.put(sizes_of(data.root, contents))
        seen: set[str] = set()
        for hand in self.hands:
            self._tell(hand, look=hand.node not in seen)
            seen.add(hand.node)
        deque(self._work(deque()), maxlen=0)  # until all are ready

    def observe(self) -> Pass:
        """Observe every missing slice, and write each as it comes in.

        Raises:
            ZsadError: for anything that would fail for every image as well, or for every worker.
            KeyboardInterrupt: once ``stop`` is set and the units in work are stored.
        """
        report = Pass()
        covered = bytearray(len(self.samples))
        self.progress.start()
        for hand in self.hands:
            hand.images, hand.seconds = 0, 0.0
        try:
            for hand, unit, found in self._work(deque(units(self.tasks))):
                self._take(hand, unit, found, report, covered)
        finally:
            report.devices = [
                {"device": hand.device, "images": hand.images, "images_per_second": round(hand.rate, 3)}
                for hand in self.hands
            ]
            self._tell_rates()
        return report

    def _take(self, hand: Hand, unit: Unit, found: Found, report: Pass, covered: bytearray) -> None:
        """Write what a worker found, and count it."""
        start = time.perf_counter()
        for t, number in unit.owners:
            if t in found.slices:
                self.tasks[t].store.put(number, found.slices[t])
                self.tasks[t].missing.discard(number)
        report.add("store", time.perf_counter() - start)
        if not found.slices:
            return
        for t, cost in found.spent.items():
            self.tasks[t].spent.add(cost.own, cost.shared, cost.images)
        for phase, seconds in found.report.seconds.items():
            report.add(phase, seconds)
        report.images += len(unit) - sum(covered[unit.start : unit.stop])
        covered[unit.start : unit.stop] = b"\1" * len(unit)
        report.batch_size = min(found.batch_size, report.batch_size or found.batch_size)
        report.memory_mb = max(found.memory_mb, report.memory_mb)
        hand.images, hand.seconds = hand.images + len(unit), hand.seconds + found.report.seconds["total"]
        self.progress.advance(len(unit))

    def see(self, data: Dataset, contents: Contents) -> None:
        """Tell every worker of a dataset that is to be scored, unless they know of it.

        Raises:
            DatasetError: from a worker that does not see the same files.
        """
        if (data.root, data.digest) not in self.seen:
            self.begin([], data, contents, Progress([], quiet=True))

    def sharing(
        self, units: Sequence[ScoringUnit], workers: int | None = None
    ) -> Iterator[CategoryScores | None]:
        """Score units on datasets that workers were told of, and yield what comes of them in their order.

        Raises:
            ZsadError: for what is wrong with evidence or masks.
            KeyboardInterrupt: once ``stop`` is set.
        """
        early: dict[int, CategoryScores | None] = {}
        done = 0
        for _, lot, scores in self._work(deque(Lot(*pair) for pair in enumerate(units))):
            early[lot.number] = scores
            while done in early and not self.stop.is_set():  # a worker that stops scores nothing
                yield early.pop(done)
                done += 1

    def _tell_rates(self) -> None:
        for hand in self.hands:
            if hand.images:
                about = f"{hand.device}, {hand.name}): {hand.images} images, {hand.rate:.2f} images/s"
                self.say(f"worker {hand.number + 1} ({about}")

    def _tell(self, hand: Hand, look: bool) -> None:
        """Hand a worker the brief; with ``look`` it compares the files of the dataset first."""
        hand.ready = False
        self._call(hand, None, hand.actor.take.remote(self.brief, self.sizes if look else None))

    def _call(self, hand: Hand, work: Work | None, ref: Any) -> None:
        self.calls[ref] = hand, work
        hand.calls.append(ref)

    def _work(self, todo: deque[Any]) -> Iterator[tuple[Hand, Any, Any]]:
        """Let the workers do ``todo``, or become ready where there is nothing to do, and yield what comes."""
        deaths: Counter[Work] = Counter()
        starting, last = not todo, time.monotonic()
        while todo or self._busy(starting):
            if self.stop.is_set():
                self._stop(todo)
                starting = False
            self._hand_out(todo)
            ready, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=0.5)
            for ref in ready:
                last = time.monotonic()
                hand, work = self.calls.pop(ref)
                answer = self._answer(ref, hand, work, todo, deaths)
                if work and answer is not None:
                    yield hand, work, answer[0]
            if time.monotonic() - last > PATIENCE and not any(h.calls for h in self.hands if h.ready):
                self._go_without()
        if self.stop.is_set():
            raise KeyboardInterrupt

    def _busy(self, starting: bool) -> bool:
        if starting and not all(hand.ready for hand in self.hands):
            return True
        return any(work for _, work in self.calls.values())

    def _hand_out(self, todo: deque[Work]) -> None:
        for depth in range(1, IN_FLIGHT + 1):
            for hand in self.hands:
                if todo and hand.ready and len(hand.calls) < depth:
                    work = todo.popleft()
                    self._call(hand, work, self._begun(hand, work))

    def _begun(self, hand: Hand, work: Work) -> Any:
        if isinstance(work, Unit):
            samples = self.samples[work.start : work.stop]
            return hand.actor.observe.remote(packed(samples, {}, self.root), [t for t, _ in work.owners])
        assert isinstance(work.unit, Portion)
        portion = work.unit.alone()
        method, data = portion.stored.method, portion.stored.dataset
        parcel = packed(portion, {type(method).__name__: method}, data.root)
        return hand.actor.score.remote(parcel, data.id, data.root.absolute())

    def _answer(
        self, ref: Any, hand: Hand, work: Work | None, todo: deque[Work], deaths: Counter[Work]
    ) -> tuple[Any] | None:
        """Return what a worker answers to work; None for that it is ready, or where it died.

        Raises:
            ZsadError: that the worker answers with, or that workers die over this work.
        """
        first = hand.calls[0] is ref
        hand.calls.remove(ref)
        try:
            answer = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayError as error:
            reason = cause_of(error)
            if work and not self.stop.is_set():
                todo.appendleft(work)
                deaths[work] += first
                if deaths[work] >= TRIES:
                    raise MethodError(f"{TRIES} workers died at {self._named(work)}: {reason}") from None
            self._lost(hand, reason)
            return None
        if isinstance(answer, ZsadError) and work is None:
            raise type(answer)(f"the worker on {hand.name or 'another machine'} {answer}")
        if isinstance(answer, ZsadError):
            raise answer
        if work is None:
            hand.name, hand.device, hand.node = answer
            hand.ready = True
            return None
        hand.failures = 0
        return (answer,)

    def _named(self, work: Work) -> str:
        if isinstance(work, Unit):
            return f"{self.samples[work.start].key} and the images after it"
        return f"maps of {work.unit}"

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
                    reason = cause_of(error)
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


@contextmanager
def team(
    spread: Spread, options: Options, stop: threading.Event, say: Callable[[str], None]
) -> Iterator[Team]:
    """Start Ray, or connect to it, and yield the workers; they end with it.

    Raises:
        UsageError: where Ray cannot be reached or started.
    """
    own = spread.address == "local"
    seats, numbers = seats_here(spread.devices) if own else ([], ())
    with ray_at(spread.address, len(seats), numbers, stop, say) as ray:
        if not own:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            seats = seats_of(spread.devices, nodes)
        yield Team(ray, seats, options, own, stop, say)
