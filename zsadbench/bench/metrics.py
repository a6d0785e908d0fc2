"""How long metrics of one category take: ours, and the chain most code bases of the field use.

Every chain runs in a process of its own on the same generated category, so that its memory is its
own.  Times are CPU seconds of that process, with imports and compilation done beforehand; what
counts are the ratios, which hardly depend on the machine.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..metrics import check_backend

CLASSICAL = "scikit-learn + 200 thresholds"
BOOTSTRAP = "zsadbench, 1000 bootstrap draws"

Maps = NDArray[np.float32]
Masks = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Task:
    chain: str
    images: int
    size: int
    share: float
    repeats: int


def bench_metrics(
    images: int = 200,
    size: int = 518,
    anomalous_share: float = 0.015,
    repeats: int = 3,
    backends: Sequence[str] = ("numba", "numpy"),
    legacy_images: int = 16,
) -> list[dict[str, Any]]:
    """Return one row per chain: chain, seconds, cpu_seconds, memory_mb, speedup, note.

    The category has ``images`` maps of ``size`` x ``size``, half of them anomalous, with
    ``anomalous_share`` of all pixels.  Ours (every image and pixel metric, AUPRO at two limits,
    AUPIMO) is the median of ``repeats`` runs; the bootstrap's row has 1000 draws of every pixel metric,
    from the maps to the draws.  The classical chain is scikit-learn's AUROC, AP and
    precision-recall curve plus the loop over 200 thresholds, which runs on ``legacy_images`` images
    and is scaled.  ``memory_mb`` is the peak above maps, masks and loaded libraries; ``speedup`` is the
    classical chain's CPU time over the row's.

    Raises :class:`MetricError` for a back end that is not installed.
    """
    for backend in backends:
        check_backend(backend)
    few = min(legacy_images, images)
    tasks = [_Task(f"zsadbench, {backend}", images, size, anomalous_share, repeats) for backend in backends]
    tasks.append(_Task(BOOTSTRAP, images, size, anomalous_share, 1))
    tasks.append(_Task("scikit-learn", images, size, anomalous_share, 1))
    tasks.append(_Task("200 thresholds", few, size, anomalous_share, 1))
    rows = [_run(task) for task in tasks]
    if few < images:
        rows[-1] |= {key: rows[-1][key] * images / few for key in ("seconds", "cpu_seconds")}
        rows[-1]["note"] = f"AUPRO; ran on {few} images, times scaled to {images}, memory not"
    both = {key: rows[-2][key] + rows[-1][key] for key in ("seconds", "cpu_seconds")}
    memory = [row["memory_mb"] for row in rows[-2:] if row["memory_mb"] is not None]
    rows.append(
        {"chain": CLASSICAL, **both, "memory_mb": max(memory, default=None), "note": "sum of the two above"}
    )
    draws = rows[len(backends)]
    draws["note"] = f"all pixel metrics; {draws['cpu_seconds'] / rows[0]['cpu_seconds']:.1f} x the first row"
    for row in rows:
        row["speedup"] = both["cpu_seconds"] / row["cpu_seconds"]
    return rows


def generate(images: int, size: int, share: float, seed: int = 0) -> tuple[Maps, Masks]:
    """Return maps in [0, 1] as a patch model makes them, and masks; every second image is anomalous.

    A map is noise on a 37 x 37 grid, enlarged, plus a hill on each of one to three elliptic defects.
    """
    random = np.random.default_rng(seed)
    enlarge = _interpolation(size, 37)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    maps, masks = np.empty((images, size, size), np.float32), np.zeros((images, size, size), np.uint8)
    for i in range(images):
        logits = enlarge @ random.standard_normal((37, 37), np.float32) @ enlarge.T
        logits += 0.02 * random.standard_normal((size, size), np.float32)
        if i % 2:
            blobs = int(random.integers(1, 4))
            radius = size * np.sqrt(2 * share * random.uniform(0.5, 1.5) / blobs / np.pi)
            for _ in range(blobs):
                stretch = random.uniform(0.7, 1.4)
                centre = random.uniform(radius, max(size - radius, radius + 1), 2)
                distance = ((y - centre[0]) / stretch) ** 2 + ((x - centre[1]) * stretch) ** 2
                distance /= radius**2
                masks[i] |= distance < 1
                logits += 2 * np.exp(-0.7 * distance)
        maps[i] = 1 / (1 + np.exp(1 - logits))
    return maps, masks


def classical_aupro(maps: Maps, masks: Masks, steps: int = 200, limit: float = 0.3) -> float:
    """Return AUPRO the way most code bases of the field go about it, at their cost.

    At each of ``steps`` thresholds every map is made binary and the regions of every mask are found
    again; the number is the one of :func:`zsadbench.metrics.legacy_aupro200`.
    """
    from scipy import ndimage

    low, high = maps.min(), maps.max()
    normal = masks == 0
    rates, overlaps = [], []
    for threshold in np.arange(low, high, (high - low) / np.float32(steps)):
        called = maps > threshold
        shares: list[float] = []
        for mask, hit in zip(masks, called, strict=True):
            labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
            for region, box in enumerate(ndimage.find_objects(labels, max_label=count), start=1):
                inside = labels[box] == region
                shares.append(hit[box][inside].sum() / inside.sum())
        overlaps.append(float(np.mean(shares)))
        rates.append(np.logical_and(normal, called).sum() / normal.sum())
    rate, overlap = np.array(rates), np.array(overlaps)
    rate, overlap = rate[rate < limit], overlap[rate < limit]
    rate = (rate - rate.min()) / (rate.max() - rate.min())
    return float(np.sum(np.diff(rate[::-1]) * (overlap[:-1] + overlap[1:])[::-1] / 2))


def _ours(backend: str) -> Callable[[Maps, Masks], object]:
    from ..metrics import evaluate

    def chain(maps: Maps, masks: Masks) -> object:
        return evaluate(maps, masks, scores=maps.max(axis=(1, 2)), backend=backend)

    return chain


def _bootstrap(maps: Maps, masks: Masks) -> object:
    from ..metrics import PixelHistograms, PixelMetrics, bin_edges, resample

    ids = [f"{number:06}" for number in range(len(maps))]
    exact = PixelMetrics(keep="source", source=lambda image_id: maps[int(image_id)], aupimo=None)
    anomalous = masks.any(axis=(1, 2))
    for i in np.argsort(~anomalous, kind="stable"):
        exact.update(maps[i], masks[i], ids[i])
    counted = PixelHistograms(bin_edges(exact.curve()))
    for values, mask, image_id in zip(maps, masks, ids, strict=True):
        counted.add(values, mask, image_id)
    return counted.replicates(ids, resample("generated", anomalous))


def _sklearn(maps: Maps, masks: Masks) -> tuple[float, float, float]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    scores, truth = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return roc_auc_score(truth, scores), average_precision_score(truth, scores), float(f1.max())


def _run(task: _Task) -> dict[str, Any]:
    """Measure one chain in a fresh process."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        return pool.submit(_measure, task).result()


def _chain(name: str) -> tuple[Callable[[Maps, Masks], object], str]:
    """Return what to measure and what it gives."""
    if name == BOOTSTRAP:
        return _bootstrap, "all pixel metrics"
    if name.startswith("zsadbench"):
        return _ours(name.split(", ")[1]), "all metrics"
    return (_sklearn, "AUROC, AP, F1-max") if name == "scikit-learn" else (classical_aupro, "AUPRO")


def _measure(task: _Task) -> dict[str, Any]:
    chain, note = _chain(task.chain)
    chain(*generate(2, 64, 0.1))
    maps, masks = generate(task.images, task.size, task.share)
    before = _memory("VmRSS")
    wall, cpu = [], []
    for _ in range(task.repeats):
        start = time.perf_counter(), time.process_time()
        chain(maps, masks)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    peak = _memory("VmHWM")
    return {
        "chain": task.chain,
        "seconds": statistics.median(wall),
        "cpu_seconds": statistics.median(cpu),
        "memory_mb": None if before is None or peak is None else peak - before,
        "note": note if task.repeats == 1 else f"{note}; median of {task.repeats}",
    }


def _memory(field: str) -> float | None:
    """Return a figure of this process's memory in MB; None where the system does not state it."""
    if not sys.platform.startswith("linux"):
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _interpolation(size: int, cells: int) -> NDArray[np.float32]:
    """Return the (size, cells) matrix of linear interpolation with half-pixel centres."""
    place = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    weights = np.maximum(1 - np.abs(place[:, None] - np.arange(cells)), 0)
    return np.asarray(weights, np.float32)
