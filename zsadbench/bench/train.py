"""Speed of training: whole epochs against the bare forward and backward pass, and what kept features save."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..clip import load_clip
from ..engine import pick_device
from ..method import wordings
from ..training import Feeder, Stage, TrainingSet, TrainRequest, make_stages, resolve_training
from .flops import timed
from .methods import Setup, generated_dataset


def bench_train(method: str, **options: Any) -> list[dict[str, Any]]:
    """Train ``method`` for two epochs on generated pictures; a row per stage, medians over the repeats.

    ``options`` are those of `Setup`.
    ``ratio`` is the first epoch's time, with reading files and the optimiser, over that of the frozen
    features, the loss and its gradient alone; ``second_epoch_speedup`` is the first epoch's over the
    second's.

    Raises:
        UsageError: for a method that is not trained, or fewer than two images.
    """
    setup = Setup(**options)
    where = pick_device(setup.device)
    request = TrainRequest(
        backbone=setup.backbone,
        weights=setup.weights,
        settings=setup.settings or {},
        batch_size=setup.batch_size,
        epochs=2,
    )
    rows = []
    with tempfile.TemporaryDirectory(prefix="zsad-bench-") as folder:
        data = generated_dataset(Path(folder), setup.images, setup.pixels)
        resolved, recipe = resolve_training(method, data, request)
        rule: Any = resolved.mask_resize
        examples = TrainingSet((data,), resolved.method.preprocess, rule)
        clip = load_clip(resolved.method.backbone, where)
        words = wordings(resolved, dict.fromkeys(data.categories, ""))
        for number, stage in enumerate(make_stages(recipe, resolved, clip, words)):
            feeder = Feeder(examples, where, recipe.seed)
            times = [_once(stage, number, feeder, where) for _ in range(setup.repeats + 1)][1:]
            rows.append(_row(resolved.id, stage, setup.images, times))
    return rows


def _once(stage: Stage, number: int, feeder: Feeder, device: torch.device) -> tuple[float, float, float]:
    """Return the seconds of the bare passes, of the first and of the second epoch."""
    count = len(feeder.data.samples)
    chunks = [range(i, min(i + stage.batch_size, count)) for i in range(0, count, stage.batch_size)]
    loaded = [(chunk, [feeder.data.example(index) for index in chunk]) for chunk in chunks]

    def bare() -> None:
        for chunk, examples in loaded:
            rows = feeder.encode(stage, chunk, examples)
            stage.optimiser.zero_grad()
            loss = stage.loss(rows, feeder.truth(chunk, rows["mask"]))["loss"]
            loss.backward()  # type: ignore[no-untyped-call]

    def epoch(which: int) -> None:
        if which == 1:
            feeder.begin(stage)
        for features, truth in feeder.epoch(stage, number, which):
            stage.step(features, truth)

    return (
        timed(bare, device),
        timed(lambda: epoch(1), device),
        timed(lambda: epoch(2), device),
    )


def _row(method: str, stage: Stage, images: int, times: list[tuple[float, float, float]]) -> dict[str, Any]:
    bare, first, second = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "method": method,
        "stage": stage.name,
        "batch": stage.batch_size,
        "images_per_s": images / first,
        "bare_images_per_s": images / bare,
        "ratio": statistics.median(f / b for b, f, _ in times),
        "second_epoch_images_per_s": images / second,
        "second_epoch_speedup": statistics.median(f / s for _, f, s in times),
        "cached": "yes" if stage.cached else "no",
    }
