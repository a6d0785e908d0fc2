"""The tables beside a record: CSV that reads back exactly."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..text import csv_cell, csv_text
from .files import RESCORE, read_text

CATEGORIES_CSV, IMAGES_CSV = "categories.csv", "images.csv"
IMAGE_COLUMNS = ("key", "category", "anomalous", "image_score", "map_min", "map_max")
MASK_COLUMN = "mask_sha256"
"""A further column of ``images.csv``: the digest of the mask that an image was scored with."""
GROUP_PREFIX = "group_"
"""What further columns of ``images.csv`` begin with that tell what an image belongs to."""


@dataclass(frozen=True)
class ImageRow:
    """One image of a record; ``map_min`` and ``map_max`` are None where there is no map."""

    key: str
    category: str
    anomalous: bool
    image_score: float | None
    map_min: float | None
    map_max: float | None
    groups: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What it belongs to beside its category, by name of the group."""


def read_images(folder: Path) -> list[ImageRow]:
    """Return the rows of ``images.csv`` in a protocol's folder.

    Raises:
        RecordError: if the file is missing or has a row that cannot be read.
    """
    path = folder / IMAGES_CSV
    reader = csv.DictReader(io.StringIO(read_text(path, RESCORE), newline=""))
    try:
        if missing := set(IMAGE_COLUMNS) - set(reader.fieldnames or ()):
            raise RecordError(f"{path}: the column '{min(missing)}' is missing; {RESCORE}.")
        return [_image_row(row) for row in reader]
    except (TypeError, ValueError, KeyError, csv.Error):
        raise RecordError(f"{path}: line {reader.line_num} cannot be read; {RESCORE}.") from None


def read_masks(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every mask of ``images.csv`` by the image's key; empty where it has none.

    Raises:
        RecordError: if the file is missing or has a row that cannot be read.
    """
    path = folder / IMAGES_CSV
    reader = csv.DictReader(io.StringIO(read_text(path, RESCORE), newline=""))
    try:
        return {csv_text(row["key"]): row[MASK_COLUMN] for row in reader if row.get(MASK_COLUMN)}
    except (KeyError, csv.Error):
        raise RecordError(f"{path}: line {reader.line_num} cannot be read; {RESCORE}.") from None


def table(path: Path, first: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as CSV: the columns ``first``, which every row must have, then all others."""
    rows = list(rows)
    columns = list(dict.fromkeys([*first, *(key for row in rows for key in row)]))

    def cells(row: Mapping[str, Any]) -> list[str]:
        if missing := [name for name in first if name not in row]:
            raise RecordError(f"{path}: a row has no '{missing[0]}'; correct what is written.")
        return [_cell(row.get(name)) for name in columns]

    return as_csv(chain([columns], map(cells, rows))).getvalue()


def as_csv(lines: Iterable[Iterable[Any]], errors: str = "strict") -> io.BytesIO:
    """Return lines of cells as CSV, encoded as they come: text would take four bytes a character."""
    content = io.BytesIO()
    text = io.TextIOWrapper(content, "utf-8", errors, newline="", write_through=True)
    csv.writer(text, lineterminator="\n").writerows(lines)
    text.detach()
    return content


def _cell(value: Any) -> str:
    """Return a value as text that reads back exactly; null is empty, a truth value is 0 or 1."""
    if isinstance(value, str):
        return csv_cell(value)
    if hasattr(value, "item"):
        value = value.item()
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def group_columns(groups: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of ``images.csv`` that tell what an image belongs to."""
    return {f"{GROUP_PREFIX}{name}": value for name, value in groups.items()}


def _image_row(row: Mapping[str, str]) -> ImageRow:
    def number(name: str) -> float | None:
        if row[name] and not math.isfinite(float(row[name])):
            raise ValueError(name)
        return float(row[name]) if row[name] else None

    label = {"0": False, "1": True}[row["anomalous"]]
    score, low, high = (number(name) for name in ("image_score", "map_min", "map_max"))
    columns = (name for name in row if name and name.startswith(GROUP_PREFIX))
    groups = {name.removeprefix(GROUP_PREFIX): csv_text(row[name]) for name in columns if row[name]}
    return ImageRow(csv_text(row["key"]), csv_text(row["category"]), label, score, low, high, groups)
