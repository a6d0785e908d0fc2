"""The maps behind a record, rendered again from its evidence under the record's own protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError, RecordError
from ..images import decode, read, read_mask, to_rgb
from ..metrics import Curve, PixelMetrics
from ..records import Record
from ..samples import Dataset, Sample
from ..scoring import NOBODY, Map, MapReader, StoredMaps, UserMethods

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

    reader: MapReader
    hashes: Mapping[str, str]

    @property
    def dataset(self) -> Dataset:
        """The dataset the category belongs to."""
        return self.reader.dataset

    @property
    def samples(self) -> Mapping[str, Sample]:
        """The samples of the category by key."""
        return self.reader.known

    def map(self, key: str, image_size: tuple[int, int] | None = None) -> Map:
        """Return the map (H, W) of an image; ``image_size`` (H, W) is used where masks keep their own.

        Raises:
            KeyError: for an image without evidence.
        """
        row = self.reader.rows[key]
        return self.reader.maps.render(row, self.reader.size(row) or image_size)

    def pixel_curve(self) -> PixelCurve:
        """Return the exact curve over all pixels, as the record's metrics were read from.

        Raises:
            DatasetError: if the dataset has no masks, or one cannot be read.
        """
        if self.dataset.masks == "none":
            raise DatasetError("the dataset has no masks")
        rules = self.reader.rules
        metrics = PixelMetrics(
            rules.limits, rules.connectivity, keep="source", source=self.reader.again, aupimo=None
        )
        for row, one, mask in self.reader.visit():
            if mask is not None:
                metrics.update(one, mask, self.reader.maps.keys[row])
        found = {row["image_id"]: row["found"] for row in metrics.per_image(fpr=0.01)}
        return PixelCurve(metrics.curve(), found)

    def picture(self, key: str, longest: int) -> tuple[Image.Image, Mask | None]:
        """Return an image in RGB, its longer side at most ``longest`` pixels, and its mask of that size.

        The mask (H, W) is None where there is none.

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
        RecordError: for foreign maps, unfinished runs, evidence of another version of a method, and users'
            methods that ``users`` lacks.
        DatasetError: if the dataset is not found.
    """

    def __init__(self, record: Record, data: Path | None = None, users: UserMethods = NOBODY) -> None:
        said = record.observation["method"]
        if not said.get("foreign") and "spec" not in said:
            raise RecordError(f"{record.method}: the record does not say where the method is; run it again")
        self._stored = StoredMaps.of(record, data, users)
        self.dataset, self.rules = self._stored.dataset, self._stored.rules

    def category(self, name: str) -> CategoryMaps:
        """Return the maps of one category.

        Raises:
            RecordError: if evidence is missing or damaged.
        """
        part = self._stored.part(name)
        return CategoryMaps(self._stored.reader(name), dict(zip(part.keys, part.hashes, strict=True)))


def picture(sample: Sample, longest: int, sha256: str, *, orient: bool) -> Image.Image:
    """Return an image in RGB, its longer side at most ``longest`` pixels.

    Raises:
        DatasetError: if the file cannot be read or does not have the given digest.
    """
    data = read(sample.image, sample.key)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DatasetError(f"{sample.key}: the file is another one than when it was observed; run again")
    image = to_rgb(decode(data, name=sample.key, orient=orient), sample.key)
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
