"""The parts of a device's trial: each takes the seconds it may use and yields a row for each measurement.

A row: ``part``, ``what``, ``value`` in ``unit``, ``state`` (ok, measured, failed, left out) and a ``note``.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clip import Vision
from ..data import load_dataset
from ..engine import Clips, Encoder, Pass, Task, observe
from ..errors import ZsadError
from ..images import Loaded, decode, preprocess, read
from ..method import Resolved, method_cards, miniature, resolve, with_checkpoint, wordings
from ..progress import Progress
from ..records import EvidenceStore
from ..run import Request, execute
from ..samples import Dataset
from .flops import counted, product_rate, synchronise, timed
from .goldens import absent, check_goldens, golden_rows
from .methods import generated_dataset
from .visa import IMAGES, write_visa

Row = dict[str, Any]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CATEGORY = 200
"""Images of a category that MuSc's stage is timed with, as many as VisA's largest have."""


@dataclass
class Trial:
    """A device on trial: where files go, what is small in a ``smoke`` test, and what is known so far.

    ``equal`` says of each method whether both paths gave the same evidence, ``rates`` are images per second.
    """

    where: torch.device
    folder: Path
    goldens: Path
    smoke: bool
    specs: tuple[str, ...]
    clips: Clips = field(default_factory=dict)
    equal: dict[str, bool] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    products: dict[str, float] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """How many images are encoded together."""
        return 2 if self.smoke else 32 if self.where.type == "cuda" else 8

    def resolved(self, spec: str) -> Resolved:
        """Return a method with random weights: at its real architecture, or on a miniature."""
        return miniature(spec) if self.smoke else resolve(spec, weights="random")

    def encoder(self, *, overlap: bool = False, batch_size: int = 0) -> Encoder:
        """Return an encoder that shares the towers of all parts."""
        size = batch_size or self.batch_size
        return Encoder([], device=self.where, batch_size=size, clips=self.clips, overlap=overlap)

    def pictures(self) -> Dataset:
        """Return pictures of one category, two batches and a ragged one of them."""
        place = self.folder / "pictures"
        images = 2 * self.batch_size + (6 if not self.smoke else 1)
        if not place.exists():
            generated_dataset(place, images, 64 if self.smoke else 1024)
        return load_dataset(str(place))

    @contextlib.contextmanager
    def ready(self, spec: str, data: Dataset) -> Iterator[tuple[Resolved, Task]]:
        """Yield a method, with noise for what it learns, and its task on ``data``."""
        plain = self.resolved(spec)
        with with_checkpoint(plain, self.encoder().clip(plain.method.backbone)) as resolved:
            words = wordings(resolved, dict.fromkeys(data.categories, "part"))
            store = EvidenceStore(self.folder / "none")
            yield resolved, Task(spec, resolved.method, words, store, resolved.card.order_dependent)


def all_methods() -> tuple[str, ...]:
    """Return the methods that are tried: every card, and the variant that draws random numbers freely."""
    return (*method_cards(), "anoclip+@reset")


def measured(part: str, what: str, value: float, unit: str, note: str = "") -> Row:
    """Return the row of a measurement."""
    return {"part": part, "what": what, "value": value, "unit": unit, "state": "measured", "note": note}


def left_out(part: str, what: str, why: str) -> Row:
    """Return the row of what was not done."""
    return {"part": part, "what": what, "value": None, "unit": "", "state": "left out", "note": why}


def broken(part: str, what: str, error: Exception) -> Row:
    """Return the row of what failed."""
    note = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
    return {"part": part, "what": what, "value": None, "unit": "", "state": "failed", "note": note}


def products(trial: Trial, seconds: float) -> Iterator[Row]:
    """Yield the rate of a plain matrix product in each number type."""
    for name, dtype in DTYPES.items():
        rate = product_rate(trial.where, dtype, side=256 if trial.smoke else 0)
        trial.products[name] = rate
        yield measured("products", f"matrix product, {name}", rate / 1e12, "TFLOP/s")


def goldens(trial: Trial, seconds: float) -> Iterator[Row]:
    """Yield what the checks of the golden arrays say: asserted in float32, measured in bfloat16."""
    if why := absent(trial.goldens):
        yield left_out("goldens", str(trial.goldens), why)
        return
    files = len(list(trial.goldens.glob("*/*.npz")))
    for dtype, share in (("fp32", 0.6), ("bf16", 0.4)):
        found = check_goldens(trial.goldens, str(trial.where), dtype, share * seconds)
        yield from golden_rows(found, dtype)
        if (missing := files - sum(map(len, found.values()))) > 0:
            yield left_out(
                f"goldens {dtype}", f"{missing} of {files} files", "not checked in the time there was"
            )


def methods(trial: Trial, seconds: float) -> Iterator[Row]:
    """Yield the speed of every method on both paths, and whether their evidence is the same."""
    data, end = trial.pictures(), time.monotonic() + seconds
    for number, spec in enumerate(trial.specs):
        left = (end - time.monotonic()) / (len(trial.specs) - number)
        if left <= 0:
            yield left_out("methods", spec, "no time is left; give more --minutes")
            continue
        try:
            yield from _one_method(trial, spec, data, left)
        except (ZsadError, RuntimeError, OSError, MemoryError, LookupError, TypeError) as error:
            yield broken("methods", spec, error)


def _one_method(trial: Trial, spec: str, data: Dataset, seconds: float) -> Iterator[Row]:
    with trial.ready(spec, data) as (_, task):
        few = dataclasses.replace(data, samples=data.samples[: max(5, trial.batch_size)])
        first, _ = _observed(trial, task, few, "first", overlap=False)
        needed = 2 * first / len(few.samples) * len(data.samples)
        if needed > max(seconds, 1.0) and not trial.smoke:
            yield measured("methods", spec, len(few.samples) / first, "images/s", "the first batch only")
            yield left_out("overlap", spec, f"two passes take about {needed:.0f} s; give more --minutes")
            return
        seen: dict[bool, float] = {}
        for overlap in (False, True):
            seen[overlap], report = _observed(trial, task, data, str(overlap), overlap=overlap)
            rate = len(data.samples) / seen[overlap]
            idle = max(0.0, 1 - report.seconds.get("encode", 0.0) / seen[overlap])
            if not overlap:
                trial.rates[spec] = rate
                yield measured("methods", spec, rate, "images/s", f"encoder idle {idle:.0%}")
        differ = _differing(trial, task, data)
        again = ""
        if differ:
            _observed(trial, task, data, "True", overlap=False)
            again = "; so does the ordinary path from itself" if _differing(trial, task, data) else ""
        trial.equal[spec] = not differ
        note = f"evidence differs in {', '.join(differ)}{again}" if differ else "evidence bit-equal"
        row = measured("overlap", spec, seen[False] / seen[True], "times as fast", note)
        yield row | {"state": "failed" if differ else "ok"}


def _observed(trial: Trial, task: Task, data: Dataset, name: str, *, overlap: bool) -> tuple[float, Pass]:
    """Observe ``data`` anew; return the seconds of the pass without its texts, and its report."""
    place = trial.folder / "evidence" / task.name.replace("/", "-") / name
    for file in place.rglob("*.safetensors"):
        file.unlink()
    task.store = EvidenceStore(place)
    task.plan(data.samples)
    task.observer = None if task.order_dependent else task.observer
    encoder = trial.encoder(overlap=overlap)
    encoder.prepare(task, data.categories[0])
    encoder.report = Pass()
    progress = Progress([("bench", len(data.samples))], quiet=True)
    wall = timed(lambda: observe([task], data.samples, encoder, progress), trial.where)
    return wall, encoder.report


def _differing(trial: Trial, task: Task, data: Dataset) -> list[str]:
    """Return the names of the evidence that is not the same, bit for bit, on both paths."""
    place = trial.folder / "evidence" / task.name.replace("/", "-")
    names: set[str] = set()
    for number in range(len(task.slices)):
        one, other = (EvidenceStore(place / name).read(number).evidence for name in ("False", "True"))
        names |= one.keys() ^ other.keys()
        names |= {key for key in one.keys() & other.keys() if not _same(one[key], other[key])}
    return sorted(names)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def towers(trial: Trial, seconds: float) -> Iterator[Row]:
    """Yield the speed of the bare image tower by number type and batch, and its share of a matrix product."""
    method, end = trial.resolved("clip").method, time.monotonic() + seconds
    vision = trial.encoder().clip(method.backbone).vision
    side = method.preprocess.size
    image = torch.zeros(1, 3, side, side, device=trial.where)
    flop = counted(lambda: _walk(vision, image))
    yield measured("towers", f"{method.backbone.name} at {side}", flop / 1e12, "TFLOP an image")
    for name, dtype in DTYPES.items():
        tower = vision if name == "fp32" else _in(vision, dtype)
        for batch in (1, 2) if trial.smoke else (1, 8, 32, 64):
            what = f"{name}, batch {batch}"
            if time.monotonic() > end:
                yield left_out("towers", what, "no time is left; give more --minutes")
                continue
            images = image.expand(batch, -1, -1, -1).contiguous()
            times = [timed(lambda: _walk(tower, images), trial.where) for _ in range(4)]  # noqa: B023
            rate = batch / statistics.median(times[1:])
            of = f"; {rate * flop / trial.products[name]:.0%} of a matrix product" if trial.products else ""
            yield measured("towers", what, rate, "images/s", f"{rate * flop / 1e12:.3g} TFLOP/s{of}")


def _in(vision: Vision, dtype: torch.dtype) -> Vision:
    """Return a copy of an image tower in another number type."""
    vision.forget()
    tower = copy.deepcopy(vision)
    tower.module.to(dtype)
    return tower


def _walk(vision: Vision, images: Tensor) -> None:
    with torch.no_grad():
        x = vision.embed(images)
        for block in vision.blocks:
            x = block(x)
        vision.project(x)


def reference(trial: Trial, seconds: float) -> Iterator[Row]:
    """Yield the speed of AnomalyCLIP as its authors run it: image by image, each read when it is its turn."""
    data, end = trial.pictures(), time.monotonic() + seconds
    with trial.ready("anomalyclip", data) as (resolved, task):
        encoder, spec, times = trial.encoder(batch_size=1), resolved.method.preprocess, []
        encoder.prepare(task, data.categories[0])
        for number, sample in enumerate(data.samples):
            start = time.perf_counter()
            image = decode(read(sample.image), name=sample.key)
            encoder.observe([Loaded(number, sample, {spec: preprocess(image, spec)})], [task])
            synchronise(trial.where)
            times.append(time.perf_counter() - start)
            if time.monotonic() > end:
                break
    rate = 1 / statistics.fmean(times[1:] or times)
    ours = trial.rates.get("anomalyclip")
    note = f"{len(times)} images" + (f"; ours {ours / rate:.2f} times as fast" if ours else "")
    yield measured("reference", "anomalyclip, one image at a time", rate, "images/s", note)


def category(trial: Trial, seconds: float) -> Iterator[Row]:
    """Yield the seconds of MuSc's category stage, for as many images as there is time for."""
    method: Any = trial.resolved("musc").method
    side = method.preprocess.size // (14 if "14" in method.backbone.name else 16)
    width = trial.encoder().clip(method.backbone).vision.width
    probe, wanted = (method.fewest, method.fewest + 1) if trial.smoke else (24, CATEGORY)

    def relate(images: int) -> float:
        some = torch.randn(min(images, 8), len(method.features), side, side, width).half()
        tokens = some.repeat(-(-images // len(some)), 1, 1, 1, 1)[:images]
        unit = torch.nn.functional.normalize(torch.randn(images, 8), dim=-1)
        evidence = {"tokens": tokens, "token": unit}
        return timed(lambda: method.relate(evidence, trial.where, lambda done: None), trial.where)

    first = relate(probe)
    images = min(wanted, int(probe * max(1.0, (max(0.0, seconds - first) / first) ** 0.5)))
    taken = relate(images) if images > probe else first
    note = (
        "" if images == wanted else f"{wanted} images would take about {taken * (wanted / images) ** 2:.0f} s"
    )
    yield measured("category", f"musc relates {images} images", taken, "s", note)


def visa(trial: Trial, seconds: float) -> Iterator[Row]:
    """Yield what a whole run takes on pictures like VisA's test images: scan, pass, maps, all metrics."""
    rate = trial.rates.get("clip", 20.0)
    images = 12 if trial.smoke else min(IMAGES, max(24, int((seconds - 15) / (1 / rate + 0.03))))
    start = time.perf_counter()
    images = write_visa(trial.folder / "visa", images, shrink=16 if trial.smoke else 1)
    made = time.perf_counter() - start
    method = trial.resolved("clip").method
    request = Request(
        backbone=method.backbone.name,
        weights="random",
        settings={"size": str(method.preprocess.size)},
        device=str(trial.where),
        batch_size=trial.batch_size,
        out=trial.folder / "results",
        quiet=True,
    )
    done: list[Any] = []
    run: Callable[[], Any] = lambda: done.append(execute(["clip"], [str(trial.folder / "visa")], request))  # noqa: E731
    wall = timed(run, trial.where)
    (record,) = done[0].records
    passed, score = record.observation["seconds"], record.content["seconds"]["score"]
    scaled = "" if images >= IMAGES or trial.smoke else f"; of {IMAGES}, for want of time"
    yield measured("visa", f"clip on {images} images", wall, "s", f"written in {made:.0f} s{scaled}")
    yield measured("visa", "the pass", images / passed["total"], "images/s", _phases(passed))
    yield measured("visa", "maps and all metrics", images / score, "images/s", f"{score:.1f} s")


def _phases(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items() if name != "total")
