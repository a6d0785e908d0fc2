"""Pixel metrics of one category, image by image, exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from .counters import Counter, check_backend, choose_backend, make_counter
from .curve import Curve
from .fixed import called_pixels, f1
from .ids import aupro_id
from .inputs import as_map, as_mask, resize_bilinear, to_numpy
from .keys import Counts, Keys, from_keys, to_keys, widened
from .regions import Defect, find_regions, saturated_weights, sums_by_key
from .stores import make_store

NO_DEFECTS = "the saturation of some defect is not known"
_SIGN = np.uint32(0x80000000)
_SAME = ": it must be the same to the last bit, or be kept (keep='ram' or 'disk')"


@dataclass(frozen=True, slots=True)
class _Image:
    """What is remembered of an image besides its map."""

    shape: tuple[int, int]
    low: float
    peak: float
    regions: int
    keys: Keys
    """Per anomalous pixel, the key of its score."""
    areas: NDArray[np.uint32]
    """Per anomalous pixel, the area of its region."""
    score: float | None
    label: bool | None
    called: tuple[int, int]
    """Pixels at or above the fixed threshold: anomalous ones, and all."""
    defects: int
    saturated: NDArray[np.float64]
    """Per anomalous pixel, what it adds to the saturated overlap of its defects; empty where none asks."""


@dataclass(frozen=True, slots=True)
class _Positives:
    """All anomalous pixels, gathered by score, in rising order."""

    keys: Keys
    hits: Counts
    weights: NDArray[np.float64]
    saturated: NDArray[np.float64] | None


class PixelMetrics:
    """Accumulates maps and masks of one category and computes every pixel metric from one curve.

    Every map is read twice: once for its anomalous pixels, once to count all its pixels against
    those of all images.  Between the two it waits where ``keep`` says: ``"ram"`` (copies),
    ``"disk"`` (a temporary file) or ``"source"``, which keeps nothing and calls ``source(image_id)``
    for the map again.  With ``"source"``, maps of normal images are counted at once and never asked
    for again, provided that all anomalous images came first.  No digit of any result depends on the
    order of updates, on ``keep`` or on the back end.

    An image is anomalous here when its mask is not empty; regions are ``connectivity``-connected.
    ``aupimo`` is the interval of false-positive rates of AUPIMO (arXiv 2401.01984), or None; it costs
    8 bytes per distinct anomalous score for each size that normal images come in.
    ``resize="bilinear"`` brings maps to the size of their mask; without it, sizes must agree.
    With ``threshold`` (of :func:`pixel_threshold`) there is ``pixel_segf1``, F1 over all pixels at it; with
    ``spro_limits`` there is ``pixel_spro`` (:meth:`Curve.spro`), of the ``defects`` that updates tell.
    """

    def __init__(
        self,
        limits: Sequence[float] = (0.3, 0.05),
        connectivity: int = 8,
        backend: str = "auto",
        keep: str = "ram",
        source: Callable[[str], Any] | None = None,
        *,
        aupimo: tuple[float, float] | None = (1e-5, 1e-4),
        resize: str | None = None,
        threshold: float | None = None,
        spro_limits: Sequence[float] = (),
    ) -> None:
        if not all(0 < limit <= 1 for limit in (*limits, *spro_limits)):
            raise MetricError(f"AUPRO limits {(*limits, *spro_limits)}: each must be above 0 and at most 1")
        self._spro_limits = tuple(spro_limits)
        if aupimo is not None and not 0 < aupimo[0] < aupimo[1] <= 1:
            raise MetricError(f"AUPIMO bounds {aupimo}: wanted 0 < low < high <= 1")
        if connectivity not in (4, 8):
            raise MetricError(f"connectivity {connectivity}: regions are 4- or 8-connected")
        if resize not in (None, "bilinear"):
            raise MetricError(f"unknown resize policy '{resize}': use None or 'bilinear'")
        check_backend(backend)
        self._limits, self._connectivity, self._aupimo = tuple(limits), connectivity, aupimo
        self._backend, self._resize, self._threshold = backend, resize, threshold
        self._store, self._from_source = make_store(keep, source), source is not None
        self._images: dict[str, _Image] = {}
        self._double = False
        self._uncounted: list[str] = []
        self._positives: _Positives | None = None
        self._counter: Counter | None = None
        self._curve: Curve | None = None
        self._shares: dict[str, float | None] | None = None
        self._values: dict[str, float | None] | None = None

    def update(
        self,
        map: Any,
        mask: Any,
        image_id: str,
        *,
        score: float | None = None,
        label: bool | None = None,
        defects: Sequence[Defect] = (),
    ) -> None:
        """Add one image: ``map`` (H, W) real, array or tensor; ``mask`` (H, W) bool or integer.

        ``score`` is passed on to :meth:`per_image`; ``label`` is only compared with the mask, see
        :attr:`warnings`; ``defects`` are its regions where sPRO is asked for.  Raises :class:`MetricError`,
        naming the image, for an id seen before, for NaN or infinity, and for sizes that differ.
        """
        if image_id in self._images:
            raise MetricError(f"image '{image_id}' was added before: every image counts once")
        truth = as_mask(mask, f"image '{image_id}'")
        self._backend = choose_backend(self._backend, map)
        values, low, high = self._read(map, image_id, truth.shape)
        keys: Keys = np.empty(0, np.int32)
        areas, regions, saturated = np.empty(0, np.uint32), 0, np.empty(0)
        if truth.any():
            found = find_regions(truth, self._connectivity)
            areas, regions = found.area, found.regions
            keys = to_keys(to_numpy(values[found.box])[found.inside])
            if self._spro_limits:
                saturated = saturated_weights(defects, found, keys, truth.shape, f"image '{image_id}'")
        if defects and not regions:
            raise MetricError(f"image '{image_id}' has defects but an empty mask")
        self._store.put(image_id, values)
        double = str(values.dtype).endswith("float64")
        if regions or double > self._double:
            self._forget_counts()
        self._double |= double
        shape = truth.shape[0], truth.shape[1]
        at = (0, 0) if self._threshold is None else called_pixels(values, truth, self._threshold)
        about = (score, label, at, len(defects), saturated)
        self._images[image_id] = _Image(shape, low, high, regions, keys, areas, *about)
        self._curve = self._shares = self._values = None
        if not regions and self._countable_at_once():
            self._count(image_id, values)
        else:
            self._uncounted.append(image_id)

    def compute(self) -> dict[str, float | None]:
        """Return every pixel metric in [0, 1] by id; None where undefined, see :meth:`reasons`."""
        if self._values is None:
            self._values = self._make_values()
        return dict(self._values)

    def reasons(self) -> dict[str, str]:
        """Return why values of :meth:`compute` are None."""
        if not self._images:
            why = "no image"
        elif not any(image.regions for image in self._images.values()):
            why = "no anomalous pixel"
        else:
            why = "no normal pixel"
        reasons = {name: why for name, value in self.compute().items() if value is None}
        if why == "no normal pixel" and not self._defects():
            reasons |= {name: NO_DEFECTS for name in reasons if name.startswith("pixel_spro")}
        if "pixel_aupimo" in reasons and why == "no normal pixel":
            reasons["pixel_aupimo"] = "no normal image"
        return reasons

    @property
    def warnings(self) -> list[str]:
        """What deserves a look: labels that disagree with masks, with how often."""
        empty = sum(image.label is True and not image.regions for image in self._images.values())
        marked = sum(image.label is False and bool(image.regions) for image in self._images.values())
        rule = "image metrics follow the label, pixel metrics the mask"
        found = [(empty, "labelled anomalous have an empty mask"), (marked, "labelled normal have a mask")]
        return [f"{count} of {len(self._images)} images {what}: {rule}" for count, what in found if count]

    def curve(self) -> Curve:
        """Return the curve over the pixels of all images; its roc, pr and pro are ready to plot."""
        if self._curve is None:
            self._count_rest()
            self._curve = self._make_curve()
        return self._curve

    def per_image(self, fpr: float = 0.01) -> list[dict[str, Any]]:
        """Return one row per image, in order of update.

        ``image_id``, ``score``, ``peak`` and ``low`` (highest and lowest score of the map), ``pixels``,
        ``anomalous_pixels``, ``regions``, ``found``: the share of the image's anomalous pixels that
        are found at the lowest threshold whose false-positive rate over the category is at most ``fpr``
        (None for normal images), and ``aupimo``.
        """
        curve = self.curve()
        reached = int(np.searchsorted(curve.above + curve.equal, fpr * curve.normals, side="right"))
        keys = to_keys(curve.scores)
        aupimo = self._aupimo_by_image()
        rows = []
        for image_id, image in self._images.items():
            own = self._keys(image)
            found = float(np.mean(own >= keys[reached - 1])) if reached and image.regions else 0.0
            rows.append(
                {
                    "image_id": image_id,
                    "score": image.score,
                    "peak": image.peak,
                    "low": image.low,
                    "pixels": math.prod(image.shape),
                    "anomalous_pixels": image.keys.size,
                    "regions": image.regions,
                    "found": found if image.regions else None,
                    "aupimo": aupimo.get(image_id),
                }
            )
        return rows

    def _read(self, values: Any, image_id: str, wanted: tuple[int, ...]) -> tuple[Any, float, float]:
        where, on_device = f"image '{image_id}'", self._backend == "torch"
        values, low, high = as_map(values, where, on_device)
        if tuple(values.shape) == wanted:
            return values, low, high
        if self._resize is None:
            raise MetricError(
                f"{where}: map of size {tuple(values.shape)} but mask of size {wanted}; "
                "bring them to one size, or ask for resize='bilinear' (of the map)"
            )
        resized = resize_bilinear(to_numpy(values), (wanted[0], wanted[1]))
        return as_map(values.new_tensor(resized) if on_device else resized, where, on_device)

    def _countable_at_once(self) -> bool:
        """Whether a normal image can be counted now: the anomalous ones are (thought to be) complete."""
        return self._from_source and (self._counter is not None or not self._any_normal_waits())

    def _any_normal_waits(self) -> bool:
        return any(not self._images[image_id].regions for image_id in self._uncounted)

    def _forget_counts(self) -> None:
        """Start counting afresh: the scores to count against change."""
        self._positives = self._counter = None
        self._uncounted = list(self._images)

    def _count_rest(self) -> None:
        while self._uncounted:
            self._count(self._uncounted[-1], None)
            self._uncounted.pop()

    def _count(self, image_id: str, values: Any) -> None:
        """Count one image's pixels against the anomalous ones of all; ask for its map where not given."""
        positives = self._gather()
        if not positives.keys.size:
            return
        if self._counter is None:
            self._counter = make_counter(self._backend, positives.keys)
        image = self._images[image_id]
        if values is None:
            values = self._second_look(image_id, image)
        self._counter.add(values, self._group(image))

    def _second_look(self, image_id: str, image: _Image) -> Any:
        values = self._store.get(image_id)
        if not self._from_source:
            return values
        values, low, high = self._read(values, image_id, image.shape)
        if (low, high) != (image.low, image.peak):
            raise MetricError(f"the source returned another map for image '{image_id}' than before{_SAME}")
        return values

    def _keys(self, image: _Image) -> Keys:
        """Return the keys of an image's anomalous pixels, of one type for all images."""
        return widened(image.keys) if self._double else image.keys

    def _group(self, image: _Image) -> int:
        """Return the counting group: normal images by their size where AUPIMO needs it, else 0."""
        return 0 if image.regions or not self._aupimo else math.prod(image.shape)

    def _gather(self) -> _Positives:
        if self._positives is None:
            images = self._images.values()
            keys = np.concatenate([np.empty(0, np.int32), *map(self._keys, images)])
            areas = np.concatenate([np.empty(0, np.uint32), *(image.areas for image in images)])
            added = np.concatenate([np.empty(0), *(image.saturated for image in images)])
            saturated = sums_by_key(keys, added) if self._spro_limits else None
            # Sorting by (key, area) makes the sums of weights independent of the order of updates.
            keys, areas = _sorted(keys, areas)
            is_new = np.ones(keys.size, np.bool_)
            is_new[1:] = keys[1:] != keys[:-1]
            start = np.flatnonzero(is_new)
            weights = 1.0 / areas
            self._positives = _Positives(
                keys[start],
                np.diff(start, append=keys.size),
                np.add.reduceat(weights, start) if keys.size else weights,
                saturated,
            )
        return self._positives

    def _make_curve(self) -> Curve:
        positives = self._gather()
        images = self._images.values()
        pixels = sum(math.prod(image.shape) for image in images)
        anomalous = int(positives.hits.sum())
        above, equal = np.zeros_like(positives.hits), -positives.hits
        if self._counter is not None:
            for group in {self._group(image) for image in images}:
                at_most, at_key = self._counter.counts(group)
                above -= at_most
                equal += at_key
        if (equal < 0).any():
            raise MetricError(f"the source returned another map for an anomalous image than before{_SAME}")
        # All pixels were counted, so the anomalous ones are taken off again.
        above += pixels - anomalous + np.cumsum(positives.hits)
        return Curve(
            scores=from_keys(positives.keys[::-1]),
            hits=positives.hits[::-1],
            weights=positives.weights[::-1],
            above=above[::-1],
            equal=equal[::-1],
            normals=pixels - anomalous,
            regions=sum(image.regions for image in images),
            saturated=None if positives.saturated is None else positives.saturated[::-1],
            defects=self._defects(),
        )

    def _defects(self) -> int:
        """Return the number of defects; 0 unless those of each anomalous image are known."""
        marked = [image.defects for image in self._images.values() if image.regions]
        return sum(marked) if all(marked) else 0

    def _make_values(self) -> dict[str, float | None]:
        curve = self.curve()
        values = {
            "pixel_auroc": curve.auroc,
            "pixel_ap": curve.ap,
            "pixel_f1max": curve.f1max,
            "pixel_f1max_threshold": curve.f1max_threshold,
            "pixel_iou": curve.iou,
            "pixel_fpr95": curve.fpr_at(0.95),
        }
        for limit in self._limits:
            values[aupro_id(limit)] = curve.aupro(limit)
        for limit in self._spro_limits:
            values[aupro_id(limit, "pixel_spro")] = curve.spro(limit)
        if self._aupimo:
            shares = [share for share in self._aupimo_by_image().values() if share is not None]
            values["pixel_aupimo"] = math.fsum(shares) / len(shares) if shares else None
        if self._threshold is not None:
            hits, above = (sum(image.called[i] for image in self._images.values()) for i in (0, 1))
            values["pixel_segf1"] = f1(hits, above, curve.anomalous)
        return values

    def _aupimo_by_image(self) -> dict[str, float | None]:
        if self._shares is None:
            self.curve()
            self._shares = self._make_shares(*self._aupimo) if self._aupimo else {}
        return self._shares

    def _make_shares(self, low: float, high: float) -> dict[str, float | None]:
        """Return AUPIMO per image in its exact step form; None for normal images, or for all.

        A pixel of score s counts for every F from F(s) upwards, where F(s) is the mean share of a
        normal image at or above s; so it adds ln(high / F(s)), cut to the interval.
        """
        keys = self._gather().keys
        normal = [math.prod(image.shape) for image in self._images.values() if not image.regions]
        if self._counter is None or not normal:
            return dict.fromkeys(self._images)
        rate = np.zeros(keys.size)
        for size in sorted(set(normal)):
            at_most, at_key = self._counter.counts(size)
            rate += (normal.count(size) * size - at_most + at_key) / size
        rate /= len(normal)
        first = int(np.searchsorted(-rate, -high, side="right"))
        keys = keys[first:]
        gain = np.log(high / np.clip(rate[first:], low, high)) / math.log(high / low)
        shares: dict[str, float | None] = {}
        for image_id, image in self._images.items():
            own = self._keys(image)
            own = own[own >= keys[0]] if keys.size else own[:0]
            gained = float(np.sum(gain[np.searchsorted(keys, own)]))
            shares[image_id] = gained / image.keys.size if image.regions else None
        return shares


def _sorted(keys: Keys, areas: NDArray[np.uint32]) -> tuple[Keys, NDArray[np.uint32]]:
    """Return keys in rising order with their areas, equal keys by area."""
    if keys.dtype == np.int64:
        order = np.lexsort((areas, keys))
        return keys[order], areas[order]
    pairs = (keys.view(np.uint32) ^ _SIGN).astype(np.uint64) << np.uint64(32) | areas
    pairs.sort()
    return ((pairs >> np.uint64(32)).astype(np.uint32) ^ _SIGN).view(np.int32), pairs.astype(np.uint32)
