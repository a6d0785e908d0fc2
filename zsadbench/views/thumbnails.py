"""Small pictures for people: a photograph or a map over it, with the outline of the ground truth."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from .overlay import Scale, overlay, resized

Mask = NDArray[np.bool_]

LONGEST = 512
"""Longer side of a small picture in pixels: twice what a page shows, so that it can be enlarged."""


def with_map(photo: Image.Image, values: NDArray[np.float32], scale: Scale) -> Image.Image:
    """Return an RGB ``photo`` under the colours of a map of any size."""
    return overlay(photo, resized(values, (photo.height, photo.width)), scale)


def outlined(picture: Image.Image, mask: Mask | None) -> Image.Image:
    """Return an RGB ``picture`` with the outline of ``mask`` (h, w): white, edged in black.

    Two lines, because one colour alone is lost on a photograph or map of that colour.
    """
    if mask is None or not mask.any():
        return picture
    pixels = np.array(picture)
    white = binary_dilation(mask) & ~mask
    black = binary_dilation(mask, iterations=2) & ~mask & ~white
    if not white.any():  # the whole picture is anomalous
        white = mask & ~binary_erosion(mask)
    pixels[black], pixels[white] = 0, 255
    return Image.fromarray(pixels)


def encoded(picture: Image.Image) -> bytes:
    """Return a picture as WebP; equal pictures give equal bytes."""
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=75, method=4)
    return stream.getvalue()
