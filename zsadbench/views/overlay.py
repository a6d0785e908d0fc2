"""Anomaly maps in colour: over the photograph, with a scale bar, as PNG or as small pictures.

The colours are viridis (van der Walt and Smith, 2015): their lightness rises evenly, so that low and high
can be told apart with any colour vision, and in grey print.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from scipy.ndimage import binary_dilation, binary_erosion

from ..files import write_atomic

Scale = tuple[float, float]
"""Map values of the first and the last colour."""

Mask = NDArray[np.bool_]

LONGEST = 512
"""Longer side of a small picture in pixels: twice what a page shows, so that it can be enlarged."""

OPACITY = 0.5
BAND = 256
"""Rows coloured at once: a large map needs no large temporaries."""

MARGIN, PADDING, BAR = 0.6, 0.4, 0.8
"""Around and inside the scale's panel, and the height of its bar, in heights of its letters."""


@cache
def palette() -> NDArray[np.uint8]:
    """Return the 256 colours (256, 3), dark purple to yellow."""
    steps = np.arange(256, dtype=np.uint8)[:, None]
    blue_first: NDArray[np.uint8] = np.asarray(cv2.applyColorMap(steps, cv2.COLORMAP_VIRIDIS), np.uint8)
    return blue_first[:, 0, ::-1]


def ramp() -> str:
    """Return the colours of maps as a gradient of CSS."""
    stops = ", ".join(f"#{bytes(colour).hex()}" for colour in palette()[::15])
    return f"linear-gradient(to right, {stops})"


def heat(values: NDArray[np.float32], scale: Scale) -> NDArray[np.uint8]:
    """Return ``values`` (H, W) as colours (H, W, 3); what lies outside ``scale`` has its end's colour."""
    low, high = scale
    steps = 255 / (high - low) if high > low else 0.0
    colours = np.empty((*values.shape, 3), np.uint8)
    for top in range(0, len(values), BAND):
        places = (values[top : top + BAND].astype(np.float32) - low) * steps
        colours[top : top + BAND] = palette()[np.rint(places.clip(0, 255)).astype(np.uint8)]
    return colours


def overlay(
    photo: Image.Image, values: NDArray[np.float32], scale: Scale, corner: tuple[int, int] = (0, 0)
) -> Image.Image:
    """Return an RGB ``photo`` under the colours of ``values`` (h, w), whose top left lies at ``corner``.

    Below the map the photograph is grey, so that colour means the map alone; elsewhere it is untouched.
    """
    left, top = corner
    height, width = values.shape
    under = photo.crop((left, top, left + width, top + height)).convert("L").convert("RGB")
    picture = photo.copy()
    picture.paste(Image.blend(under, Image.fromarray(heat(values, scale)), OPACITY), (left, top))
    return picture


def resized(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return a map (h, w) brought to ``size`` (H, W), bilinear."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class _Panel:
    """The scale's panel: its size, its letters, the numbers below the bar and the caption above it."""

    width: int
    height: int
    letter: float
    texts: tuple[str, str, str]
    caption: str = ""


def draw_scale(
    picture: Image.Image,
    values: NDArray[np.float32],
    scale: Scale,
    corner: tuple[int, int] = (0, 0),
    caption: str = "",
) -> bool:
    """Draw a scale bar with numbers into the map's part of ``picture``; tell whether there was room.

    It goes to the corner of the map where it covers the lowest values, so that it hides no finding.  The
    ``caption`` stands above the bar, its end cut where it is too long.
    """
    panel = _panel(values.shape, scale, caption)
    if panel is None:
        return False
    left, top = _emptiest_corner(values, panel)
    box = (corner[0] + left, corner[1] + top)
    picture.paste(_drawn(panel), box)
    return True


def _panel(size: tuple[int, ...], scale: Scale, caption: str) -> _Panel | None:
    """Return the panel for a map of ``size`` (h, w): at most 3/4 as wide and 2/5 as high, else None."""
    height, width = size
    letter = max(9.0, min(height, width) / 36)
    low, high = scale
    texts = (f"{low:.3g}", f"{(low + high) / 2:.3g}", f"{high:.3g}")
    lengths = [_font(letter).getlength(text) for text in texts]
    room = 2 * MARGIN * letter
    widest = 0.75 * width - room
    written = _cut(_drawable(caption), widest - 2 * PADDING * letter, letter)
    wide = max(
        0.3 * width, sum(lengths) + 3 * letter, _font(letter).getlength(written) + 2 * PADDING * letter
    )
    line = 1.2 + PADDING if written else 0.0
    high_px = (BAR + 1.2 + 3 * PADDING + line) * letter
    panel = _Panel(round(wide), round(high_px), letter, texts, written)
    return panel if panel.width <= math.ceil(widest) and panel.height + room <= 0.4 * height else None


def _drawable(text: str) -> str:
    """Return text in the letters that the built-in font has; others become escapes."""
    return "".join(c if c.isascii() and c.isprintable() else ascii(c)[1:-1] for c in text)


def _cut(text: str, room: float, letter: float) -> str:
    """Return as much of ``text`` as fits into ``room`` pixels, with dots for the rest."""
    length = _font(letter).getlength
    if length(text) <= room:
        return text
    kept = text
    while kept and length(f"{kept}...") > room:
        kept = kept[:-1]
    return f"{kept}..." if kept else ""


def _font(letter: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(letter)


def _drawn(panel: _Panel) -> Image.Image:
    """Return the panel: the caption, the colours from low to high, and below them three numbers."""
    letter, width = panel.letter, panel.width
    padding = round(PADDING * letter)
    picture = Image.new("RGB", (width, panel.height), "black")
    draw, font = ImageDraw.Draw(picture), _font(letter)
    top = padding
    if panel.caption:
        draw.text((padding, padding), panel.caption, fill="white", font=font)
        top += round(1.2 * letter) + padding
    inner = width - 2 * padding
    colours = palette()[np.linspace(0, 255, inner).round().astype(int)]
    bar = np.repeat(colours[None], round(BAR * letter), axis=0)
    picture.paste(Image.fromarray(bar), (padding, top))
    line = top + padding + round(BAR * letter)
    for text, share in zip(panel.texts, (0.0, 0.5, 1.0), strict=True):
        length = font.getlength(text)
        draw.text((padding + share * (inner - length), line), text, fill="white", font=font)
    return picture


def _emptiest_corner(values: NDArray[np.float32], panel: _Panel) -> tuple[int, int]:
    height, width = values.shape
    margin = round(MARGIN * panel.letter)
    corners = [
        (left, top)
        for top in (height - panel.height - margin, margin)
        for left in (width - panel.width - margin, margin)
    ]
    highest = [
        float(values[top : top + panel.height, left : left + panel.width].max()) for left, top in corners
    ]
    return corners[int(np.argmin(highest))]


def write_png(path: Path, picture: Image.Image, about: Mapping[str, str] | None = None) -> None:
    """Write ``picture``, whole or not at all, with ``about`` as its text entries.

    Raises:
        RecordError: if the file cannot be written.
    """
    info = PngInfo()
    for key, text in (about or {}).items():
        info.add_itxt(key, text)
    stream = io.BytesIO()
    picture.save(stream, "PNG", pnginfo=info, compress_level=3)
    write_atomic(path, stream.getvalue())


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
