"""Speed of methods: the whole pipeline against the bare image tower, and shared walks against single runs.

Everything is measured in one process, interleaved and repeated; ratios are medians over the repeats.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data import load_dataset
from ..engine import Encoder, Pass, Task, observe, one_at_a_time, pick_device, pick_dtype, too_few
from ..errors import UsageError
from ..method import Resolved, places, resolve, with_checkpoint
from ..progress import Progress
from ..records import EvidenceStore, by_category
from ..samples import Dataset
from ..scoring import EvidenceMaps, rules_for, score_category
from .flops import encoder_flop, product_rate, timed

LATENCY_RUNS = 15
HOST = torch.device("cpu")
"""Where maps are rendered and metrics computed."""
_PATIENCE_S = 120


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What methods are measured on: a CLIP, generated pictures of ``pixels`` x ``pixels``, and how often."""

    backbone: str | None = None
    weights: str | None = "random"
    settings: Mapping[str, str] | None = None
    images: int = 24
    pixels: int = 512
    repeats: int = 3
    batch_size: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse too few images."""
        if self.images < 2:
            raise UsageError(f"--images {self.images}: a benchmark needs at least 2 images")


@dataclass
class Timing:
    """Seconds of one pipeline run: the pass, its phases, and the scoring."""

    observe: float
    phases: Mapping[str, float]
    maps: float
    score: float

    @property
    def total(self) -> float:
        """Pass and scoring, without loading weights and without the text tower."""
        return self.observe - self.phases.get("text", 0.0) - self.phases.get("load", 0.0) + self.score


@dataclass
class MethodBench:
    """What :func:`bench_methods` measured."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    shared: dict[str, Any] | None = None
    setup: dict[str, Any] = field(default_factory=dict)


def bench_methods(
    specs: Sequence[str],
    *,
    dtype: str = "fp32",
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> MethodBench:
    """Measure methods; ``options`` are those of `Setup`; ``say`` is told how long it takes and how far it is.

    Returns a row per method (images per second, ratio to the bare tower, share of each phase, latency) and,
    for several methods, the joint run as a share of the sum of the single ones.

    Raises:
        UsageError: for fewer than two images, or than a method compares with each other.
    """
    setup = Setup(**options)
    chosen = [_resolve(spec, setup.backbone, setup.weights, setup.settings or {}) for spec in specs]
    for resolved in chosen:
        if reason := too_few(resolved.method, setup.images):
            raise UsageError(f"--images {setup.images}: {resolved.id} {reason}")
    where = pick_device(setup.device)
    encoder = Encoder([], device=where, dtype=pick_dtype(dtype), batch_size=setup.batch_size)
    with tempfile.TemporaryDirectory(prefix="zsad-bench-") as folder, contextlib.ExitStack() as stack:
        # A trained method without a checkpoint runs with noise: speed does not depend on values.
        chosen = [
            stack.enter_context(with_checkpoint(item, encoder.clip(item.method.backbone))) for item in chosen
        ]
        data = generated_dataset(Path(folder) / "data", setup.images, setup.pixels)
        outputs = (Path(folder) / f"run{number}" for number in range(10**6))

        def pipeline(methods: Sequence[Resolved]) -> Timing:
            return _pipeline(methods, data, encoder, next(outputs))

        singles: list[list[Timing]] = [[] for _ in chosen]
        towers: list[list[float]] = [[] for _ in chosen]
        joint: list[Timing] = []
        for repeat in range(setup.repeats + 1):  # the first round warms caches and is dropped
            for number, resolved in enumerate(chosen):
                tower = _bare_tower(resolved, setup.images, encoder)
                if not repeat:
                    say(_outlook(resolved, tower, setup))
                timing = pipeline([resolved])
                say(_told(resolved.id, repeat, timing, setup))
                if repeat:
                    towers[number].append(tower)
                    singles[number].append(timing)
            if len(chosen) > 1:
                timing = pipeline(chosen)
                say(_told("all together", repeat, timing, setup))
                joint += [timing] if repeat else []
        latencies = [_latency(resolved, data, encoder) for resolved in chosen]
        counts = [encoder_flop(resolved, data.samples[0], encoder) for resolved in chosen]
        product = product_rate(where, encoder.dtype)
    result = MethodBench(
        setup={
            "device": str(where),
            "dtype": dtype,
            "batch": encoder.batch_size,
            "images": setup.images,
            "pixels": setup.pixels,
            "threads": torch.get_num_threads(),
        }
    )
    for resolved, times, bare, latency, flop in zip(chosen, singles, towers, latencies, counts, strict=True):
        row = _row(resolved, setup.images, times, bare, latency)
        result.rows.append(row | _speed(setup.images * flop, times, product, setup.images))
    if joint:
        ratios = [both.total / sum(times[r].total for times in singles) for r, both in enumerate(joint)]
        result.shared = {
            "methods": [resolved.id for resolved in chosen],
            "joint_s": statistics.median(timing.total for timing in joint),
            "sum_s": statistics.median(sum(t[r].total for t in singles) for r in range(setup.repeats)),
            "ratio": statistics.median(ratios),
        }
    return result


def _outlook(resolved: Resolved, tower: float, setup: Setup) -> str:
    """Return how long the rounds of a method take at least: each is a bare tower and a pipeline."""
    seconds = 2 * tower * (setup.repeats + 1)
    line = f"{resolved.id}: the bare tower takes {tower:.1f} s for {setup.images} images, so "
    line += f"{setup.repeats + 1} rounds take {seconds:.0f} s or more"
    return line + ("; fewer --images or --repeats are sooner done" if seconds > _PATIENCE_S else "")


def _told(name: str, repeat: int, timing: Timing, setup: Setup) -> str:
    round_ = f"round {repeat} of {setup.repeats}" if repeat else "warm-up"
    return f"{name}: {round_}: {setup.images / timing.total:.3g} images/s"


def _resolve(spec: str, backbone: str | None, weights: str | None, settings: Mapping[str, str]) -> Resolved:
    known = places(resolve(spec).method)
    return resolve(
        spec,
        backbone=backbone,
        weights=weights or "random",
        settings={name: value for name, value in settings.items() if name in known},
    )


def generated_dataset(folder: Path, images: int, pixels: int) -> Dataset:
    """Write ``images`` noisy JPEG pictures, half of them with a defect and its mask, in MVTec layout."""
    rng = np.random.default_rng(0)
    base = np.asarray(
        Image.fromarray(rng.integers(60, 200, (16, 16, 3), np.uint8)).resize((pixels, pixels), 2), np.int16
    )
    for number in range(images):
        picture = np.clip(base + rng.integers(-12, 12, base.shape), 0, 255).astype(np.uint8)
        kind = "spot" if number % 2 else "good"
        if number % 2:
            mask = np.zeros((pixels, pixels), np.uint8)
            row, column = rng.integers(0, pixels * 3 // 4, 2)
            mask[row : row + pixels // 8, column : column + pixels // 8] = 255
            picture[mask > 0] = 20
            _save(folder / "part" / "ground_truth" / kind / f"{number:03d}_mask.png", mask)
        _save(folder / "part" / "test" / kind / f"{number:03d}.jpg", picture)
    return load_dataset(str(folder))


def _save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=92)


def _pipeline(methods: Sequence[Resolved], data: Dataset, encoder: Encoder, out: Path) -> Timing:
    words = dict.fromkeys(data.categories, "part")
    tasks = [
        Task(item.id, item.method, words, EvidenceStore(out / str(number)), item.card.order_dependent)
        for number, item in enumerate(methods)
    ]
    for task in tasks:
        task.plan(data.samples)
    encoder.tasks, encoder.report = tasks, Pass()
    progress = Progress([("bench", len(data.samples))], quiet=True)
    seconds = timed(lambda: observe(tasks, data.samples, encoder, progress), encoder.device)
    maps = score = 0.0
    for item, task in zip(methods, tasks, strict=True):
        rules = rules_for(item, "reference", {})
        for category, numbers in by_category(data.samples, task.slices):
            found = EvidenceMaps(item.method, task.store.category(numbers))
            maps += timed(partial(_render, found), HOST)
            score += timed(partial(score_category, category, data.samples, found, rules, data), HOST)
    return Timing(seconds, dict(encoder.report.seconds), maps, score)


def _render(maps: EvidenceMaps) -> None:
    for row in range(len(maps.keys)):
        maps.render(row, None)


def _bare_tower(resolved: Resolved, images: int, encoder: Encoder) -> float:
    vision = encoder.clip(resolved.method.backbone).vision
    size = resolved.method.preprocess.size
    batch = torch.zeros(encoder.batch_size, 3, size, size, device=encoder.device, dtype=encoder.dtype)

    def forward() -> None:
        with torch.no_grad():
            for count in _batches(images, encoder.batch_size):
                x = vision.embed(batch[:count])
                for block in vision.blocks:
                    x = block(x)
                vision.project(x)

    return timed(forward, encoder.device)


def _batches(images: int, size: int) -> Iterator[int]:
    for start in range(0, images, size):
        yield min(size, images - start)


def _latency(resolved: Resolved, data: Dataset, encoder: Encoder) -> list[float]:
    """Return milliseconds from an image file to its map and evidence, one image at a time."""
    words = dict.fromkeys(data.categories, "part")
    task = Task(resolved.id, resolved.method, words, EvidenceStore(Path()))
    return one_at_a_time(task, data.samples, encoder, LATENCY_RUNS)


def _row(
    resolved: Resolved,
    images: int,
    times: Sequence[Timing],
    towers: Sequence[float],
    latency: Sequence[float],
) -> dict[str, Any]:
    def share(part: Callable[[Timing], float]) -> float:
        return statistics.median(part(timing) / timing.total for timing in times)

    return {
        "method": resolved.id,
        "images_per_s": images / statistics.median(timing.total for timing in times),
        "tower_images_per_s": images / statistics.median(towers),
        "ratio": statistics.median(t.total / bare for t, bare in zip(times, towers, strict=True)),
        "text_s": statistics.median(timing.phases.get("text", 0.0) for timing in times),
        "decode": share(lambda t: t.phases.get("decode wait", 0.0)),
        "encode": share(lambda t: t.phases.get("encode", 0.0)),
        "maps": share(lambda t: t.maps),
        "metrics": share(lambda t: max(0.0, t.score - t.maps)),
        "idle": statistics.median(
            1 - t.phases.get("encode", 0.0) / max(t.total - t.score, 1e-9) for t in times
        ),
        "latency_ms": statistics.median(latency),
        "latency_p95_ms": float(np.percentile(latency, 95)),
    }


def _speed(flop: int, times: Sequence[Timing], product: float, images: int) -> dict[str, float]:
    """Return the encoder's operations and how fast they are done, against a plain matrix product."""
    rate = flop / statistics.median(timing.phases["encode"] for timing in times)
    return {
        "tflop": flop / images / 1e12,
        "tflop_per_s": rate / 1e12,
        "product_tflop_per_s": product / 1e12,
        "of_product": rate / product,
    }
