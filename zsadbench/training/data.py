"""What training reads: images with masks, their variations, and few-shot choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import DatasetError, UsageError
from ..images import MaskRule, decode, mask_at, preprocess, to_batch_images
from ..inputs import Preprocess
from ..samples import Dataset, Sample

if TYPE_CHECKING:
    pass


class Example(NamedTuple):
    """One image as it is learned from: ``image`` (3, S, S) normalised, ``mask`` (S, S) bool."""

    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TrainingSet:
    """Samples of a dataset with the rules that turn them into examples."""

    dataset: Dataset
    spec: Preprocess
    mask_rule: MaskRule

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The images to learn from."""
        return self.dataset.samples

    def image(self, index: int) -> Image.Image:
        """Return the decoded image of a sample."""
        return decode(self.samples[index].image, name=self.samples[index].key)

    def mask(self, index: int, size: tuple[int, int] | None) -> NDArray[np.bool_]:
        """Return the mask of a sample at ``size``, or at the image's own."""
        return mask_at(
            self.samples[index],
            size,
            self.mask_rule if size else "native",
            positive=self.dataset.mask_positive,
            mismatch="nearest" if self.dataset.mask_mismatch == "nearest" else "error",
        )

    def input(self, image: Image.Image, name: str) -> Tensor:
        """Return ``image`` resized and normalised, (3, S, S)."""
        return to_batch_images([preprocess(image, self.spec, name=name)], self.spec)[0, 0]

    def example(self, index: int) -> Example:
        """Return a sample as it is."""
        side = self.spec.size
        mask = torch.from_numpy(self.mask(index, (side, side)))
        return Example(self.input(self.image(index), self.samples[index].key), mask)


Variation = Callable[[TrainingSet, int, np.random.Generator], Example | None]
"""Returns another example in the place of a sample, or nothing to take the sample as it is."""


@dataclass(frozen=True)
class Mosaic:
    """Replaces a ``share`` of the samples by 2 x 2 mosaics of their category (APRIL-GAN).

    Each tile is drawn by its kind of defect first (normal is a kind), then by the file; all tiles have the
    size of the first.
    """

    share: float

    def __call__(self, data: TrainingSet, index: int, rng: np.random.Generator) -> Example | None:
        """Return a mosaic, or nothing."""
        if rng.random() >= self.share:
            return None
        tiles = [self._draw(data, data.samples[index].category, rng) for _ in range(4)]
        width, height = (first := data.image(tiles[0])).size
        image = Image.new("RGB", (2 * width, 2 * height))
        mask = Image.new("L", (2 * width, 2 * height))
        for place, tile in enumerate(tiles):
            corner = (place % 2 * width, place // 2 * height)
            image.paste((data.image(tile) if place else first).convert("RGB"), corner)
            mask.paste(Image.fromarray(data.mask(tile, None).astype(np.uint8) * 255), corner)
        small = mask.resize((data.spec.size, data.spec.size), Image.Resampling.BILINEAR)
        return Example(data.input(image, data.samples[index].key), torch.from_numpy(np.array(small) > 127))

    @staticmethod
    def _draw(data: TrainingSet, category: str, rng: np.random.Generator) -> int:
        kinds: dict[tuple[bool, str], list[int]] = {}
        for number, sample in enumerate(data.samples):
            if sample.category == category:
                kinds.setdefault((sample.anomalous, sample.specie), []).append(number)
        own = kinds[sorted(kinds)[rng.integers(len(kinds))]]
        return own[rng.integers(len(own))]


def require_masks(dataset: Dataset) -> None:
    """Refuse a dataset with an anomalous image that has no mask.

    Raises:
        DatasetError: with the first such image.
    """
    bare = [sample.key for sample in dataset.samples if sample.anomalous and sample.mask is None]
    if bare:
        raise DatasetError(
            f"dataset '{dataset.id}' in {dataset.root}: {len(bare)} anomalous images have no mask (first "
            f"{bare[0]}), and training needs masks; train on a dataset that has them"
        )


def few_shot(dataset: Dataset, shots: int, seed: int) -> Dataset:
    """Return ``shots`` images of each category, half of them normal, drawn from the sorted keys.

    Raises:
        UsageError: for an odd or small number, or a category that has too few.
    """
    if shots < 2 or shots % 2:
        raise UsageError(f"--shots {shots}: images per category, half of them normal; give 2, 4, 8 ...")
    chosen: set[str] = set()
    for category in dataset.categories:
        rng = np.random.RandomState(seed)
        for anomalous in (False, True):
            keys = sorted(
                s.key for s in dataset.samples if s.category == category and s.anomalous == anomalous
            )
            if len(keys) < shots // 2:
                kind = "anomalous" if anomalous else "normal"
                raise UsageError(
                    f"--shots {shots}: category '{category}' of '{dataset.id}' has only {len(keys)} {kind} "
                    f"images; give --shots {2 * len(keys) or 2} or less, or another dataset"
                )
            chosen |= {keys[row] for row in rng.permutation(len(keys))[: shots // 2]}
    return replace(dataset, samples=tuple(s for s in dataset.samples if s.key in chosen))
