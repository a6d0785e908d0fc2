"""The maps of one category beside their masks, and every metric of them.

Nothing here needs CLIP: maps are rendered from evidence, or come from other code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DatasetError, MethodError
from ..images import ahead, default_workers, defects_at, mask_at, vanished
from ..maps import exact_maps
from ..method import Method, blamed
from ..metrics import MORE_IMAGE_METRICS, Defect, LegacyAupro, PixelMetrics, image_metrics, image_reasons
from ..records import Slice, group_columns, select_rows, undefined
from ..samples import Dataset, Sample
from .protocol import MASK_RULES, EvaluationProtocol

T = TypeVar("T")

Map = NDArray[np.floating[Any]]
"""float32, or float64 where a map of other code needs it."""


class Maps(Protocol):
    """The maps of one category, whatever they come from."""

    @property
    def keys(self) -> Sequence[str]:
        """The images that have a map."""
        ...

    def render(self, row: int, size: tuple[int, int] | None) -> Map:
        """Return one map at ``size`` (``None``: its own)."""
        ...

    def own_size(self, row: int) -> tuple[int, int] | None:
        """Return the size of a map where the protocol leaves it to the method."""
        ...

    def image_scores(self, extrema: Tensor) -> Tensor:
        """Return image scores (N,) from the minimum and maximum of every map (N, 2)."""
        ...


class EvidenceMaps:
    """Maps rebuilt from the stored evidence of one category.

    Every map is rendered by itself, so a second visit gives the same bits.
    """

    def __init__(self, method: Method, part: Slice, exact: bool = False) -> None:
        self.method, self.evidence, self.exact = method, part.evidence, exact
        self.keys: Sequence[str] = part.keys

    def own_size(self, row: int) -> tuple[int, int]:
        """Return the size of the network's input frame."""
        height, width = self.evidence["frame"][row].int().tolist()
        return height, width

    def render(self, row: int, size: tuple[int, int] | None) -> Map:
        """Return one map."""
        size = size or self.own_size(row)
        with exact_maps(self.exact), blamed(self.method, "maps"):
            maps = self.method.maps(select_rows(self.evidence, [row]), size)
            _check_numbers("maps", maps, (1, *size), self.keys[row : row + 1])
        rendered: Map = maps[0].detach().numpy()
        return rendered

    def image_scores(self, extrema: Tensor) -> Tensor:
        """Return the method's image scores (N,) of the category, from the extrema (N, 2) of its maps."""
        with blamed(self.method, "image_scores"):
            scores = self.method.image_scores(self.evidence, extrema.float())
            _check_numbers("image_scores", scores, (len(self.keys),), self.keys)
        return scores


def _check_numbers(name: str, found: Any, shape: tuple[int, ...], keys: Sequence[str]) -> None:
    """Refuse what a method returns unless it is a finite float tensor of ``shape``, one row per key."""
    kind = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
    if kind not in ("torch.float32", "torch.float64"):
        raise MethodError(f"{name}() returns {kind}, not a tensor of float32")
    if tuple(found.shape) != shape:
        raise MethodError(f"{name}() returns a tensor of shape {tuple(found.shape)}; it must be {shape}")
    if bad := undefined(found, keys):
        raise MethodError(f"{name}() returns numbers for {bad} that are not finite")


@dataclass(frozen=True)
class CategoryScores:
    """Metric values of one category with the reasons of undefined ones, and its rows per image."""

    row: dict[str, Any]
    images: list[dict[str, Any]]
    warnings: list[str]
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the images by key, where evidence says them."""
    evidence: str = ""
    """Digest of the evidence, where the maps were rendered from one."""


@dataclass(frozen=True)
class Fixed:
    """Thresholds that no test label fixes, by metric, and why the others have none."""

    thresholds: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


NOTHING_FIXED = Fixed()


def score_category(
    category: str,
    samples: Sequence[Sample],
    maps: Maps,
    rules: EvaluationProtocol,
    dataset: Dataset,
    *,
    workers: int | None = None,
    fixed: Fixed = NOTHING_FIXED,
) -> CategoryScores:
    """Return every metric of one category.

    ``samples`` are those of the category in any order; those without a map (failed images) are left
    out and counted.  ``workers`` threads render and read ahead (default: one per CPU); with 0 the caller's
    own does everything.  No digit depends on them.
    """
    known = {sample.key: sample for sample in samples}
    labels = np.array([known[key].anomalous for key in maps.keys], dtype=bool)
    extrema = torch.zeros(len(labels), 2, dtype=torch.float64)
    reader = MapReader(rules, maps, known, dataset)
    pixels = None
    if dataset.masks != "none":
        pixels = PixelMetrics(
            rules.limits,
            rules.connectivity,
            keep="source",
            source=reader.again,
            threshold=fixed.thresholds.get("pixel_segf1"),
            spro_limits=rules.spro_limits,
        )
    for row, one, mask in reader.visit(workers):
        extrema[row, 0], extrema[row, 1] = float(one.min()), float(one.max())
        if pixels and mask is not None:
            pixels.update(one, mask, maps.keys[row], label=bool(labels[row]), defects=reader.defects(row))
    scores = maps.image_scores(extrema).double().numpy()
    _require_finite(scores, maps.keys)
    values, reasons = _pixel_values(pixels, rules, reader, extrema) if pixels else _no_pixels(rules)
    warnings = [*reader.warnings, *pixels.warnings] if pixels else []
    more = [*MORE_IMAGE_METRICS, *(metric for metric in rules.metrics if metric.startswith("image_"))]
    image = image_metrics(scores, labels, more, fixed.thresholds.get("image_classf1"))
    row_out = {
        "category": category,
        "normal": int((~labels).sum()),
        "anomalous": int(labels.sum()),
        "failed": len(samples) - len(labels),
        **dict.fromkeys(rules.metrics),
        **image,
        **values,
        **{f"{metric}_threshold": at for metric, at in fixed.thresholds.items()},
        "reasons": {**image_reasons(image), **fixed.reasons, **reasons},
    }
    unmasked = sum(known[key].anomalous and known[key].mask is None for key in maps.keys)
    if pixels and unmasked:
        warnings.append(f"{unmasked} anomalous images without a mask are left out of the pixel metrics")
    columns = ("key", "category", "anomalous", "image_score", "map_min", "map_max")
    images = [
        dict(zip(columns, (key, category, int(label), float(score), low, high), strict=True))
        | group_columns(known[key].groups)
        for key, label, score, (low, high) in zip(maps.keys, labels, scores, extrema.tolist(), strict=True)
    ]
    return CategoryScores(row_out, images, [f"{category}: {warning}" for warning in warnings])


Unit = Callable[[int], CategoryScores | None]
"""Scores one category, with so many threads that render ahead; None where none of its images has a map.

It is what scoring is cut into: a category of a method under a protocol.
"""

Sharing = Callable[[Sequence[Unit], int | None], Iterable[CategoryScores | None]]
"""Calls units, wherever that is, with at most so many threads; gives what they return, in their order."""


def on_cores(units: Sequence[Unit], workers: int | None = None) -> Iterator[CategoryScores | None]:
    """Score units side by side, in a thread each; where they are fewer than ``workers``, those help them.

    No more are in work, or wait to be taken, than there are threads: each holds the evidence of a category.
    """
    workers = workers or default_workers()
    lanes = min(workers, len(units)) or 1
    helpers = workers // lanes if lanes < workers else 0

    def score(unit: Unit) -> CategoryScores | None:
        return unit(helpers)

    with closing(ahead(score, units, lanes, lanes, name="zsad-score")) as found:
        yield from found


class MapReader:
    """The maps of one category beside their masks, both at the size the protocol evaluates at."""

    def __init__(
        self, rules: EvaluationProtocol, maps: Maps, known: Mapping[str, Sample], dataset: Dataset
    ) -> None:
        self.rules, self.maps, self.known, self.dataset = rules, maps, known, dataset
        self.rows = {key: row for row, key in enumerate(maps.keys)}
        self.sizes: dict[int, tuple[int, int]] = {}
        self.kind = np.dtype(np.float32)
        """The float type that holds every map visited so far."""
        self.vanished: set[str] = set()
        """Images visited so far of whose defect nothing is left at the evaluation size."""

    @property
    def warnings(self) -> list[str]:
        """What the visit has shown of the masks."""
        if not self.vanished:
            return []
        first = min(self.vanished)
        height, width = self.sizes[self.rows[first]]
        return [
            f"the defects of {len(self.vanished)} of {len(self.rows)} images vanish at {width} x {height} "
            f"pixels ({self.rules.mask_resize}; first {first}), so their masks count as empty; evaluate with "
            "--mask-resize native, or with a larger --size"
        ]

    def visit(self, workers: int | None = None) -> Iterator[tuple[int, Map, NDArray[np.bool_] | None]]:
        """Yield row, map (H, W) and mask (H, W) of every image, read ahead, anomalous images first.

        Their scores are the thresholds that normal pixels are counted against.
        """
        order = sorted(
            range(len(self.maps.keys)), key=lambda row: not self.known[self.maps.keys[row]].anomalous
        )
        workers = default_workers() if workers is None else workers
        read = ahead(self.read, order, workers) if workers else map(self.read, order)
        for row, (one, mask) in zip(order, read, strict=True):
            self.kind = np.promote_types(self.kind, one.dtype)
            yield row, one, mask

    def read(self, row: int) -> tuple[Map, NDArray[np.bool_] | None]:
        """Return a map (H, W) and its mask (H, W), or None where the dataset or the sample has none."""
        sample = self.known[self.maps.keys[row]]
        size = self.size(row)
        if self.dataset.masks == "none" or (sample.anomalous and sample.mask is None):
            return self.maps.render(row, size), None
        mask = self._drawn(mask_at, sample, size)
        self.sizes[row] = (mask.shape[0], mask.shape[1])
        if size and sample.anomalous and vanished(sample, mask, self.dataset.mask_positive):
            self.vanished.add(sample.key)
        return self.maps.render(row, self.sizes[row]), mask

    def defects(self, row: int) -> list[Defect]:
        """Return the defects of an image at the size of its mask where the rules ask for sPRO.

        Those that vanish there are left out; without saturations there are none.
        """
        if not self.rules.spro_limits:
            return []
        sample, size = self.known[self.maps.keys[row]], self.size(row)
        found = self._drawn(defects_at, sample, size)
        return [Defect(mask, saturation) for mask, saturation in found]

    def _drawn(self, read: Callable[..., T], sample: Sample, size: tuple[int, int] | None) -> T:
        """Return what ``read`` makes of a sample's mask under the rules and the dataset's own."""
        return read(
            sample,
            size,
            MASK_RULES[self.rules.mask_resize if size else "native"],
            positive=self.dataset.mask_positive,
            mismatch="nearest" if self.dataset.mask_mismatch == "nearest" else "error",
        )

    def again(self, key: str) -> Map:
        """Return the map of an earlier visit, bit for bit."""
        row = self.rows[key]
        return self.maps.render(row, self.sizes[row])

    def size(self, row: int) -> tuple[int, int] | None:
        """Return the evaluation size of an image; None where that is the mask's own."""
        if isinstance(self.rules.size, int):
            return self.rules.size, self.rules.size
        return None if self.rules.size == "native" else self.maps.own_size(row)


def _pixel_values(
    exact: PixelMetrics, rules: EvaluationProtocol, reader: MapReader, extrema: Tensor
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return pixel metrics and reasons; under a legacy protocol AUPRO comes from 200 thresholds."""
    values, reasons = exact.compute(), dict(exact.reasons())
    if rules.legacy:
        low, high = float(extrema[:, 0].min()), float(extrema[:, 1].max())
        legacy = LegacyAupro(low, high, reader.kind, connectivity=rules.connectivity)
        for one, mask in map(reader.read, range(len(extrema))):
            if mask is not None:
                legacy.update(one, mask)
        values = {name: value for name, value in values.items() if not name.startswith("pixel_aupro@")}
        values["pixel_aupro"] = legacy.compute()
        if values["pixel_aupro"] is None:
            reasons["pixel_aupro"] = "200 thresholds give no area"
    return values, {name: why for name, why in reasons.items() if name in values}


def _no_pixels(rules: EvaluationProtocol) -> tuple[dict[str, float | None], dict[str, str]]:
    asked = [metric for metric in rules.metrics if metric.startswith("pixel_")]
    names = [*PixelMetrics(rules.limits).compute(), *asked]
    return dict.fromkeys(names), dict.fromkeys(names, "the dataset has no masks")


def _require_finite(scores: NDArray[np.float64], keys: Sequence[str]) -> None:
    for key, score in zip(keys, scores, strict=True):
        if not math.isfinite(score):
            raise DatasetError(f"{key}: its image score is {score}; the method gave no finite number")
