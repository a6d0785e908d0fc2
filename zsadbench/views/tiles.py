"""Regions and tiles of a large image: where they lie, and how their maps are blended without seams."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, UsageError

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""

MAX_TILES = 4096
"""More tiles than this in one image are refused: their evidence alone would fill the memory."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of a region: ``rows`` and ``columns`` are (start, end) spans along each axis of the image.

    ``ramp`` is the width in pixels over which neighbouring tiles fade into each other.
    """

    region: Box
    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    ramp: float = 0.0

    @property
    def boxes(self) -> list[Box]:
        """Every tile, row by row."""
        return [(left, top, right, bottom) for top, bottom in self.rows for left, right in self.columns]

    def blend(self, maps: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the map (H, W) of the region from the maps of ``boxes``, each of its tile's size.

        Every pixel is a weighted mean of the tiles over it; weights fall to nothing towards a tile's rim,
        so that the blend is continuous wherever tiles overlap.  One map is held at a time.
        """
        left, top, right, bottom = self.region
        total = np.zeros((bottom - top, right - left), np.float32)
        down, across = fades(self.rows, self.ramp), fades(self.columns, self.ramp)
        places = [(r, c) for r in range(len(self.rows)) for c in range(len(self.columns))]
        for (r, c), one in zip(places, maps, strict=True):
            rows, columns = (slice(*np.subtract(span, start)) for span, start in self._spans(r, c))
            total[rows, columns] += one * down[r][:, None] * across[c]
        return total

    def _spans(self, row: int, column: int) -> list[tuple[tuple[int, int], int]]:
        return [(self.rows[row], self.region[1]), (self.columns[column], self.region[0])]


def tiling(size: tuple[int, int], roi: Box | None, tile: int | None, overlap: float, name: str) -> Tiling:
    """Return the tiles of an image of ``size`` (H, W); without ``tile`` the whole region is one.

    Raises:
        DatasetError: if the region leaves the image, or the image would fall into too many tiles.
    """
    height, width = size
    left, top, right, bottom = region = roi or (0, 0, width, height)
    if right > width or bottom > height:
        raise DatasetError(
            f"{name}: the region {left},{top},{right - left},{bottom - top} leaves the image of {width} x "
            f"{height} pixels; give another --roi x,y,w,h"
        )
    if tile is None:
        return Tiling(region, ((top, bottom),), ((left, right),))
    rows, columns = spans(top, bottom, tile, overlap), spans(left, right, tile, overlap)
    if len(rows) * len(columns) > MAX_TILES:
        raise DatasetError(
            f"{name}: {width} x {height} pixels fall into {len(rows) * len(columns)} tiles of {tile}, more "
            f"than {MAX_TILES}; give a larger --tile or a smaller --overlap"
        )
    return Tiling(region, rows, columns, tile * overlap)


def spans(start: int, end: int, tile: int, overlap: float) -> tuple[tuple[int, int], ...]:
    """Return spans of ``tile`` pixels that cover start to end, evenly spread, both ends flush.

    Neighbours share at least ``overlap`` (a fraction) of a tile; an axis shorter than a tile is one span.
    """
    rest = end - start - tile
    if rest <= 0:
        return ((start, end),)
    # A tile that starts elsewhere than its neighbour moves on by at least one pixel.
    count = 1 + math.ceil(rest / max(1.0, tile * (1 - overlap)))
    places = [start + round(rest * number / (count - 1)) for number in range(count)]
    return tuple((place, place + tile) for place in places)


def fades(spans: tuple[tuple[int, int], ...], ramp: float) -> list[NDArray[np.float32]]:
    """Return the weights of each span along its axis; at every pixel they sum to 1.

    A weight rises over ``ramp`` pixels from a span's end as a squared sine.
    """
    first, last = spans[0][0], spans[-1][1]
    total = np.zeros(last - first)
    weights = []
    for start, end in spans:
        place = np.arange(end - start) + 0.5
        depth = np.minimum(place, place[::-1])  # distance to the nearer end
        weights.append(np.sin(np.pi / 2 * np.minimum(1, depth / max(ramp, 0.5))) ** 2)
        total[start - first : end - first] += weights[-1]
    return [
        (weight / total[start - first : end - first]).astype(np.float32)
        for weight, (start, end) in zip(weights, spans, strict=True)
    ]


def parse_roi(text: str) -> Box:
    """Return the region that ``x,y,w,h`` means.

    Raises:
        UsageError: if it is not four whole numbers, or empty.
    """
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--roi {text}: give four whole numbers, as in --roi 100,50,640,480") from None
    if x < 0 or y < 0 or width < 1 or height < 1:
        raise UsageError(
            f"--roi {text}: x and y are counted from 0 at the top left, width and height are 1 or more"
        )
    return x, y, x + width, y + height
