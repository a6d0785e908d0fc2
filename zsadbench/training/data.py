"""What training reads: images with masks, and few-shot choices."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..data import amount
from ..errors import DatasetError, UsageError
from ..images import MaskRule, decode, mask_at, preprocess, read_mask, to_batch_images
from ..inputs import Preprocess
from ..samples import Dataset, Sample


class Example(NamedTuple):
    """One image as it is learned from: ``image`` (3, S, S) normalised, ``mask`` (S, S) bool."""

    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TrainingSet:
    """Samples of one dataset or several, with the rules that turn them into examples."""

    datasets: tuple[Dataset, ...]
    spec: Preprocess
    mask_rule: MaskRule

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """The images to learn from, dataset after dataset, their categories told apart."""
        several = len(self.datasets) > 1
        return tuple(
            replace(sample, category=category_of(data, sample.category, several))
            for data in self.datasets
            for sample in data.samples
        )

    def dataset_of(self, index: int) -> Dataset:
        """Return the dataset that a sample is of."""
        ends = list(accumulate(len(data.samples) for data in self.datasets))
        return self.datasets[bisect(ends, index)]

    def image(self, index: int) -> Image.Image:
        """Return the decoded image of a sample."""
        return decode(self.samples[index].image, name=self.samples[index].key)

    def mask(self, index: int, size: tuple[int, int] | None) -> NDArray[np.bool_]:
        """Return the mask (H, W) of a sample at ``size``, or at the image's own."""
        data = self.dataset_of(index)
        return mask_at(
            self.samples[index],
            size,
            self.mask_rule if size else "native",
            positive=data.mask_positive,
            mismatch="nearest" if data.mask_mismatch == "nearest" else "error",
        )

    def input(self, image: Image.Image, name: str) -> Tensor:
        """Return ``image`` resized and normalised, (3, S, S)."""
        return to_batch_images([preprocess(image, self.spec, name=name)], self.spec)[0, 0]

    def example(self, index: int) -> Example:
        """Return a sample as it is."""
        side = self.spec.size
        mask = torch.from_numpy(self.mask(index, (side, side)))
        return Example(self.input(self.image(index), self.samples[index].key), mask)

    def changed(self, index: int, image: Image.Image, mask: NDArray[np.bool_]) -> Example:
        """Return what a sample was changed into, a picture with its mask (H, W) of the same size."""
        small = Image.fromarray(mask.astype(np.uint8) * 255).resize(
            (self.spec.size, self.spec.size), Image.Resampling.BILINEAR
        )
        return Example(self.input(image, self.samples[index].key), torch.from_numpy(np.array(small) > 127))


Variation = Callable[[TrainingSet, int, np.random.Generator], Example | None]
"""Returns another example in the place of a sample, or nothing to take the sample as it is."""


def category_of(data: Dataset, category: str, several: bool) -> str:
    """Return what a category is called in training: beside other datasets with its dataset's id."""
    return f"{data.id}/{category}" if several else category


def require_masks(dataset: Dataset) -> None:
    """Refuse a dataset with an anomalous image that has no mask, or without any defect to learn from.

    Masks are read until one holds a defect.

    Raises:
        DatasetError: saying which of these it is.
    """
    where = f"dataset '{dataset.id}' in {dataset.root}"
    anomalous = [sample for sample in dataset.samples if sample.anomalous]
    bare = [sample.key for sample in anomalous if sample.mask is None]
    if bare:
        raise DatasetError(
            f"{where}: {len(bare)} anomalous images have no mask (first {bare[0]}), and training needs "
            "masks; train on a dataset that has them"
        )
    if not anomalous:
        raise DatasetError(
            f"{where}: {amount(len(dataset.samples), 'normal image')} and no defect to learn from; "
            "train on a dataset with defects (the test part of another one, as the methods' authors do)"
        )
    masks = (sample.mask for sample in anomalous if sample.mask)
    if not any(read_mask(mask, dataset.mask_positive).any() for mask in masks):
        raise DatasetError(
            f"{where}: all {len(anomalous)} masks are empty (mask_positive = {dataset.mask_positive!r}), so "
            "there is no defect to learn from; `zsad datasets check` says why"
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
