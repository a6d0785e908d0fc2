"""Look at every file of a dataset before any model is loaded, and report all problems at once."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from PIL import Image

from ..errors import DatasetError
from ..inputs import Preprocess
from ..samples import Problem, Sample
from .ahead import ahead
from .decoding import (
    MAX_PIXELS,
    SIXTEEN_BIT,
    ImageInfo,
    alpha_of,
    decode,
    default_workers,
    frame_size,
    probe,
    read,
)
from .masks import MaskInfo, Mismatch, Positive, inspect_mask, probe_mask, size_mismatch

SMALLEST_SIDE = 32
EXAMPLES = 4
SAMPLED_MASKS = 8
"""Masks of a category that are looked into where not all are: polarity and channel are the same for all."""


class Trait(NamedTuple):
    """A property worth one warning for all images that have it: "3 of 9 images ..."."""

    reason: str
    remedy: str


TRAITS = {
    "tiny": Trait(
        f"are below {SMALLEST_SIDE} pixels on a side and are enlarged",
        "check that they are meant to be so small",
    ),
    "frames": Trait(
        "hold several frames or pages, of which the first is used", "save the one that is meant by itself"
    ),
    "rotated": Trait(
        "carry an EXIF rotation, which is ignored because masks are drawn on the stored pixels",
        "save them upright if that is wrong",
    ),
    "cmyk": Trait("are CMYK and are converted without a colour profile", "save them as RGB"),
    "deep": Trait(
        "have 16-bit values, which are scaled by 1/257 to 8 bit",
        "stretch and save them as 8 bit if they use a part of the range",
    ),
    "translucent": Trait(
        "are partly transparent; alpha is dropped, not blended with a background",
        "save them as RGB to choose the background",
    ),
    "empty": Trait(
        "have a mask without a defect pixel though they are labelled anomalous; they are kept",
        'correct the masks, or set empty_mask = "error" or "drop"',
    ),
    "grey": Trait(
        'have a mask with soft edges: the rule ">127" would drop {share:.0%} of their pixels above 0',
        'set mask_positive to choose (">0" is the custom of the field)',
    ),
    "alpha": Trait(
        "have a mask in the alpha channel over one colour, which is read as {kind}",
        'set mask_positive = "alpha>0" to use the alpha channel',
    ),
    "inverted": Trait(
        "have a mask that covers more than half of the image, and so have all of the category that were "
        "looked into: they may be inverted",
        "save them with defects above 0 and the rest 0, or set mask_positive to the list of defect values",
    ),
    "vanishing": Trait(
        "have defects of which nothing is left at {sizes} pixels",
        "evaluate with --mask-resize native, or with a larger --size",
    ),
}


@dataclass(frozen=True, slots=True)
class _Findings:
    """What was found out about one sample."""

    errors: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    mask: MaskInfo | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class _Options:
    full: bool
    orient: bool
    positive: Positive
    mismatch: Mismatch
    max_pixels: int
    specs: tuple[Preprocess, ...]


def scan(
    samples: Iterable[Sample],
    specs: Sequence[Preprocess] = (),
    *,
    full: bool = False,
    orient: bool = False,
    positive: Positive = ">0",
    mismatch: Mismatch = "error",
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> list[Problem]:
    """Return every problem of the files of ``samples``: errors by file, traits and duplicates summed up.

    Reads headers, and of each category the content of a few masks, spread evenly: enough to see that they
    are inverted or lie in the alpha channel.  ``full`` decodes every image and every mask of an anomalous
    sample, which also finds truncated data, empty, soft and vanishing masks, transparency and
    byte-identical files.
    With ``specs`` images that one of these preprocessings must refuse (by their shape) are errors.
    ``orient`` says that EXIF rotation will be applied, so it is no trait worth a warning.
    """
    samples = list(samples)
    options = _Options(full, orient, positive, mismatch, max_pixels, tuple(specs))
    looked_into = None if full else _sampled(samples)
    examine = partial(_examine, options=options, looked_into=looked_into)
    found = list(ahead(examine, samples, workers or default_workers()))
    pairs = list(zip(samples, found, strict=True))
    return [*_errors(pairs), *_traits(pairs), *_duplicates(pairs)]


def _sampled(samples: Sequence[Sample]) -> set[str]:
    """Return the keys of a few masked samples of each category, evenly spread."""
    masked: dict[str, list[str]] = defaultdict(list)
    for sample in samples:
        if sample.anomalous and sample.mask is not None:
            masked[sample.category].append(sample.key)
    return {key for keys in masked.values() for key in keys[:: -(-len(keys) // SAMPLED_MASKS)]}


def _examine(sample: Sample, options: _Options, looked_into: set[str] | None) -> _Findings:
    errors: list[str] = []
    traits: list[str] = []
    sha256, size, mask = "", None, None
    try:
        info, sha256, translucent = _look(sample, options)
        size = info.size
        for spec in options.specs:
            frame_size((info.width, info.height), spec, sample.key)
        traits += _image_traits(info, options) + ["translucent"] * translucent
    except DatasetError as error:
        errors.append(str(error))
    if sample.anomalous and sample.mask is not None:
        try:
            inside = looked_into is None or sample.key in looked_into
            mask = _look_at_mask(sample, size, options, inside)
            traits += _mask_traits(mask, options) if mask else []
        except DatasetError as error:
            errors.append(str(error))
    return _Findings(tuple(errors), tuple(traits), mask, sha256)


def _look(sample: Sample, options: _Options) -> tuple[ImageInfo, str, bool]:
    info = probe(sample.image, name=sample.key, max_pixels=options.max_pixels)
    if not options.full:
        return info, "", False
    data = read(sample.image, sample.key)
    image = decode(data, name=sample.key, max_pixels=options.max_pixels)
    return info, hashlib.sha256(data).hexdigest(), _translucent(image)


def _translucent(image: Image.Image) -> bool:
    alpha = alpha_of(image)
    return alpha is not None and bool(alpha.min() != alpha.max())


def _image_traits(info: ImageInfo, options: _Options) -> list[str]:
    present = {
        "tiny": min(info.size) < SMALLEST_SIDE,
        "frames": info.frames > 1,
        "rotated": not options.orient and info.exif_orientation > 1,
        "cmyk": info.mode == "CMYK",
        "deep": info.mode == "I" or info.mode in SIXTEEN_BIT,
    }
    return [trait for trait, holds in present.items() if holds]


def _look_at_mask(
    sample: Sample, image_size: tuple[int, int] | None, options: _Options, inside: bool
) -> MaskInfo | None:
    """Check the size of a mask and, where its content is to be looked into, return what it shows."""
    assert sample.mask is not None
    name = f"{sample.key}: mask {sample.mask.name}"
    size = probe_mask(sample.mask, name=name, max_pixels=options.max_pixels).size
    if image_size and (reason := size_mismatch(size, image_size, options.mismatch)):
        raise DatasetError(f"{name}: {reason}")
    if not inside:
        return None
    return inspect_mask(sample.mask, options.positive, name=name, max_pixels=options.max_pixels)


def _mask_traits(mask: MaskInfo, options: _Options) -> list[str]:
    """Return what is odd about a mask; what holds for single masks only where all are looked into."""
    present = {
        "empty": options.full and mask.empty and not mask.alpha_only,
        "grey": options.full and mask.grey > 0,
        "vanishing": options.full and mask.vanishes > 0 and not mask.alpha_only,
        "alpha": mask.alpha_only,
        "inverted": mask.share > 0.5 and not mask.alpha_only,
    }
    return [trait for trait, holds in present.items() if holds]


_Pairs = Sequence[tuple[Sample, _Findings]]


def _errors(pairs: _Pairs) -> Iterator[Problem]:
    for sample, found in pairs:
        for text in found.errors:
            reason, _, remedy = text.removeprefix(f"{sample.key}: ").rpartition("; ")
            yield Problem("error", sample.key, reason, remedy)


def _traits(pairs: _Pairs) -> Iterator[Problem]:
    for trait, (reason, remedy) in TRAITS.items():
        having = [(sample, found) for sample, found in pairs if trait in found.traits]
        if trait == "inverted":
            having = _throughout(trait, having, pairs)
        if having:
            masks = [found.mask for _, found in having if found.mask]
            words = {
                "share": sum(mask.grey for mask in masks) / len(having),
                "kind": " or ".join(sorted({"empty" if mask.empty else "all defect" for mask in masks})),
                "sizes": " or ".join(map(str, sorted({mask.vanishes for mask in masks}))),
            }
            line = f"{len(having)} of {len(pairs)} images {reason.format(**words)}"
            yield Problem("warning", "", f"{line} ({_examples([sample for sample, _ in having])})", remedy)


def _throughout(trait: str, having: _Pairs, pairs: _Pairs) -> list[tuple[Sample, _Findings]]:
    """Return those of ``having`` whose category has no mask without the trait, empty masks aside."""
    others = {
        sample.category
        for sample, found in pairs
        if found.mask and not found.mask.empty and trait not in found.traits
    }
    return [(sample, found) for sample, found in having if sample.category not in others]


def _duplicates(pairs: _Pairs) -> Iterator[Problem]:
    """Byte-identical files: a note, or a warning where they carry both labels."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample, found in pairs:
        if found.sha256:
            groups[found.sha256].append(sample)
    repeated = [group for group in groups.values() if len(group) > 1]
    if repeated:
        surplus = sum(len(group) - 1 for group in repeated)
        count = f"{len(repeated)} groups of byte-identical images, {surplus} more than needed"
        yield Problem("note", "", f"{count} ({_examples(repeated[0])})")
    for group in repeated:
        if len({sample.anomalous for sample in group}) == 2:
            reason = f"byte-identical images are labelled normal and anomalous ({_examples(group)})"
            yield Problem("warning", "", reason, "correct the labels")


def _examples(samples: Sequence[Sample]) -> str:
    more = len(samples) - EXAMPLES
    return ", ".join(sample.key for sample in samples[:EXAMPLES]) + (f" and {more} more" if more > 0 else "")
