"""The maps behind a record, rendered again from its evidence under the record's own protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..decoding import decode, read
from ..errors import DatasetError, RecordError
from ..masks import mask_at, read_mask
from ..metrics.curve import Curve
from ..metrics.pixel import PixelMetrics
from ..records import Record
from ..samples import Dataset, Sample
from ..scores import observed_dataset, restore
from ..scoring import MASK_RULES, EvaluationProtocol, EvidenceMaps, Map
from ..settings import override
from ..store import EvidenceStore, by_category, plan
from .overlay import as_rgb

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class PixelCurve:
    """The curve over all pixels of a category, and what it finds in each image at 1 % false positives."""

    curve: Curve
    found: Mapping[str, float | None]
    """Image key -> share of its anomalous pixels above the threshold; None for normal images."""


@dataclass(frozen=True)
class CategoryMaps:
    """The maps of one category, in the size the record's protocol evaluates at."""

    dataset: Dataset
    samples: Mapping[str, Sample]
    maps: EvidenceMaps
    hashes: Mapping[str, str]
    rules: EvaluationProtocol

    def map(self, key: str, image_size: tuple[int, int] | None = None) -> Map:
        """Return the map (H, W) of an image; ``image_size`` (H, W) is used where masks keep their own.

        Raises:
            KeyError: for an image without evidence.
        """
        row = list(self.maps.keys).index(key)
        return self.maps.render(row, self._size(row) or image_size)

    def pixel_curve(self) -> PixelCurve:
        """Return the exact curve over all pixels, as the record's metrics were read from.

        Raises:
            DatasetError: if the dataset has no masks, or one cannot be read.
        """
        if self.dataset.masks == "none":
            raise DatasetError("the dataset has no masks")
        rows = {key: row for row, key in enumerate(self.maps.keys)}
        sizes: dict[str, tuple[int, int]] = {}
        metrics = PixelMetrics(
            self.rules.limits,
            self.rules.connectivity,
            keep="source",
            source=lambda key: self.maps.render(rows[key], sizes[key]),
            aupimo=None,
        )
        # Anomalous images first: their scores are the thresholds normal pixels are counted against.
        for key in sorted(rows, key=lambda key: not self.samples[key].anomalous):
            sample = self.samples[key]
            if sample.anomalous and sample.mask is None:
                continue
            mask = self._mask(sample, self._size(rows[key]))
            sizes[key] = (mask.shape[0], mask.shape[1])
            metrics.update(self.maps.render(rows[key], sizes[key]), mask, key)
        found = {row["image_id"]: row["found"] for row in metrics.per_image(fpr=0.01)}
        return PixelCurve(metrics.curve(), found)

    def _mask(self, sample: Sample, size: tuple[int, int] | None) -> Mask:
        rule = MASK_RULES[self.rules.mask_resize if size else "native"]
        return mask_at(
            sample,
            size,
            rule,
            positive=self.dataset.mask_positive,
            mismatch="nearest" if self.dataset.mask_mismatch == "nearest" else "error",
        )

    def _size(self, row: int) -> tuple[int, int] | None:
        if isinstance(self.rules.size, int):
            return self.rules.size, self.rules.size
        return None if self.rules.size == "native" else self.maps.own_size(row)

    def picture(self, key: str, longest: int) -> tuple[Image.Image, Mask | None]:
        """Return an image in RGB, its longer side at most ``longest`` pixels, and its mask of that size.

        The mask is None where there is none.

        Raises:
            DatasetError: if a file cannot be read, or the image is not the one that was observed.
        """
        sample = self.samples[key]
        photo = picture(sample, longest, self.hashes[key], orient=self.dataset.masks == "none")
        if not sample.anomalous or sample.mask is None or self.dataset.masks == "none":
            return photo, None
        mask = read_mask(sample.mask, self.dataset.mask_positive, name=f"{key}: mask {sample.mask.name}")
        return photo, shrink_mask(mask, (photo.height, photo.width))


class Replay:
    """A record with everything needed to render its maps.

    Raises:
        RecordError: for foreign maps, unfinished runs and evidence of another version of a method.
        DatasetError: if the dataset is not found.
    """

    def __init__(self, record: Record, data: Path | None = None) -> None:
        observation = record.observation
        if observation["method"].get("foreign") or not observation["method"].get("spec"):
            raise RecordError(f"{record.method}: maps of other code, scored here; they are not stored")
        resolved = restore(observation)
        self.rules = protocol_of(record)
        method = resolved.inductive if self.rules.inductive else resolved.method
        self._method = override(method, self.rules.map_parameters)
        self.dataset = observed_dataset(observation, data)
        self._store = EvidenceStore(record.path.parents[1])
        slices = plan(self.dataset.samples, whole_categories=resolved.card.order_dependent)
        self._slices = dict(by_category(self.dataset.samples, slices))

    def category(self, name: str) -> CategoryMaps:
        """Return the maps of one category.

        Raises:
            RecordError: if evidence is missing or damaged.
        """
        part = self._store.category(self._slices[name])
        return CategoryMaps(
            self.dataset,
            {sample.key: sample for sample in self.dataset.samples if sample.category == name},
            EvidenceMaps(self._method, part, self.rules.exact_maps),
            dict(zip(part.keys, part.hashes, strict=True)),
            self.rules,
        )


def protocol_of(record: Record) -> EvaluationProtocol:
    """Return the protocol that a record was computed under, with every rule it holds."""
    said: Mapping[str, Any] = record.protocol
    return EvaluationProtocol(
        id=said["id"],
        version=said["version"],
        size=said["size"],
        mask_resize=said["mask_resize"],
        inductive=said["image_score"] == "inductive",
        legacy=bool(said["legacy"]),
        limits=tuple(said["aupro_limits"]),
        connectivity=said["connectivity"],
        exact_maps=bool(said["exact_maps"]),
        map_parameters=said["map_parameters"],
    )


def picture(sample: Sample, longest: int, sha256: str, *, orient: bool) -> Image.Image:
    """Return an image in RGB, its longer side at most ``longest`` pixels.

    Raises:
        DatasetError: if the file cannot be read or does not have the given digest.
    """
    data = read(sample.image, sample.key)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DatasetError(f"{sample.key}: the file is another one than when it was observed; run again")
    image = as_rgb(decode(data, name=sample.key, orient=orient))
    share = min(1.0, longest / max(image.size))
    width, height = (max(1, round(share * side)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def shrink_mask(mask: Mask, size: tuple[int, ...]) -> Mask:
    """Return a mask at ``size`` (h, w): a pixel is set where any of those it stands for is set.

    So the thinnest defect stays visible.
    """
    for axis, wanted in enumerate(size):
        have = mask.shape[axis]
        if wanted >= have:
            mask = mask.take(np.arange(wanted) * have // wanted, axis)
        else:
            starts = np.arange(wanted) * have // wanted
            mask = np.logical_or.reduceat(mask, starts, axis)
    return mask
