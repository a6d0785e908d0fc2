"""Other looks at a record: its numbers by a group of images, and with one score per group.

Image metrics come from ``images.csv``; pixel metrics by group from the stored evidence, whose maps are
rendered again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RecordError, ZsadError
from ..metrics import NEEDS_NORMALS, PixelMetrics, image_metrics, image_reasons, more_image_metrics
from ..records import Grouping, ImageRow, Record, is_metric
from .code import NOBODY, UserMethods
from .stored import StoredMaps

_DRIFT = 1e-4
"""How far maps made again may move a metric: another processor rounds otherwise."""

Row = dict[str, Any]


@dataclass(frozen=True)
class View(Record):
    """A record whose rows stand for something else: values of a group, or groups in place of images."""

    whole: Record | None = None
    """The record that it is made of."""
    rows: tuple[ImageRow, ...] = ()

    def images(self) -> list[ImageRow]:
        """Return the scores behind the rows."""
        return list(self.rows)


def merged(record: Record, grouping: Grouping) -> View:
    """Return image metrics with one score per group: the highest of its images, anomalous if any is.

    Real-IAD's sample-level metrics are of this kind (views of an object).  An image in no group stands for
    itself.  There are no pixel metrics.

    Raises:
        RecordError: if ``images.csv`` cannot be read, or nothing is in a group.
    """
    rows = record.images()
    groups = grouping.of(rows, record.path.parent)
    together: dict[tuple[str, str], list[ImageRow]] = defaultdict(list)
    for row in rows:
        together[row.category, groups.get(row.key, row.key)].append(row)
    merged_rows = [_one(category, name, same) for (category, name), same in together.items()]
    more = [metric for metric in more_image_metrics(record.metrics) if metric not in NEEDS_NORMALS]
    categories = [
        _image_row(category, [row for row in merged_rows if row.category == category], more)
        for category in record.categories
    ]
    content = {**record.content, "categories": categories, "warnings": []}
    return View(record.path, content, record.edited, record.notes, record, tuple(merged_rows))


def _one(category: str, name: str, same: Sequence[ImageRow]) -> ImageRow:
    scores = [row.image_score for row in same if row.image_score is not None]
    anomalous = any(row.anomalous for row in same)
    return ImageRow(f"{category}/{name}", category, anomalous, max(scores, default=None), None, None)


def _image_row(
    category: str, rows: Sequence[ImageRow], more: Sequence[str], threshold: float | None = None
) -> Row:
    """Return the numbers that image scores alone give."""
    labels = np.array([row.anomalous for row in rows], dtype=bool)
    scores = np.array([np.nan if row.image_score is None else row.image_score for row in rows])
    values = image_metrics(scores, labels, more, threshold)
    counts = {"normal": int((~labels).sum()), "anomalous": int(labels.sum()), "failed": 0}
    return {"category": category, **counts, **values, "reasons": image_reasons(values)}


def by_group(
    record: Record,
    grouping: Grouping,
    rows: Sequence[ImageRow] | None = None,
    *,
    pixels: bool = True,
    workers: int | None = None,
    users: UserMethods = NOBODY,
    say: Callable[[str], None] = lambda line: None,
) -> View:
    """Return the record with a row per value of a group, each the mean over the categories.

    Normal images in no group stand beside every value: MVTec LOCO's good images beside each kind of anomaly.
    Anomalous images in no group are left out.  ``rows`` are those of ``images.csv``, where they were read
    already.  Pixel metrics are left out, with a note, where the
    evidence is gone, and of methods of users that ``users`` lacks.

    Raises:
        RecordError: if ``images.csv`` cannot be read, or nothing is in a group.
    """
    rows = record.images() if rows is None else rows
    groups = grouping.of(rows, record.path.parent)
    more = more_image_metrics(record.metrics)
    found: dict[str, dict[str, Row]] = {}
    members: dict[str, dict[str, set[str]]] = {}
    for category in record.categories:
        own = [row for row in rows if row.category == category]
        members[category] = _members(own, groups)
        fixed = record.threshold(category, "image_classf1")
        found[category] = {
            value: _image_row(category, [row for row in own if row.key in keys], more, fixed)
            for value, keys in members[category].items()
        }
    notes = list(record.notes)
    if pixels and any(metric.startswith("pixel_") for metric in record.metrics):
        try:
            for category, values in _pixel_rows(record, members, workers, users, say):
                for value, metrics in values.items():
                    found[category][value] |= metrics
        except ZsadError as error:
            notes.append(f"no pixel metrics of {record.method} by {grouping.name}: {error}")
    names = sorted({value for each in found.values() for value in each})
    means = [_mean(name, [each[name] for each in found.values() if name in each]) for name in names]
    content = {**record.content, "categories": means, "warnings": []}
    return View(record.path, content, record.edited, tuple(notes), record)


def _members(rows: Sequence[ImageRow], groups: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the keys of the images behind each value of one category."""
    shared = {row.key for row in rows if row.key not in groups and not row.anomalous}
    keys: dict[str, set[str]] = defaultdict(lambda: set(shared))
    for row in rows:
        if row.key in groups:
            keys[groups[row.key]].add(row.key)
    return dict(keys)


def _pixel_rows(
    record: Record,
    members: Mapping[str, Mapping[str, set[str]]],
    workers: int | None,
    users: UserMethods,
    say: Callable[[str], None],
) -> Iterable[tuple[str, dict[str, Row]]]:
    """Yield the pixel metrics of each value in each category that has some."""
    stored = StoredMaps.of(record, users=users)
    limits = () if record.legacy else tuple(record.protocol["aupro_limits"])
    connectivity = record.protocol["connectivity"]
    for category in stored.categories:
        if category not in members or record.value(category, "pixel_auroc") is None:
            continue
        say(f"{record.dataset}: {record.method}: maps of {category} are made again for groups")
        reader = stored.reader(category)
        fixed = record.threshold(category, "pixel_segf1")
        parts = {
            value: PixelMetrics(
                limits,
                connectivity,
                keep="source",
                source=reader.again,
                threshold=fixed,
                spro_limits=stored.rules.spro_limits,
            )
            for value in members[category]
        }
        whole = PixelMetrics((), connectivity, keep="source", source=reader.again, aupimo=None)
        for row, one, mask in reader.visit(workers):
            key = reader.maps.keys[row]
            if mask is not None:
                whole.update(one, mask, key, label=reader.known[key].anomalous)
                defects = reader.defects(row)
                for value, keys in members[category].items():
                    if key in keys:
                        label = reader.known[key].anomalous
                        parts[value].update(one, mask, key, label=label, defects=defects)
        require_same(record, category, whole.compute())
        yield category, {value: part.compute() for value, part in parts.items()}


def require_same(record: Record, category: str, again: Mapping[str, float | None]) -> None:
    """Refuse maps made again that do not give the record's numbers.

    Raises:
        RecordError: if evidence, masks or method changed since.
    """
    for metric in ("pixel_auroc", "pixel_ap"):
        said, now = record.value(category, metric), again[metric]
        if said is None or now is None or abs(said - now) > _DRIFT:
            raise RecordError(
                f"{record.path}: {metric} of '{category}' is {said} but {now} when made again from evidence: "
                "evidence, masks or method changed since; repeat zsad score"
            )


def _mean(value: str, rows: Sequence[Row]) -> Row:
    """Return one row of the unweighted means over categories; a reason where none has a value."""
    counts = {name: sum(row[name] for row in rows) for name in ("normal", "anomalous", "failed")}
    metrics = dict.fromkeys(key for row in rows for key in row if is_metric(key))
    means: Row = {}
    for metric in metrics:
        numbers = [row[metric] for row in rows if row.get(metric) is not None]
        means[metric] = math.fsum(numbers) / len(numbers) if numbers else None
    reasons = {name: why for row in rows for name, why in row["reasons"].items() if means.get(name) is None}
    return {"category": value, **counts, **means, "reasons": reasons}
