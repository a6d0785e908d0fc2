"""Half-precision TIFF files, which Pillow does not write: one channel, one strip."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHORT, _LONG = 3, 4
_HEADER = struct.pack("<2sHI", b"II", 42, 8)


def half_tiff(values: NDArray[Any], *, compress: bool = False) -> bytes:
    """Return a map (H, W) as a TIFF file of float16, little-endian, deflated with ``compress``.

    Source: TIFF revision 6.0, sections 2 and 8 (SampleFormat 3 is IEEE floating point).
    """
    height, width = values.shape
    strip = np.ascontiguousarray(values, dtype="<f2").tobytes()
    if compress:
        strip = zlib.compress(strip)
    tags = [
        (256, _LONG, width),
        (257, _LONG, height),
        (258, _SHORT, 16),  # bits per sample
        (259, _SHORT, 8 if compress else 1),  # deflate, or none
        (262, _SHORT, 1),  # black is zero
        (273, _LONG, 0),  # where the strip begins: after the header, filled in below
        (277, _SHORT, 1),  # samples per pixel
        (278, _LONG, height),  # rows per strip
        (279, _LONG, len(strip)),
        (339, _SHORT, 3),  # floating point
    ]
    start = len(_HEADER) + 2 + 12 * len(tags) + 4
    entries = (
        struct.pack("<HHII", tag, kind, 1, start if tag == 273 else value) for tag, kind, value in tags
    )
    return b"".join([_HEADER, struct.pack("<H", len(tags)), *entries, struct.pack("<I", 0), strip])
