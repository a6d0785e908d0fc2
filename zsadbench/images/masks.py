"""Ground-truth masks: files become boolean arrays, at native or at evaluation size.

A mask is a file, or a folder of files of one image (MVTec LOCO): their union.  The field calls every
value above 0 a defect, before any resize; how the mask then reaches the evaluation size differs between
references and changes thin defects, so it is a named rule.
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
from .decoding import MAX_PIXELS, SIXTEEN_BIT, ImageInfo, alpha_of, decode, frames_of, probe
from .saturation import read_saturations

if TYPE_CHECKING:
    from ..samples import Sample

Mask = NDArray[np.bool_]
Positive = str | Sequence[int]
"""``">N"``, ``"alpha>N"`` (the mask is in the alpha channel), or the list of values that are defects."""
MaskRule = Literal["bilinear50", "all", "any", "nearest", "native"]
Mismatch = Literal["error", "nearest"]


USUAL_SIZES = (240, 518)
"""Sizes at which masks are usually evaluated: WinCLIP's, and that of most methods and of ``common-1``."""


@dataclass(frozen=True, slots=True)
class MaskInfo:
    """What the content of a mask shows.

    ``empty`` no value is positive; ``grey`` share of non-zero pixels that a rule ">127" would drop
    (0 where no value is above 127: class ids); ``alpha_only`` only the alpha channel varies, and the
    rule does not ask for it; ``share`` positive part of the image; ``vanishes`` the largest of the
    usual sizes at which ``bilinear50`` leaves nothing (0: none).
    """

    size: tuple[int, int]
    empty: bool
    grey: float
    alpha_only: bool
    share: float
    vanishes: int


def mask_files(path: Path) -> list[Path]:
    """Return the files of a mask: itself, or the files in its folder by name, hidden ones left out.

    Raises:
        DatasetError: if the folder cannot be read.
    """
    if not path.is_dir():
        return [path]
    try:
        return sorted(file for file in path.iterdir() if not file.name.startswith(".") and file.is_file())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check the permissions") from None


def probe_mask(path: Path, *, name: str = "", max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """Read the header of a mask; DatasetError like `probe`, and for files of one mask of several sizes."""
    infos = []
    for file, own in _named(path, name):
        infos.append(probe(file, name=own, max_pixels=max_pixels))
        _require_one_frame(infos[-1].frames, own)
    _require_one_size([info.size for info in infos], name or str(path))
    return infos[0]


def read_mask(path: Path, positive: Positive = ">0", *, name: str = "", max_pixels: int = MAX_PIXELS) -> Mask:
    """Return the mask of a file, or the union of those in a folder, bool (H, W), at its native size.

    16-bit values are compared at full depth; colours by their luma, as PIL converts to grey.  A
    palette mask is read by its indices where ``positive`` is a list, and where a used index cannot
    be told from index 0 by luma (both black).  Alpha is ignored unless ``positive`` asks for it.
    Raises DatasetError like `zsadbench.images.decode`, for several frames, an empty folder, and for
    files of one folder that differ in size.
    """
    parts = [_positive(image, positive, own) for image, own in _decoded(path, name, max_pixels)]
    return _union(parts, name or str(path))


def inspect_mask(
    path: Path, positive: Positive = ">0", *, name: str = "", max_pixels: int = MAX_PIXELS
) -> MaskInfo:
    """Decode a mask and say what is remarkable about its content; errors as in `read_mask`."""
    images = _decoded(path, name, max_pixels)
    mask = _union([_positive(image, positive, own) for image, own in images], name or str(path))
    values = [_values(image, by_index=not isinstance(positive, str)) for image, _ in images]
    by_alpha = isinstance(positive, str) and positive.strip().startswith("alpha")
    return MaskInfo(
        size=(mask.shape[0], mask.shape[1]),
        empty=not mask.any(),
        grey=max(map(_soft, values)),
        alpha_only=not by_alpha and all(_alpha_only(image) for image, _ in images),
        share=float(mask.mean()),
        vanishes=_vanishes(mask),
    )


def _named(path: Path, name: str) -> list[tuple[Path, str]]:
    """Return the files of a mask with what errors call them."""
    files = mask_files(path)
    name = name or str(path)
    if not files:
        raise DatasetError(f"{name}: the folder holds no mask; add it, or remove the folder")
    return [(file, name if file == path else f"{name}/{file.name}") for file in files]


def _decoded(path: Path, name: str, max_pixels: int) -> list[tuple[Image.Image, str]]:
    images = [(decode(file, name=own, max_pixels=max_pixels), own) for file, own in _named(path, name)]
    for image, own in images:
        _require_one_frame(frames_of(image), own)
    return images


def _require_one_frame(frames: int, name: str) -> None:
    if frames > 1:
        raise DatasetError(f"{name}: holds {frames} frames; save the one that is meant as a file of its own")


def _require_one_size(sizes: Sequence[tuple[int, ...]], name: str) -> None:
    for size in sizes:
        if size != sizes[0]:
            raise DatasetError(
                f"{name}: masks of one image differ in size ({sizes[0][1]} x {sizes[0][0]} and "
                f"{size[1]} x {size[0]}); give them the size of the image"
            )


def _union(parts: Sequence[Mask], name: str) -> Mask:
    _require_one_size([part.shape for part in parts], name)
    union: Mask = np.logical_or.reduce(parts)
    return union


def _soft(values: NDArray[Any]) -> float:
    """Return the share of the pixels above 0 that are not above 127, where some are."""
    foreground, sure = np.count_nonzero(values), np.count_nonzero(values > 127)
    return 1 - sure / foreground if sure and values.dtype == np.uint8 else 0.0


def _vanishes(mask: Mask) -> int:
    """Return the largest usual size at which nothing is left of a mask; 0 where some of it always is."""
    gone = (size for size in reversed(USUAL_SIZES) if not _resized(mask, (size, size), "bilinear50").any())
    return next(gone, 0) if mask.any() else 0


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
    antialias, /255 > 0.5.  ``"all"`` and ``"any"`` (MuSc): the same, but a pixel counts where it is wholly
    anomalous, or at all.  ``"nearest"`` (AA-CLIP): PIL nearest.  For a frame that keeps the aspect
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
    return _brought_to(mask, name, image_size, size, rule, mismatch)


def defects_at(
    sample: Sample,
    size: tuple[int, int] | None,
    rule: MaskRule = "bilinear50",
    *,
    positive: Positive = ">0",
    mismatch: Mismatch = "error",
) -> list[tuple[Mask, float]]:
    """Return the defects of a sample, one per file of its mask, at ``size`` by the rules of :func:`mask_at`.

    Each is bool (H, W) and comes with its saturation: how many of its pixels at that size must be found, in
    proportion to those of the file.  A defect of which nothing is left is not among them.  There is none
    where the sample has no mask or its saturations are not known.

    Raises:
        DatasetError: as :func:`mask_at` says, and for a file of several values, or of one without saturation.
    """
    if sample.mask is None or sample.saturation is None or not sample.anomalous:
        return []
    if rule == "native" or size is None:
        rule, size = "native", None
    known, image_size = read_saturations(sample.saturation), probe(sample.image, name=sample.key).size
    found = []
    for image, name in _decoded(sample.mask, f"{sample.key}: mask {sample.mask.name}", MAX_PIXELS):
        mask = _positive(image, positive, name)
        values = np.unique(_values(image)[mask]).tolist()
        if len(values) > 1:
            raise DatasetError(f"{name}: holds {len(values)} values; each defect needs a file of its own")
        if not values:
            continue
        if values[0] not in known:
            raise DatasetError(f"{name}: its value {values[0]} is not in {sample.saturation}; add it there")
        area = int(mask.sum())
        there = _brought_to(mask, name, image_size, size, rule, mismatch)
        if left := int(there.sum()):
            found.append((there, known[values[0]].pixels(area) * left / area))
    return found


def _brought_to(
    mask: Mask,
    name: str,
    image_size: tuple[int, int],
    size: tuple[int, int] | None,
    rule: MaskRule,
    mismatch: Mismatch,
) -> Mask:
    """Return a mask at the size of its image, then at ``size``."""
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


def vanished(sample: Sample, mask: Mask, positive: Positive = ">0") -> bool:
    """Tell whether nothing is left in ``mask`` (H, W), a sample's at some size, of what its file holds.

    The file is read again only where the mask is empty.
    """
    return not mask.any() and sample.mask is not None and bool(read_mask(sample.mask, positive).any())


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
    above = {"all": 254, "any": 0}.get(rule, 127)
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    resized = image.resize((size[1], size[0]), nearest if rule == "nearest" else bilinear)
    return np.asarray(resized) > above
