"""Image files become PIL images, in the mode of the file, or an error that names the file.

Only raster formats are opened (PIL would hand an EPS file to an external interpreter), PIL's
"load truncated images" flag is never used, and the pixel limit is judged from the header.  Of several
frames or pages the first is read.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import DatasetError
from ..files import stand_in
from ..inputs import Preprocess

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
MAX_PIXELS = 178_956_970
"""Largest image that is read by default: the size at which PIL refuses (twice its warning limit)."""

SIXTEEN_BIT = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_pil_limit = threading.Lock()


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header of an image file says; ``exif_orientation`` 1 means upright."""

    width: int
    height: int
    mode: str
    format: str
    frames: int
    exif_orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


def probe(path: Path, *, name: str = "", max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Read the header of an image file.

    Raises DatasetError (file, reason, remedy) for a file that is missing, unreadable, not an image,
    larger than ``max_pixels`` or of a depth that has no 8-bit meaning.
    """
    name = name or str(path)
    _require_file(path, name)
    try:
        with path.open("rb") as stream:
            return _inspect(_open(stream, name), name, max_pixels)
    except OSError as error:
        raise _unreadable(name, error) from error


def looks_like_image(path: Path) -> bool:
    """Tell whether the content of a file begins like an image that can be read, whatever it is called."""
    try:
        with path.open("rb") as stream, _no_pil_limit():
            Image.open(stream, formats=FORMATS)
    except Exception:
        return False
    return True


def read(path: Path, name: str = "") -> bytes:
    """Return the bytes of a file.

    Raises:
        DatasetError: if it is missing or cannot be read.
    """
    name = name or str(path)
    _require_file(path, name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(name, error) from error


def decode(
    source: Path | bytes, *, name: str = "", orient: bool = False, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a file (of several frames the first) completely and return it in the mode of the file.

    ``orient`` applies the EXIF rotation; leave it off where masks are drawn on the stored pixels.
    ``name`` is what errors call the file.  Raises DatasetError like `probe`, and for broken data.
    """
    if isinstance(source, Path):
        name = name or str(source)
        source = read(source, name)
    name = name or "image"
    image = _open(io.BytesIO(source), name)
    _inspect(image, name, max_pixels)
    try:
        # A TIFF is checked against PIL's limit once more while its pixels are read.
        with _no_pil_limit(image.width * image.height > MAX_PIXELS // 2):
            image.load()
        return ImageOps.exif_transpose(image) if orient else image
    except Exception as error:  # PIL's plugins raise whatever their parser stumbles over
        raise DatasetError(f"{name}: broken image data ({_reason(error)}); fetch the file again") from error


def picture_of(source: Image.Image | NDArray[np.uint8], order: str = "rgb", *, name: str = "") -> Image.Image:
    """Return an image in memory as `decode` returns that of a file: whole, upright, of a depth that is known.

    ``source`` is an image of PIL, turned as its EXIF entry says, or an array (H, W, 3) or (H, W) uint8 whose
    colours lie in ``order``, "rgb" or "bgr".

    Raises:
        DatasetError: for anything else, with what it is and what to do.
    """
    name = name or "image"
    if isinstance(source, Image.Image):
        return _whole(source, name)
    if not isinstance(source, np.ndarray):
        raise DatasetError(
            f"{name}: {type(source).__name__} is no image; give a path, an image of PIL or an array of numpy"
        )
    if np.ma.isMaskedArray(source):
        raise DatasetError(
            f"{name}: methods see every pixel of a masked array; give its `data`, or `filled(...)`"
        )
    if source.dtype != np.uint8:
        raise DatasetError(
            f"{name}: an array of {source.dtype} has no defined range; bring it to 0 to 255 and to uint8"
        )
    if source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,)) or not source.size:
        raise DatasetError(
            f"{name}: an array of shape {source.shape} is no image; give (H, W, 3), or (H, W) for grey, of "
            "one pixel or more, and several as a list"
        )
    height, width = source.shape[:2]
    _check_pixels(width, height, name, MAX_PIXELS)
    turned = source[..., ::-1] if order == "bgr" and source.ndim == 3 else source
    return Image.fromarray(np.ascontiguousarray(turned))


def _whole(image: Image.Image, name: str) -> Image.Image:
    """Return an image of PIL with its pixels read, upright."""
    width, height = image.size
    if not width * height:
        raise DatasetError(f"{name}: an image of {width} x {height} pixels; give one with pixels")
    _check_pixels(width, height, name, MAX_PIXELS)
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except Exception as error:  # PIL's plugins raise whatever their parser stumbles over
        raise DatasetError(f"{name}: broken image data ({_reason(error)}); open it again") from error
    _check_depth(upright.mode, name, sixteen_bit=_sixteen_bit_png(image))
    return upright


def frame_size(size: tuple[int, int], spec: Preprocess, name: str) -> tuple[int, int]:
    """Return width and height of an image of ``size`` (width, height) after the resize of ``spec``.

    Raises DatasetError where two tiles would leave a gap, and where the frame would be absurdly long.
    """
    if spec.resize == "squash":
        return spec.size, spec.size
    short, long = sorted(size)
    extent = int(spec.size * long / short)
    if spec.tiles == "ends" and extent > 2 * spec.size:
        raise DatasetError(
            f"{name}: {size[0]} x {size[1]} pixels are longer than 2:1, so two square tiles leave a gap "
            "in the middle; crop the image, or use a method without tiles"
        )
    if extent * spec.size > MAX_PIXELS:
        raise DatasetError(
            f"{name}: {size[0]} x {size[1]} pixels become {extent} x {spec.size} when the short side is "
            f"{spec.size}, more than {MAX_PIXELS} pixels; crop the image"
        )
    return (spec.size, extent) if size[0] <= size[1] else (extent, spec.size)


def alpha_of(image: Image.Image) -> NDArray[np.uint8] | None:
    """Return the alpha channel (H, W) of a decoded image, or None where it has none."""
    if "A" in image.getbands():
        return np.asarray(image.getchannel("A"))
    if "transparency" in image.info:
        return np.asarray(image.convert("RGBA").getchannel("A"))
    return None


def frames_of(image: Image.Image) -> int:
    """Return how many frames or pages a file holds."""
    # The further pictures of a camera's multi-picture JPEG are previews of the first.
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def default_workers() -> int:
    """Return one decoding thread per CPU this process may use, at most 16."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, usable or 1)


@contextmanager
def _no_pil_limit(needed: bool = True) -> Iterator[None]:
    """Switch PIL's process-wide pixel limit off; ours is an argument, judged per call."""
    if not needed:
        yield
        return
    with _pil_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _require_file(path: Path, name: str) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        dangling = "a link that points nowhere" if path.is_symlink() else "no such file"
        raise DatasetError(f"{name}: {dangling}; restore the file or remove its entry") from None
    except OSError as error:
        raise _unreadable(name, error) from error
    if not path.is_file():
        raise DatasetError(f"{name}: not a regular file; replace it with the image file")
    if size == 0:
        raise DatasetError(f"{name}: the file is empty (0 bytes); fetch it again")


def _open(stream: IO[bytes], name: str) -> Image.Image:
    try:
        with _no_pil_limit():
            return Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        stream.seek(0)
        head = stream.read(512)
        unknown = f"not an image (starts with {head[:12]!r}); fetch the file again, or convert it to PNG"
        raise DatasetError(f"{name}: {stand_in(head) or unknown}") from None
    except Exception as error:
        raise DatasetError(f"{name}: broken image header ({_reason(error)}); fetch the file again") from error


def _inspect(image: Image.Image, name: str, max_pixels: int) -> ImageInfo:
    width, height = image.size
    _check_pixels(width, height, name, max_pixels)
    try:
        frames = frames_of(image)
        orientation = _orientation(image)
    except Exception as error:
        raise DatasetError(f"{name}: broken image header ({_reason(error)}); fetch the file again") from error
    _check_depth(image.mode, name, sixteen_bit=_sixteen_bit_png(image))
    return ImageInfo(width, height, image.mode, image.format or "", frames, orientation)


def _check_pixels(width: int, height: int, name: str, limit: int) -> None:
    if width * height > limit:
        raise DatasetError(
            f"{name}: {width} x {height} pixels are more than the limit of {limit}; "
            "shrink the image, or raise max_pixels if the file is to be trusted"
        )


def _check_depth(mode: str, name: str, *, sixteen_bit: bool) -> None:
    if mode == "F" or (mode == "I" and not sixteen_bit):
        raise DatasetError(
            f"{name}: 32-bit values (PIL mode {mode}) have no defined range; convert to 8 or 16 bit"
        )


def _orientation(image: Image.Image) -> int:
    # PIL turns a TIFF by itself, and asking a PNG without the tag would decode it.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _sixteen_bit_png(image: Image.Image) -> bool:
    return image.format in ("PNG", "PPM", "JPEG2000")  # PIL before 11.0 opens 16 bit in mode I


def _unreadable(name: str, error: OSError) -> DatasetError:
    remedy = "allow reading it" if isinstance(error, PermissionError) else "check the disk and the path"
    return DatasetError(f"{name}: cannot be read ({error.strerror or _reason(error)}); {remedy}")


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__
