"""Speed and memory of the shared loader, as ratios to bare PIL on the same machine."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DatasetError
from ..images import Loaded, stream
from ..inputs import Preprocess
from ..samples import Sample


def bench_loader(
    images: int = 48,
    size: int = 518,
    workers: int = 2,
    *,
    source: tuple[int, int] = (1024, 1024),
    repeats: int = 5,
    formats: Sequence[str] = ("jpeg", "png"),
) -> list[dict[str, float | int | str]]:
    """Compare the loader with bare PIL decode and resize in ``workers`` threads and processes.

    Generated files of ``source`` (width, height) are read in interleaved runs; a row per format has
    the median images per second of each side and ``ratio``, the median over the runs of the loader
    against the faster bare side of the same run (wanted: at least 0.9).
    """
    with tempfile.TemporaryDirectory() as folder:
        return [
            {"format": name, "images": images, "size": size, "workers": workers, **row}
            for name in formats
            for row in [_compare(_files(Path(folder), images, source, name), size, workers, repeats)]
        ]


def bench_memory(
    images: int = 100_000, size: int = 32, workers: int = 2, *, files: int = 8
) -> dict[str, float | int]:
    """Stream a generated list of ``images`` samples over a few small files; report how memory grows.

    ``growth_mb`` is the highest resident memory met while the list is read, less that after the first
    2 % of it (Linux: read from /proc).
    """
    with tempfile.TemporaryDirectory() as folder:
        samples = _samples(_files(Path(folder), files, (48, 48), "png"))
        repeated = (samples[i % files] for i in range(images))
        started = time.perf_counter()
        failed, before, highest = 0, 0.0, 0.0
        for loaded in stream(repeated, [Preprocess(size)], workers=workers):
            failed += loaded.error is not None
            if loaded.index % max(1, images // 50) == 0:
                highest = max(highest, _resident_mb())
            if loaded.index == images // 50:
                before = highest = _resident_mb()
        seconds = time.perf_counter() - started
    return {
        "images": images,
        "failed": failed,
        "images_per_second": images / seconds,
        "growth_mb": highest - before,
    }


def _compare(paths: list[Path], size: int, workers: int, repeats: int) -> dict[str, float]:
    samples, spec = _samples(paths), Preprocess(size)
    spawn = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(workers) as threads, ProcessPoolExecutor(workers, spawn) as processes:

        def bare(pool: Executor) -> None:
            list(pool.map(_bare, paths, [size] * len(paths)))

        sides: dict[str, Callable[[], object]] = {
            "loader": lambda: _drain(stream(samples, [spec], workers=workers)),
            "threads": lambda: bare(threads),
            "processes": lambda: bare(processes),
        }
        for run in sides.values():  # starts the workers and fills the page cache
            run()
        rates = [{side: len(paths) / _seconds(run) for side, run in sides.items()} for _ in range(repeats)]
    ratios = [rate["loader"] / max(rate["threads"], rate["processes"]) for rate in rates]
    medians = {f"{side}_per_second": statistics.median(rate[side] for rate in rates) for side in sides}
    return {**medians, "ratio": statistics.median(ratios)}


def _bare(path: Path, size: int) -> None:
    with Image.open(path) as image:
        image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)


def _drain(loader: Iterable[Loaded]) -> None:
    for loaded in loader:
        if loaded.error:
            raise DatasetError(loaded.error)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _files(folder: Path, count: int, size: tuple[int, int], suffix: str) -> list[Path]:
    """Write ``count`` smooth images with a little noise, so that they compress like photographs."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:04}.{suffix}" for i in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + rng.integers(-8, 9, pixels.shape)).clip(0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(path)
    return paths


def _samples(paths: Sequence[Path]) -> list[Sample]:
    return [Sample(path.name, "bench", False, path, None) for path in paths]


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
