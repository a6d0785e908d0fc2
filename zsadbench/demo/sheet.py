"""The contact sheet: one faulty image of every category, its mask and the map of every method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import RecordError
from ..records import Record, load_records
from ..samples import Sample
from ..views import CategoryMaps, Replay, heat

TILE, GAP, LETTER = 112, 4, 14
"""Side of a picture, space between pictures and height of letters, in pixels."""


def contact_sheet(results: Path, data: Path | None = None) -> Image.Image:
    """Return a sheet of the newest record of every method below ``results``.

    A row each for the images, their masks and every method; a column for each category, of which an
    anomalous image is shown, another fault in each.  A map's colours run from its smallest to its
    largest value.

    Raises:
        RecordError: if there is no record with stored evidence, or the records are of several datasets.
    """
    records = newest(load_records([results]))
    if not records:
        raise RecordError(f"{results}: holds no record; make some with zsad run --dataset demo")
    datasets = {record.observation["dataset"]["id"] for record in records}
    if len(datasets) > 1:
        raise RecordError(
            f"{results}: holds records of {', '.join(sorted(datasets))}; name the folder of one"
        )
    replays = [Replay(record, data) for record in records]
    categories = replays[0].dataset.categories
    chosen = [example(replays[0].dataset.samples, name, turn) for turn, name in enumerate(categories)]
    columns = [
        column([replay.category(name) for replay in replays], key)
        for name, key in zip(categories, chosen, strict=True)
    ]
    names = [record.method for record in records]
    return mounted(columns, [name.replace("_", " ") for name in categories], ["image", "mask", *names])


def newest(records: Sequence[Record]) -> list[Record]:
    """Return the last made record of each method, by name; one of random weights only where all are."""
    shown = [record for record in records if not record.untrained] or records
    by_method = {record.method: record for record in sorted(shown, key=lambda r: str(r.created))}
    return [by_method[name] for name in sorted(by_method)]


def example(samples: Sequence[Sample], category: str, turn: int) -> str:
    """Return the key of an anomalous image; ``turn`` picks the fault."""
    keys = {s.specie: s.key for s in samples if s.category == category and s.anomalous}
    return list(keys.values())[turn % len(keys)]


def column(maps: Sequence[CategoryMaps], key: str) -> list[Image.Image]:
    """Return the image, its mask and each method's map."""
    photo, mask = maps[0].picture(key, 4096)
    shape = np.zeros((photo.height, photo.width), np.uint8) if mask is None else mask.astype(np.uint8) * 255
    found = [m.map(key, (photo.height, photo.width)) for m in maps]
    coloured = [Image.fromarray(heat(values, (float(values.min()), float(values.max())))) for values in found]
    tiles = [photo, Image.fromarray(shape).convert("RGB"), *coloured]
    return [tile.resize((TILE, TILE), Image.Resampling.BICUBIC) for tile in tiles]


def mounted(
    columns: Sequence[Sequence[Image.Image]], heads: Sequence[str], labels: Sequence[str]
) -> Image.Image:
    """Return the pictures on one white sheet, names of columns above and of rows to the left."""
    font = ImageFont.load_default(LETTER)
    left = GAP * 2 + round(max(font.getlength(label) for label in labels))
    top, step = LETTER * 2, TILE + GAP
    sheet = Image.new("RGB", (left + step * len(columns), top + step * len(labels)), "white")
    pen = ImageDraw.Draw(sheet)
    for x, (head, tiles) in enumerate(zip(heads, columns, strict=True)):
        pen.text((left + x * step + TILE / 2, top / 2), head, "black", font, "mm")
        for y, tile in enumerate(tiles):
            sheet.paste(tile, (left + x * step, top + y * step))
    for y, label in enumerate(labels):
        pen.text((left - GAP, top + y * step + TILE / 2), label, "black", font, "rm")
    return sheet
