"""What the numbers of a record would have been on other test images of the same kind.

Image metrics are drawn from the image scores in ``images.csv``, pixel metrics from the stored
evidence: the maps and masks of the record's protocol are made again and counted into histograms.
Draws of pixel metrics are kept beside the record; the file may be deleted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RecordError, ZsadError
from ..files import digest_of, write_atomic
from ..metrics import (
    FEW,
    FEWEST,
    MAD,
    REPLICATES,
    SEVEN,
    PixelHistograms,
    PixelMetrics,
    Reals,
    bin_edges,
    centred,
    image_metrics,
    image_replicates,
    more_image_metrics,
    resample,
)
from ..records import IMAGES_CSV, RESCORE, Grouping, ImageRow, Record, is_metric
from ..scoring import NOBODY, UserMethods

if TYPE_CHECKING:
    from ..scoring import MapReader

Place = tuple[str, str]
"""A category and a metric."""

_VERSION = 2
"""Raised whenever stored draws would come out otherwise."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Images:
    """The images of one category, sorted by key."""

    keys: tuple[str, ...]
    labels: NDArray[np.bool_]
    scores: NDArray[np.float64]
    groups: tuple[str, ...] = ()
    """What is drawn as a whole: the group of each image; empty where each image is drawn by itself."""

    @property
    def fewest(self) -> int:
        """Images (or groups with such images) of the rarer kind, normal or anomalous."""
        names = np.array(self.groups or self.keys)
        return min(np.unique(names[kind]).size for kind in (self.labels, ~self.labels))

    def weights(self, category: str, replicates: int) -> Reals:
        """Return how often each image is in each draw (B, n)."""
        return resample(category, self.labels, replicates, self.groups)


@dataclass(frozen=True)
class Draws:
    """Every metric of a record in every draw, centred on the exact value."""

    images: Mapping[str, Images]
    values: Mapping[Place, Reals] = field(repr=False)
    notes: tuple[str, ...] = ()
    """What has no interval and why, and what is doubtful."""
    unit: str = "image"
    """What was drawn."""


def draws_of(
    record: Record,
    *,
    pixels: bool = True,
    replicates: int = REPLICATES,
    grouping: Grouping | None = None,
    workers: int | None = None,
    users: UserMethods = NOBODY,
    say: Callable[[str], None] = lambda line: None,
) -> Draws:
    """Return the draws of a record; pixel metrics only with ``pixels``, which may take a while.

    With a ``grouping`` whole groups are drawn; an image in none is a group of its own.  Categories with
    fewer than five images (groups) of either kind have none.  What keeps pixel metrics from
    being drawn (foreign maps, evidence or images that are gone) becomes a note.  ``say`` is told
    before maps are made again.

    Raises:
        RecordError: if ``images.csv`` cannot be read or does not give the record's image metrics.
    """
    rows = record.images()
    unit = grouping.name if grouping else "image"
    images = _images(rows, grouping.of(rows, record.path.parent) if grouping else None)
    _check(record, images)
    large = {name: found for name, found in images.items() if found.fewest >= FEWEST}
    weights = {name: found.weights(name, replicates) for name, found in large.items()}
    notes = _doubts(images, f"groups of '{unit}'" if grouping else "images")
    values: dict[Place, Reals] = {}
    more = more_image_metrics(record.metrics)
    for name, found in large.items():
        fixed = record.threshold(name, "image_classf1")
        drawn = image_replicates(found.scores, found.labels, weights[name], more, fixed)
        values |= {(name, metric): draws for metric, draws in drawn.items()}
    if pixels and large and _has_pixels(record):
        try:
            kept = _file(record, replicates, large)
            values |= _stored(record, kept, replicates) or _keep(
                record, kept, replicates, _pixel_draws(record, large, weights, workers, users, say)
            )
        except ZsadError as error:
            notes.append(f"no interval of pixel metrics of {record.method}: {error}")
    if record.legacy:
        notes.append("AUPRO from 200 thresholds has no interval")
    defined = {place: draws for place, draws in values.items() if not np.isnan(draws).any()}
    return Draws(images, defined | _means_of_seven(large, defined), tuple(notes), unit)


def _means_of_seven(names: Iterable[str], values: Mapping[Place, Reals]) -> dict[Place, Reals]:
    """Return ``mad`` in every draw of the categories in which all seven are drawn."""
    drawn = {name: [values[name, metric] for metric in SEVEN if (name, metric) in values] for name in names}
    return {(name, MAD): np.mean(own, axis=0) for name, own in drawn.items() if len(own) == len(SEVEN)}


def _images(rows: list[ImageRow], groups: Mapping[str, str] | None) -> dict[str, Images]:
    found: dict[str, list[ImageRow]] = {}
    for row in sorted(rows, key=lambda row: row.key):
        found.setdefault(row.category, []).append(row)
    return {
        name: Images(
            tuple(row.key for row in same),
            np.array([row.anomalous for row in same], np.bool_),
            np.array([np.nan if row.image_score is None else row.image_score for row in same]),
            () if groups is None else tuple(groups.get(row.key, row.key) for row in same),
        )
        for name, same in found.items()
    }


def _check(record: Record, images: Mapping[str, Images]) -> None:
    for category in record.categories:
        found = images.get(category)
        said = record.value(category, "image_auroc")
        now = image_metrics(found.scores, found.labels)["image_auroc"] if found else None
        if found is None or (said is None) != (now is None) or abs((said or 0) - (now or 0)) > _ROUNDING:
            raise RecordError(
                f"{record.path.parent / IMAGES_CSV}: its scores of '{category}' are not those of the record; "
                f"{RESCORE}."
            )


def _doubts(images: Mapping[str, Images], units: str) -> list[str]:
    none = [name for name, found in images.items() if found.fewest < FEWEST]
    doubtful = [name for name, found in images.items() if FEWEST <= found.fewest < FEW]
    notes = [
        f"no interval with fewer than {FEWEST} normal or anomalous {units}, nor for a mean with such a "
        f"category: {', '.join(none)}"
    ]
    more = [f"rough interval, fewer than {FEW} normal or anomalous {units}: {', '.join(doubtful)}"]
    return (notes if none else []) + (more if doubtful else [])


def _has_pixels(record: Record) -> bool:
    return any(
        metric.startswith("pixel_") and is_metric(metric) and value is not None
        for row in record.categories.values()
        for metric, value in row.items()
    )


def _pixel_draws(
    record: Record,
    images: Mapping[str, Images],
    weights: Mapping[str, Reals],
    workers: int | None,
    users: UserMethods,
    say: Callable[[str], None],
) -> dict[Place, Reals]:
    """Return the draws of every pixel metric a category of ``images`` has."""
    from ..scoring import StoredMaps

    values: dict[Place, Reals] = {}
    stored = StoredMaps.of(record, users=users)
    for name in stored.categories:
        if name in images and record.value(name, "pixel_auroc") is not None:
            say(f"{record.dataset}: {record.method}: maps of {name} are made again for intervals")
            counted = _count(record, name, stored.reader(name), workers)
            keys = images[name].keys
            limits = () if record.legacy else tuple(record.protocol["aupro_limits"])
            spro = stored.rules.spro_limits
            drawn = counted.replicates(keys, weights[name], limits, spro_limits=spro)
            binned = counted.replicates(keys, np.ones((1, len(keys))), limits, spro_limits=spro)
            values |= {
                (name, metric): centred(draws, record.value(name, metric), float(binned[metric][0]))
                for metric, draws in drawn.items()
            }
    return values


def _count(record: Record, category: str, reader: MapReader, workers: int | None) -> PixelHistograms:
    """Return the histograms of a category; maps that do not give the record's numbers are refused."""
    from ..scoring import require_same

    keys = reader.maps.keys
    connectivity = record.protocol["connectivity"]
    exact = PixelMetrics((), connectivity, keep="source", source=reader.again, aupimo=None)
    for row, one, mask in reader.visit(workers):
        if mask is not None:
            exact.update(one, mask, keys[row])
    require_same(record, category, exact.compute())
    fixed = record.threshold(category, "pixel_segf1")
    counted = PixelHistograms(bin_edges(exact.curve()), connectivity, fixed)
    for row, one, mask in reader.visit(workers):
        if mask is not None:
            counted.add(one, mask, keys[row], reader.defects(row))
    return counted


def _file(record: Record, replicates: int, images: Mapping[str, Images]) -> Path:
    """Return where the draws are kept; those of groups have a name of their own."""
    groups = {name: found.groups for name, found in images.items() if found.groups}
    kind = f"-{digest_of([[*groups.items()]])[:8]}" if groups else ""
    return record.path.parent / f"bootstrap-{replicates}{kind}.npz"


def _about(record: Record) -> dict[str, Any]:
    return {"version": _VERSION, "record": record.digest}


def _stored(record: Record, file: Path, replicates: int) -> dict[Place, Reals] | None:
    """Return the draws kept beside a record; None where there are none or they are not its own."""
    with suppress(Exception):  # whatever is wrong with the file, the draws are made anew
        with np.load(file, allow_pickle=False) as archive:
            about, draws = json.loads(bytes(archive["about"])), archive["draws"]
        places = [(category, metric) for category, metric in about.pop("places")]
        if about == _about(record) and draws.shape == (len(places), replicates):
            return dict(zip(places, draws, strict=True))
    return None


def _keep(record: Record, file: Path, replicates: int, values: dict[Place, Reals]) -> dict[Place, Reals]:
    about = json.dumps(_about(record) | {"places": list(values)}, ensure_ascii=False)
    stream = io.BytesIO()
    draws = np.array([*values.values()]).reshape(-1, replicates)
    np.savez(stream, about=np.frombuffer(about.encode(), np.uint8), draws=draws)
    with suppress(RecordError):  # what cannot be written only costs time
        write_atomic(file, stream.getvalue())
    return values
