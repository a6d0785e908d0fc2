"""How far a metric could move with another draw of the same kind of test images.

The unit is the image, because pixels of one image are not independent.  Normal and anomalous images
are drawn apart, with replacement, as many as there are; a draw is a row of weights, how often each
image is in it.  Image metrics are computed anew from the weights, exactly.  Pixel metrics come from
counts per image in bins common to all images, so that a draw costs one row of a matrix product.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..errors import MetricError
from .curve import Curve
from .fixed import called, called_pixels
from .ids import aupro_id
from .image import CALIBRATION_BINS, calibration_bins, calibration_error, share_of
from .inputs import as_labels, as_map, as_mask, as_scores
from .keys import Keys, from_keys, to_keys
from .regions import Defect, find_regions, saturated_weights

Reals = NDArray[np.float64]
Replicates = dict[str, Reals]
"""Metric id -> (B,) its value in each draw; NaN where a draw leaves it undefined."""

REPLICATES = 1000
BINS = 4096
FEWEST, FEW = 5, 20
"""Images of a kind below which there is no interval, and below which it is doubtful."""
_CHUNK = 1 << 15  # numbers per intermediate array: few enough for the processor's cache


class Interval(NamedTuple):
    """Bounds between which 95 of 100 draws lie."""

    low: float
    high: float


def resample(
    category: str, anomalous: Any, replicates: int = REPLICATES, groups: Sequence[str] = ()
) -> Reals:
    """Return the weights (B, n) of the draws of one category: how often each image is in each.

    ``anomalous`` (n,) are the labels of its images *sorted by key*.  The draws depend on the name of
    the category and on the labels only, so all methods meet the same ones.  Either kind of image
    keeps its number in every draw.  With ``groups`` (n,) whole groups are drawn: normal ones, anomalous
    ones and those that are both apart.
    """
    labels = as_labels(anomalous)
    names = {name: place for place, name in enumerate(dict.fromkeys(groups))}
    unit = np.array([names[name] for name in groups]) if groups else np.arange(labels.size)
    places = np.arange(len(names) if groups else labels.size)
    normal, marked = (np.isin(places, unit[kind]) for kind in (~labels, labels))
    random = np.random.RandomState(zlib.crc32(f"boot/{category}".encode()))
    weights = np.zeros((replicates, places.size))
    for stratum in map(np.flatnonzero, (normal & ~marked, marked & ~normal, normal & marked)):
        if stratum.size:
            drawn = random.randint(0, stratum.size, (replicates, stratum.size))
            drawn += stratum.size * np.arange(replicates)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=replicates * stratum.size)
            weights[:, stratum] = counts.reshape(replicates, -1)
    return weights[:, unit] if groups else weights


def interval(replicates: Reals, level: float = 0.95) -> Interval | None:
    """Return the percentile interval of one metric's draws; None where a draw leaves it undefined."""
    if not replicates.size or np.isnan(replicates).any():
        return None
    low, high = np.percentile(replicates, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(low), float(high))


def centred(replicates: Reals, value: float | None, binned: float) -> Reals:
    """Return draws shifted by exact minus binned ``value`` of all images; NaN without one."""
    if value is None:
        return np.full_like(replicates, np.nan)
    return np.clip(replicates + (value - binned), 0.0, 1.0)


def image_replicates(
    scores: Any,
    labels: Any,
    weights: Reals,
    more: Sequence[str] = (),
    threshold: float | None = None,
) -> Replicates:
    """Return the image metrics of every draw, exactly; ``scores`` and ``labels`` (n,) as in ``weights``.

    ``more`` and ``threshold`` are as :func:`image_metrics` takes them.

    Raises:
        MetricError: without a score, and for shapes that do not agree.
    """
    values, anomalous = as_scores(scores), as_labels(labels)
    keys = to_keys(values)
    if not keys.size == anomalous.size == weights.shape[1]:
        raise MetricError(
            f"{keys.size} image scores, {anomalous.size} labels, weights of {weights.shape[1]}: one of each"
        )
    if not keys.size:
        raise MetricError("no image score: there is nothing to draw from")
    order = np.argsort(keys, kind="stable")[::-1]
    start = np.flatnonzero(np.append(True, keys[order][1:] != keys[order][:-1]))
    parts = []
    for chunk in _chunks(weights, keys.size):
        drawn, hit = chunk[:, order], anomalous[order]
        hits, misses = (np.add.reduceat(drawn * kind, start, axis=1) for kind in (hit, ~hit))
        metrics = _ranking(hits, misses, np.cumsum(misses, axis=1), "image")
        parts.append(metrics | {name: _at(name, hits, misses) for name in more if "@" in name})
    found = _joined(parts)
    if "image_ece" in more:
        found["image_ece"] = _calibration(values, anomalous, weights)
    if "image_classf1" in more and threshold is not None:
        above = called(values, threshold)
        found["image_classf1"] = _f1(weights @ (above & anomalous), weights @ above, weights @ anomalous)
    return found


def bin_edges(curve: Curve, bins: int = BINS) -> Keys:
    """Return rising scores, as keys, at which to cut the pixels of a category into about ``bins`` bins.

    Where its distinct anomalous scores are few, each has a bin of its own and no metric loses a
    digit.  Else half of the edges lie at quantiles of the anomalous scores, half where the share of
    normal pixels above grows by equal factors from one millionth to all: neither depends on the
    scale of the scores.
    """
    keys = to_keys(curve.scores)
    if 2 * keys.size <= bins:
        return np.unique(np.concatenate([keys, keys + keys.dtype.type(1)]))
    found = np.cumsum(curve.hits)
    wanted = np.linspace(0, curve.anomalous, bins // 2, endpoint=False)
    at = np.searchsorted(found, wanted, side="right")
    if curve.normals:
        rates = np.geomspace(1e-6, 1, bins // 2)
        at = np.concatenate([at, np.searchsorted(curve.above / curve.normals, rates)])
    chosen = keys[np.minimum(at, keys.size - 1)]
    return np.unique(np.append(chosen, keys[0] + keys.dtype.type(1)))


class _Row(NamedTuple):
    """One image: its pixels per bin, all and anomalous ones, from the highest score down."""

    pixels: Reals
    anomalous: Reals
    weights: Reals
    """Sum of 1 / area of their region over the anomalous pixels."""
    regions: int
    called: tuple[int, int]
    """Pixels at or above the fixed threshold: anomalous ones, and all."""
    defects: int = 0
    saturated: Reals | None = None
    """Sum of what the anomalous pixels add to the saturated overlap of their defects."""


class PixelHistograms:
    """Pixels per image in bins common to all images of one category.

    ``edges`` from :func:`bin_edges`; ``connectivity`` of regions, 4 or 8; ``threshold`` the fixed one of
    ``pixel_segf1``, which is counted exactly.  Images may come in any order: :meth:`replicates` takes them
    by name.  An image keeps 8 bytes per bin, an anomalous one 24.
    """

    def __init__(self, edges: Keys, connectivity: int = 8, threshold: float | None = None) -> None:
        if not edges.size:
            raise MetricError("no anomalous pixel: there is nothing to cut into bins")
        self._edges, self._connectivity, self._threshold = edges, connectivity, threshold
        self._kind = from_keys(edges).dtype
        self._rows: dict[str, _Row] = {}

    def add(self, map: Any, mask: Any, image_id: str, defects: Sequence[Defect] = ()) -> None:
        """Count one image: ``map`` (H, W) real, ``mask`` (H, W) bool or integer, of the same size.

        ``defects`` are its regions where sPRO is asked for.

        Raises:
            MetricError: for an image that was added before, and for shapes that do not agree.
        """
        where = f"image '{image_id}'"
        if image_id in self._rows:
            raise MetricError(f"{where} was added before: every image counts once")
        truth = as_mask(mask, where)
        values, _, _ = as_map(map, where)
        if values.shape != truth.shape:
            raise MetricError(f"{where}: map of size {values.shape} but mask of size {truth.shape}")
        at = (0, 0) if self._threshold is None else called_pixels(values, truth, self._threshold)
        keys = to_keys(values.astype(self._kind, copy=False))
        pixels, nothing = self._count(keys.ravel()), np.empty(0)
        if not truth.any():
            self._rows[image_id] = _Row(pixels, nothing, nothing, 0, at)
            return
        found = find_regions(truth, self._connectivity)
        own = keys[found.box][found.inside]
        bins = self._edges.size - np.searchsorted(self._edges, own, side="right")
        weights = np.bincount(bins, 1.0 / found.area, minlength=pixels.size).astype(np.float64)
        row = _Row(pixels, self._count(own), weights, found.regions, at)
        if defects:
            each = saturated_weights(defects, found, own, truth.shape, where)
            added = np.bincount(bins, each, minlength=pixels.size).astype(np.float64)
            row = row._replace(defects=len(defects), saturated=added)
        self._rows[image_id] = row

    def replicates(
        self,
        image_ids: Sequence[str],
        weights: Reals,
        limits: Sequence[float] = (0.3, 0.05),
        aupimo: tuple[float, float] | None = (1e-5, 1e-4),
        spro_limits: Sequence[float] = (),
    ) -> Replicates:
        """Return the pixel metrics of every draw of ``weights`` (B, n); its columns are ``image_ids``.

        An image that was never added has no pixels: it may be drawn and changes nothing.
        """
        known = [(column, self._rows[name]) for column, name in enumerate(image_ids) if name in self._rows]
        marked = [(column, row) for column, row in known if row.regions]
        normal = [(column, row) for column, row in known if not row.regions]
        of_all, of_marked, of_normal = ([column for column, _ in part] for part in (known, marked, normal))
        pixels = self._matrix(row.pixels for _, row in known)
        hits = self._matrix(row.anomalous for _, row in marked)
        shares = self._matrix(row.weights for _, row in marked)
        regions = np.array([row.regions for _, row in marked], np.float64)
        spro_limits = spro_limits if all(row.defects for _, row in marked) else ()
        saturated = self._matrix(row.saturated for _, row in marked) if spro_limits else shares
        defects = np.array([row.defects for _, row in marked], np.float64)
        clean = self._matrix(row.pixels / row.pixels.sum() for _, row in normal)
        found = hits / hits.sum(axis=1, keepdims=True)
        parts = []
        for chunk in _alone(_chunks(weights, pixels.shape[1])):
            drawn, drawn_normal = chunk[:, of_marked], chunk[:, of_normal]
            inside = drawn @ hits
            outside = chunk[:, of_all] @ pixels - inside
            with np.errstate(invalid="ignore"):
                overlap = np.minimum(np.cumsum(drawn @ shares, axis=1) / (drawn @ regions)[:, None], 1)
            wrong = np.cumsum(outside, axis=1)
            metrics = _ranking(inside, outside, wrong, "pixel")
            areas = _aupro(overlap, outside, wrong, limits)
            metrics |= {aupro_id(limit): area for limit, area in zip(limits, areas, strict=True)}
            if spro_limits:
                overlap = np.minimum(np.cumsum(drawn @ saturated, axis=1) / (drawn @ defects)[:, None], 1)
                areas = _aupro(overlap, outside, wrong, spro_limits)
                named = zip(spro_limits, areas, strict=True)
                metrics |= {aupro_id(limit, "pixel_spro"): area for limit, area in named}
            if aupimo:
                metrics["pixel_aupimo"] = _aupimo(drawn @ found, drawn_normal @ clean, *aupimo)
            parts.append(metrics)
        return _joined(parts) | self._at_threshold(known, weights)

    def _at_threshold(self, known: Sequence[tuple[int, _Row]], weights: Reals) -> Replicates:
        if self._threshold is None:
            return {}
        drawn = weights[:, [column for column, _ in known]]
        counts = np.array([(*row.called, row.anomalous.sum()) for _, row in known], np.float64).reshape(-1, 3)
        return {"pixel_segf1": _f1(*(drawn @ counts).T)}

    def _count(self, keys: Keys) -> Reals:
        """Return how many of ``keys`` lie in each bin, from the highest score down."""
        below = np.searchsorted(np.sort(keys), self._edges)
        return np.diff(below, prepend=0, append=keys.size)[::-1].astype(np.float64)

    def _matrix(self, rows: Iterable[Reals | None]) -> Reals:
        return np.array([*rows], np.float64).reshape(-1, self._edges.size + 1)


def _ranking(hits: Reals, misses: Reals, wrong: Reals, of: str) -> Replicates:
    """Return AUROC, AP, F1-max and IoU-max from anomalous and normal items (B, K) per bin, falling.

    ``wrong`` are the sums of ``misses`` so far.  Items of one bin count as tied.
    """
    found = np.cumsum(hits, axis=1)
    positives, normals = found[:, -1:], wrong[:, -1:]
    called = found + wrong
    with np.errstate(invalid="ignore", divide="ignore"):
        # Whole numbers until the division, so that equal methods have equal digits.
        wins = np.sum(hits * (2 * (normals - wrong) + misses), axis=1)
        auroc = wins / (2 * positives * normals)[:, 0]
        precision = found / np.where(called > 0, called, 1.0)
        ap = np.sum(hits * precision, axis=1) / positives[:, 0]
        f1 = np.where(positives[:, 0] > 0, np.max(2 * found / (called + positives), axis=1), np.nan)
        fpr95 = _fpr_at(Fraction(95, 100), found, wrong)
    metrics = {f"{of}_auroc": auroc, f"{of}_ap": ap, f"{of}_f1max": f1, f"{of}_fpr95": fpr95}
    return metrics | {"pixel_iou": f1 / (2 - f1)} if of == "pixel" else metrics


def _f1(hits: Reals, called: Reals, anomalous: Reals) -> Reals:
    """Return F1 (B,) from sums over the drawn images; NaN without an anomalous item."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(anomalous > 0, 2 * hits / (called + anomalous), np.nan)


def _fpr_at(tpr: Fraction, found: Reals, wrong: Reals) -> Reals:
    """Return the smallest false-positive rate (B,) at which ``tpr`` of the anomalous items are found."""
    wanted = np.ceil(found[:, -1:] * tpr.numerator / tpr.denominator)
    first = np.argmax(found >= wanted, axis=1)
    reached = np.where(wanted[:, 0] > 0, np.take_along_axis(wrong, first[:, None], axis=1)[:, 0], 0.0)
    return np.asarray(np.where(found[:, -1] > 0, reached, np.nan) / wrong[:, -1])


def _at(name: str, hits: Reals, misses: Reals) -> Reals:
    """Return ``image_pg@n`` or ``image_pb@n`` (B,) of every draw."""
    found, wrong = np.cumsum(hits, axis=1), np.cumsum(misses, axis=1)
    share = share_of(name, name.partition("@")[2])
    with np.errstate(invalid="ignore", divide="ignore"):
        if name.startswith("image_pg"):
            return np.asarray(1 - _fpr_at(1 - share, found, wrong))
        allowed = np.floor(wrong[:, -1:] * share.numerator / share.denominator)
        reached = np.max(np.where(wrong <= allowed, found, 0.0), axis=1)
        return np.asarray(np.where(wrong[:, -1] > 0, reached, np.nan) / found[:, -1])


def _calibration(scores: Reals, anomalous: NDArray[np.bool_], weights: Reals) -> Reals:
    """Return the calibration error (B,) of every draw; NaN where scores are no probabilities."""
    if calibration_error(scores, anomalous) is None:
        return np.full(len(weights), np.nan)
    inside = calibration_bins(scores)[:, None] == np.arange(CALIBRATION_BINS)
    gaps = weights @ (inside * (scores - anomalous)[:, None])
    return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))


def _aupro(overlap: Reals, misses: Reals, wrong: Reals, limits: Sequence[float]) -> list[Reals]:
    """Return AUPRO (B,) up to each of ``limits`` from the mean region overlap after each bin.

    ``misses`` are the normal pixels (B, K) in each bin, ``wrong`` their sums so far.  A bin counts whole up
    to the one in which the limit lies.
    """
    before = np.concatenate([np.zeros((len(overlap), 1)), overlap[:, :-1]], axis=1)
    rise = overlap - before
    whole = misses * (before + rise / 2)
    areas = []
    for limit in limits:
        end = limit * wrong[:, -1]
        at = [min(int(np.searchsorted(row, x)), row.size - 1) for row, x in zip(wrong, end, strict=True)]
        parts = whole[:, : max(at, default=0) + 1].copy()
        for row, (place, x) in enumerate(zip(at, end, strict=True)):
            inside = misses[row, place]
            ramp = min(max(x - (wrong[row, place] - inside), 0.0), inside)
            share = ramp / inside if inside > 0 else 0.0
            parts[row, place] = ramp * (before[row, place] + share * rise[row, place] / 2)
            parts[row, place + 1 :] = 0
        with np.errstate(invalid="ignore"):
            areas.append(np.asarray(np.sum(parts, axis=1) / end))
    return areas


def _aupimo(found: Reals, wrong: Reals, low: float, high: float) -> Reals:
    """Return mean AUPIMO from sums over the drawn images of their share of pixels in each bin.

    ``found`` are shares of the anomalous pixels of anomalous images, ``wrong`` of normal images.
    """
    rate = np.cumsum(wrong, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate /= rate[:, -1:].copy()
        last = int(np.sum(~(rate >= high), axis=1).max(initial=0))  # behind it nothing is gained
        gain = np.zeros_like(rate)
        gain[:, :last] = np.log(high / np.clip(rate[:, :last], low, high)) / math.log(high / low)
        return np.asarray(np.sum(found * gain, axis=1) / np.sum(found, axis=1))


def _chunks(weights: Reals, columns: int) -> Iterator[Reals]:
    step = max(1, _CHUNK // columns)
    return (weights[start : start + step] for start in range(0, len(weights), step))


def _alone(chunks: Iterable[Reals]) -> Iterator[Reals]:
    """Yield chunks while matrices are multiplied by one thread: at their size several wait for each other."""
    with threadpool_limits(1, "blas"):
        yield from chunks


def _joined(parts: Sequence[Replicates]) -> Replicates:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
