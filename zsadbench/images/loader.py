"""The shared loaders: image files become network input, decoded in threads ahead of the encoder.

Every file is read, hashed and decoded once and resized once per distinct `Preprocess` (once for two that
cannot differ), with the arithmetic of the reference transforms (PIL resize with antialias).  ``decode``
and ``probe``, the masks and the scan of a whole dataset are offered here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError
from ..inputs import Preprocess
from .ahead import ahead as worked_ahead
from .decoding import (
    MAX_PIXELS,
    SIXTEEN_BIT,
    ImageInfo,
    decode,
    default_workers,
    frame_size,
    frames_of,
    probe,
    read,
)
from .masks import mask_at, read_mask
from .scan import scan

if TYPE_CHECKING:
    from ..samples import Sample

__all__ = [
    "MAX_PIXELS",
    "ImageInfo",
    "Loaded",
    "Prepared",
    "decode",
    "mask_at",
    "preprocess",
    "probe",
    "read_mask",
    "scan",
    "stream",
]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image after one preprocessing.

    ``tiles`` (T, S, S, 3) uint8, colour last as PIL writes it; ``boxes`` (T, 4) int64: left, top,
    right, bottom of each tile in the frame; ``frame`` (2,) int64: height and width of the resized
    image before tiling.
    """

    tiles: NDArray[np.uint8]
    boxes: NDArray[np.int64]
    frame: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of one sample: its inputs, or the ``error`` that says why there are none.

    ``sha256`` is of the file's bytes ("" when they could not be read), ``size`` the height and width
    of the decoded file ((0, 0) after an error); ``notes`` say what the conversion to RGB changed.
    """

    index: int
    sample: Sample
    inputs: dict[Preprocess, Prepared] = field(default_factory=dict)
    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    error: str | None = None
    notes: tuple[str, ...] = ()


def preprocess(image: Image.Image, spec: Preprocess, *, name: str = "image") -> Prepared:
    """Resize, convert and tile a decoded image; normalisation is left to `to_batch_images`.

    ``resize="shortest"`` follows torchvision's rule int(size * long / short).  16-bit values are
    scaled by 1/257.  Raises DatasetError for a mode that has no RGB form and for a frame that
    ``tiles="ends"`` cannot cover (longer than 2:1).
    """
    image = eight_bit(image)
    width, height = frame_size(image.size, spec, name)
    if spec.rgb == "before":
        image = to_rgb(image, name)
    image = image.resize((width, height), _FILTERS[spec.interpolation])
    pixels = np.array(to_rgb(image, name))
    boxes = _boxes(width, height, spec)
    tiles = [pixels[top:bottom, left:right] for left, top, right, bottom in boxes]
    return Prepared(np.stack(tiles), np.array(boxes, np.int64), np.array((height, width), np.int64))


def eight_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey to 8 bit over its full range: PIL itself would clip at 255."""
    if image.mode != "I" and image.mode not in SIXTEEN_BIT:
        return image
    values = np.asarray(image).astype(np.float64).clip(0, 65535)
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Return an image of any mode as the methods see it: 16 bit brought to 8, alpha dropped.

    Raises:
        DatasetError: for a mode that has no RGB form.
    """
    image = eight_bit(image)
    if image.mode == "RGB":
        return image
    try:
        return image.convert("RGB")  # drops alpha: every reference does, none composites
    except ValueError as error:
        raise DatasetError(f"{name}: PIL mode {image.mode} has no RGB form; convert the file") from error


def _boxes(width: int, height: int, spec: Preprocess) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of the tiles in a frame of ``width`` x ``height``."""
    if spec.tiles == "none":
        return [(0, 0, width, height)]
    side = spec.size
    return [(0, 0, side, side), (width - side, height - side, width, height)]


def stream(
    samples: Iterable[Sample],
    specs: Sequence[Preprocess],
    *,
    workers: int | None = None,
    ahead: int | None = None,
    orient: bool = False,
    max_pixels: int = MAX_PIXELS,
    pictures: Sequence[Image.Image | None] = (),
) -> Generator[Loaded, None, None]:
    """Yield the samples in order, decoded by ``workers`` threads (default: one per CPU, at most 16).

    At most ``ahead`` (default 4 per worker) images are held besides the one in use, however long
    ``samples`` is.  A file that fails becomes a `Loaded` with ``error``; nothing is raised for it.
    Closing the generator drops what is queued and ends the threads.  ``pictures``, one a sample where
    there are any, are those in memory already, upright: their samples' files are not read.
    """
    workers = workers or default_workers()
    distinct = tuple(dict.fromkeys(specs))

    def load(numbered: tuple[int, Sample]) -> Loaded:
        picture = pictures[numbered[0]] if pictures else None
        return _load(*numbered, distinct, orient, max_pixels, picture)

    yield from worked_ahead(load, enumerate(samples), workers, ahead, name="zsad-decode")


def _load(
    index: int,
    sample: Sample,
    specs: Sequence[Preprocess],
    orient: bool,
    max_pixels: int,
    picture: Image.Image | None,
) -> Loaded:
    digest = ""
    try:
        if picture is None:
            data = read(sample.image, sample.key)
            digest = hashlib.sha256(data).hexdigest()
        image = picture or decode(data, name=sample.key, orient=orient, max_pixels=max_pixels)
        inputs = _prepared(image, specs, sample.key)
    except DatasetError as error:
        return Loaded(index, sample, sha256=digest, error=str(error))
    except (OSError, ValueError, MemoryError) as error:  # PIL, on pixels it decoded but cannot convert
        reason = f"{sample.key}: cannot be prepared ({type(error).__name__}: {error}); convert it to PNG"
        return Loaded(index, sample, sha256=digest, error=reason)
    return Loaded(index, sample, inputs, digest, (image.height, image.width), notes=_notes(image))


def _prepared(image: Image.Image, specs: Sequence[Preprocess], name: str) -> dict[Preprocess, Prepared]:
    """Return an image under every preprocessing, once where two give the same pixels.

    When a picture is converted to RGB makes no difference if it is RGB, or 8-bit grey: PIL resizes each
    channel alike.
    """
    whenever = image.mode in ("RGB", "L")
    plain = {spec: replace(spec, rgb="before") if whenever else spec for spec in specs}
    made = {spec: preprocess(image, spec, name=name) for spec in dict.fromkeys(plain.values())}
    return {spec: made[same] for spec, same in plain.items()}


def _notes(image: Image.Image) -> tuple[str, ...]:
    present = {
        "16-bit values scaled by 1/257 to 8 bit": image.mode == "I" or image.mode in SIXTEEN_BIT,
        "CMYK converted to RGB without a colour profile": image.mode == "CMYK",
        "only the first of several frames": frames_of(image) > 1,
    }
    return tuple(note for note, holds in present.items() if holds)
