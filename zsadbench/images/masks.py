"""Ground-truth masks: files become boolean arrays, at native or at evaluation size.

The field calls every value above 0 a defect, before any resize; how the mask then reaches the
evaluation size differs between references and changes thin defects, so it is a named rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError
from .decoding import MAX_PIXELS, SIXTEEN_BIT, alpha_of, decode, probe

if TYPE_CHECKING:
    from ..samples import Sample

Mask = NDArray[np.bool_]
Positive = str | Sequence[int]
"""``">N"``, ``"alpha>N"`` (the mask is in the alpha channel), or the list of values that are defects."""
MaskRule = Literal["bilinear50", "nearest", "native"]
Mismatch = Literal["error", "nearest"]


@dataclass(frozen=True, slots=True)
class MaskInfo:
    """What the content of a mask file shows.

    ``empty`` no value is positive; ``grey`` share of non-zero pixels that a rule ">127" would drop
    (0 where no value is above 127: class ids); ``alpha_only`` only the alpha channel varies.
    """

    size: tuple[int, int]
    empty: bool
    grey: float
    alpha_only: bool


def read_mask(path: Path, positive: Positive = ">0", *, name: str = "", max_pixels: int = MAX_PIXELS) -> Mask:
    """Return the mask of a file, bool (H, W), at its native size.

    16-bit values are compared at full depth; colours by their luma, as PIL converts to grey.  A
    palette mask is read by its indices where ``positive`` is a list, and where a used index cannot
    be told from index 0 by luma (both black).  Alpha is ignored unless ``positive`` asks for it.
    Raises DatasetError like `zsadbench.images.decode`.
    """
    image = decode(path, name=name, max_pixels=max_pixels)
    return _positive(image, positive, name or str(path))


def inspect_mask(
    path: Path, positive: Positive = ">0", *, name: str = "", max_pixels: int = MAX_PIXELS
) -> MaskInfo:
    """Decode a mask file and say what is remarkable about its content; errors as in `read_mask`."""
    image = decode(path, name=name, max_pixels=max_pixels)
    empty = not _positive(image, positive, name or str(path)).any()
    values = _values(image, by_index=not isinstance(positive, str))
    foreground = np.count_nonzero(values)
    sure = np.count_nonzero(values > 127)
    grey = 1 - sure / foreground if sure and values.dtype == np.uint8 else 0.0
    return MaskInfo((image.height, image.width), empty, grey, _alpha_only(image))


def mask_at(
    sample: Sample,
    size: tuple[int, int] | None,
    rule: MaskRule = "bilinear50",
    *,
    positive: Positive = ">0",
    mismatch: Mismatch = "error",
    image_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Mask:
    """Return the mask of a sample, bool (H, W), at ``size`` = (H, W); ``None`` or "native": of the image.

    ``"bilinear50"`` (AnomalyCLIP, APRIL-GAN, CLIP-AD, AnoCLIP): 0/255 in 8 bit, PIL bilinear with
    antialias, /255 > 0.5.  ``"nearest"`` (AA-CLIP): PIL nearest.  For a frame that keeps the aspect
    pass the frame's size.  A normal sample has a zero mask, and its file is never read.
    ``mismatch="nearest"`` first brings a mask of another size but the same aspect (1 %) to
    ``image_size`` (default: read from the image's header).  Raises DatasetError for an anomalous
    sample without a mask, an unreadable mask, or a mask of another size.
    """
    if rule == "native" or size is None:
        rule, size = "native", None
    if not sample.anomalous:
        return np.zeros(size or image_size or probe(sample.image, name=sample.key).size, dtype=np.bool_)
    if sample.mask is None:
        raise DatasetError(
            f"{sample.key}: anomalous but without a mask, so it has no pixel metrics; "
            "add the mask, or take image metrics only"
        )
    name = f"{sample.key}: mask {sample.mask.name}"
    mask = read_mask(sample.mask, positive, name=name, max_pixels=max_pixels)
    image_size = image_size or probe(sample.image, name=sample.key, max_pixels=max_pixels).size
    if mask.shape != image_size:
        problem = size_mismatch(mask.shape, image_size, mismatch)
        if problem:
            raise DatasetError(f"{name}: {problem}")
        mask = _resized(mask, image_size, "nearest")
    return mask if size is None else _resized(mask, size, rule)


def size_mismatch(mask: tuple[int, ...], image: tuple[int, int], mismatch: Mismatch = "error") -> str | None:
    """Say why a mask of size (H, W) ``mask`` does not fit an image of size ``image``, or None."""
    if mask == image:
        return None
    sizes = f"the mask has {mask[1]} x {mask[0]} pixels, the image {image[1]} x {image[0]}"
    if abs(mask[1] * image[0] / (mask[0] * image[1]) - 1) > 0.01:
        return f"{sizes}, and the aspect differs by more than 1 %; give the image its own mask"
    if mismatch == "nearest":
        return None
    return f'{sizes}; give the image its own mask, or set mask_mismatch = "nearest"'


def positive_rule(positive: Positive) -> Callable[[NDArray[Any]], Mask]:
    """Return the test for defect values that ``positive`` describes; DatasetError if it is not one."""
    if not isinstance(positive, str):
        wanted = np.asarray(list(positive))
        if wanted.size and wanted.dtype.kind in "iu":
            return lambda values: np.isin(values, wanted)
    elif match := re.fullmatch(r"(?:alpha)?>\s*(\d+)", positive.strip()):
        limit = int(match[1])
        return lambda values: np.asarray(values > limit)
    raise DatasetError(f'mask_positive = {positive!r}: expected ">N", "alpha>N" or a list of whole numbers')


def _positive(image: Image.Image, positive: Positive, name: str) -> Mask:
    test = positive_rule(positive)
    if not isinstance(positive, str):
        return test(_values(image, by_index=True))
    if not positive.strip().startswith("alpha"):
        return test(_values(image))
    alpha = alpha_of(image)
    if alpha is None:
        raise DatasetError(f"{name}: mask_positive = {positive!r}, but the file has no alpha channel")
    return test(alpha)


def _values(image: Image.Image, by_index: bool = False) -> NDArray[Any]:
    """The values of a mask: grey levels at full depth, luma of colours, or palette indices."""
    if image.mode == "P":
        indices, luma = np.asarray(image), np.asarray(image.convert("L"))
        background = luma[indices == 0]
        hidden = background.size and not background[0] and (luma[indices != 0] == 0).any()
        return indices if by_index or hidden else luma
    if image.mode == "I" or image.mode in SIXTEEN_BIT:
        return np.asarray(image)
    return np.asarray(image.convert("L"))


def _alpha_only(image: Image.Image) -> bool:
    alpha = alpha_of(image)
    if alpha is None or alpha.min() == alpha.max():
        return False
    colours = np.asarray(image.convert("RGB"))
    return bool((colours == colours[0, 0]).all())


def _resized(mask: Mask, size: tuple[int, int], rule: MaskRule) -> Mask:
    """PIL's resize of the 0/255 image; above 127 is the same as /255 > 0.5."""
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    resized = image.resize((size[1], size[0]), bilinear if rule == "bilinear50" else nearest)
    return np.asarray(resized) > 127
