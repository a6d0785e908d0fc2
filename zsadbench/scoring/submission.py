"""A finished run on MVTec AD 2's private parts in the layout that its benchmark server takes.

Layout, names, number of files and kinds of images are those that MVTec's public code checks before an upload
(``MVTecAD2_public_code_utils``, ``check_and_prepare_data_for_upload.py``)::

    anomaly_images/can/test_private/000_regular.tiff                       float16, one channel
    anomaly_images/can/test_private_mixed/000_mixed.tiff
    anomaly_images_thresholded/can/test_private/000_regular.png            0 and 255

The threshold of a category is the mean plus three standard deviations over the pixels of its normal
validation images (arXiv 2503.21622), so no test image has a say in it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import RecordError, UsageError
from ..files import write_atomic
from ..images import half_tiff, probe
from ..metrics import Spread, pixel_threshold
from ..records import Record
from ..samples import Sample
from .category import MapReader
from .code import NOBODY, UserMethods
from .stored import StoredMaps

DATASET = "mvtec_ad_2_private"
FILES = {
    **{"can": 321, "fabric": 314, "fruit_jelly": 255, "rice": 277},
    **{"sheet_metal": 142, "vial": 276, "wallplugs": 232, "walnuts": 228},
}
"""Images that the server expects of each category in either part."""
PARTS = ("test_private", "test_private_mixed")
VALIDATION = "validation"
MAPS, MASKS = "anomaly_images", "anomaly_images_thresholded"

Real = NDArray[np.float64]


@dataclass(frozen=True)
class Exported:
    """What was written of one category."""

    category: str
    threshold: float
    images: Mapping[str, int]
    """Files of each part."""
    share: float
    """Part of the exported pixels that lie above the threshold."""
    scale: float
    """What maps were multiplied by, a power of two, so that half precision holds them."""

    @property
    def missing(self) -> str:
        """Which files the server will miss, in words; empty where there are as many as it expects."""
        wanted = FILES.get(self.category, 0)
        few = [f"{part} has {count} of {wanted}" for part, count in self.images.items() if count != wanted]
        return f"{self.category}: {', '.join(few)}" if few else ""


def export_submission(
    record: Record,
    out: Path,
    *,
    data: Path | None = None,
    users: UserMethods = NOBODY,
    compress: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Exported]:
    """Write the maps and thresholded masks of a run into ``out``, at the size of each image.

    Maps are those of the record's protocol, brought to the image's size bilinearly; ``compress`` deflates
    the TIFF files.  ``say`` is told of each category.

    Raises:
        UsageError: for a run on other data, or a folder that holds a submission already.
        RecordError: if evidence is missing, a category has no validation image, or ``out`` cannot be written.
    """
    if record.dataset != DATASET:
        raise UsageError(
            f"{record.path.parent}: a run on '{record.dataset}'; the server scores the private parts: "
            f"zsad run --dataset {DATASET}"
        )
    if any((out / name).exists() for name in (MAPS, MASKS)):
        raise UsageError(f"{out}: holds a submission already; give another folder with --out")
    stored = StoredMaps.of(record, data, users)
    peaks = _peaks(record)
    found = []
    for category in stored.categories:
        say(f"{category}: threshold from validation images, then the private parts")
        found.append(_export(stored.reader(category), category, out, peaks[category], compress))
    return found


def _peaks(record: Record) -> dict[str, float]:
    """Return the largest absolute map value of each category."""
    peaks: dict[str, float] = {}
    for row in record.images():
        largest = max(abs(row.map_min or 0.0), abs(row.map_max or 0.0))
        peaks[row.category] = max(peaks.get(row.category, 0.0), largest)
    return peaks


def _export(reader: MapReader, category: str, out: Path, peak: float, compress: bool) -> Exported:
    threshold = _threshold(reader, category)
    scale = 2.0 ** -math.frexp(peak)[1] if peak else 1.0
    counts = dict.fromkeys(PARTS, 0)
    above = pixels = 0
    for sample, one in _maps(reader, PARTS):
        part = sample.groups["part"]
        name = PurePosixPath(category) / part / PurePosixPath(sample.key).stem
        mask = one > threshold
        write_atomic(out / MAPS / f"{name}.tiff", half_tiff(one * scale, compress=compress))
        write_atomic(out / MASKS / f"{name}.png", _png(mask))
        counts[part] += 1
        above, pixels = above + int(mask.sum()), pixels + mask.size
    return Exported(category, threshold, counts, above / pixels if pixels else 0.0, scale)


def _threshold(reader: MapReader, category: str) -> float:
    """Return mean plus three standard deviations over all pixels of the validation images."""
    spreads = (Spread.of(one, sample.key) for sample, one in _maps(reader, (VALIDATION,)))
    threshold = pixel_threshold(spreads)
    if threshold is None:
        raise RecordError(
            f"'{category}' has no validation image in this run, so it has no threshold; add "
            f"{category}/validation/good and run again"
        )
    return threshold


def _maps(reader: MapReader, parts: tuple[str, ...]) -> Iterator[tuple[Sample, Real]]:
    """Yield the images of some parts with their maps at the size of the image."""
    for row, key in enumerate(reader.maps.keys):
        sample = reader.known[key]
        if sample.groups.get("part") in parts:
            size = probe(sample.image, name=key).size
            yield sample, _resized(reader.maps.render(row, reader.size(row) or _own(reader, row, size)), size)


def _own(reader: MapReader, row: int, size: tuple[int, int]) -> tuple[int, int] | None:
    return size if reader.rules.size == "native" else reader.maps.own_size(row)


def _resized(one: NDArray[Any], size: tuple[int, int]) -> Real:
    import cv2

    height, width = size
    return np.asarray(cv2.resize(one.astype(np.float64), (width, height), interpolation=cv2.INTER_LINEAR))


def _png(mask: NDArray[np.bool_]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, format="PNG")
    return stream.getvalue()
