"""Latency of one image at a time, as a predictor is called on a line: methods and exported files, warm."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..clip import load_clip
from ..deploy import ModelEngine, is_model, load_predictor
from ..engine import WARM, pick_device
from ..environment import environment, installed
from ..errors import MethodError, UsageError
from ..method import resolve, with_checkpoint
from ..progress import Progress
from ..views import ClipEngine, Predictor
from .flops import synchronise
from .methods import generated_dataset


@dataclass(frozen=True)
class LatencyBench:
    """What :func:`bench_latency` measured: the machine and a row for each subject and source of images."""

    about: dict[str, Any]
    rows: list[dict[str, Any]]


def bench_latency(
    subjects: Sequence[str],
    *,
    images: int = 8,
    pixels: int = 512,
    repeats: int = 100,
    quiet: bool = False,
    **options: Any,
) -> LatencyBench:
    """Call predictors with one image at a time, in turn, ``repeats`` times from a file and from an array.

    ``subjects`` are methods or files of ``zsad export``; ``options`` are those of
    :func:`zsadbench.load_predictor` for the methods among them, weights random where none are named.
    ``images`` JPEG pictures of ``pixels`` x ``pixels`` are generated.  From a file a call reads and decodes;
    from an array (H, W, 3) uint8 it does not; both end with score and map of the picture's size in memory.
    Rows have milliseconds: median, 95th and 99th percentile; ``threads`` is None where onnxruntime chooses.

    Raises:
        UsageError: without a subject, or for an option that an exported file holds.
        MethodError: for a method that judges images by each other.
    """
    if not subjects:
        raise UsageError("name a method or an exported file: zsad bench latency METHOD|FILE.onnx")
    with tempfile.TemporaryDirectory(prefix="zsad-bench-") as folder, ExitStack() as stack:
        predictors = [stack.enter_context(_ready(name, subjects, options)) for name in subjects]
        paths = [sample.image for sample in generated_dataset(Path(folder), images, pixels).samples]
        arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
        with Progress([("latency", 2 * (WARM + repeats) * len(predictors))], quiet=quiet) as progress:
            times = _measured(predictors, {"file": paths, "array": arrays}, repeats, progress)
    device = "cpu" if all(map(is_model, subjects)) else options.get("device") or "auto"
    about = environment(pick_device(device), options.get("dtype") or "fp32")
    about |= {"onnxruntime": installed("onnxruntime"), "images": images, "pixels": pixels, "repeats": repeats}
    rows = [
        {
            "subject": str(subjects[number]),
            **_place(predictors[number]),
            "image_from": source,
            **_percentiles(found),
        }
        for (number, source), found in times.items()
    ]
    return LatencyBench(about, rows)


@contextmanager
def _ready(name: str, subjects: Sequence[str], options: Mapping[str, Any]) -> Iterator[Predictor]:
    """Make a predictor; a trained method without a checkpoint gets noise: speed does not depend on values."""
    if is_model(name):
        yield load_predictor(name, **(options if all(map(is_model, subjects)) else {}))
        return
    given = {"weights": "random", **options}
    towers: dict[str, Any] = {key: given.get(key) for key in ("backbone", "weights", "activation")}
    resolved = resolve(name, settings=given.get("settings") or {}, **towers)
    if resolved.relates:
        raise MethodError(
            f"{resolved.id} judges images by each other, so one image alone has no latency; zsad bench "
            f"{resolved.id} measures whole passes"
        )
    with ExitStack() as stack:
        if resolved.needs_checkpoint and not given.get("checkpoint"):
            resolved = stack.enter_context(with_checkpoint(resolved, load_clip(resolved.method.backbone)))
            given["checkpoint"] = getattr(resolved.method, "checkpoint", None)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*--words")  # they change no speed
            predictor = load_predictor(name, **given)
        yield predictor


def _measured(
    predictors: Sequence[Predictor], sources: Mapping[str, Sequence[Any]], repeats: int, progress: Progress
) -> dict[tuple[int, str], list[float]]:
    """Return milliseconds by predictor and source; what disturbs the machine disturbs all alike."""
    times: dict[tuple[int, str], list[float]] = {}
    progress.start()
    for call in range(WARM + repeats):
        for number, predictor in enumerate(predictors):
            for source, images in sources.items():
                seconds = _timed(predictor, images[call % len(images)])
                times.setdefault((number, source), []).append(1000 * seconds)
            progress.advance(len(sources))
    return {place: found[WARM:] for place, found in times.items()}


def _timed(predictor: Predictor, image: Any) -> float:
    start = time.perf_counter()
    predictor(image)
    if isinstance(predictor.engine, ClipEngine):
        synchronise(predictor.engine.encoder.device)
    return time.perf_counter() - start


def _place(predictor: Predictor) -> dict[str, Any]:
    engine = predictor.engine
    if isinstance(engine, ClipEngine):
        return {"runs_in": "torch", "device": str(engine.encoder.device), "threads": torch.get_num_threads()}
    assert isinstance(engine, ModelEngine)
    return {"runs_in": "onnxruntime", "device": "cpu", "threads": engine.threads}


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    median, p95, p99 = np.percentile(times, (50, 95, 99))
    return {"median_ms": float(median), "p95_ms": float(p95), "p99_ms": float(p99)}
