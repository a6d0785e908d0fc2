"""What training reads: images with masks, few-shot choices, and frozen features computed once.

Features of an image that is neither augmented nor changed by what is learned are the same in every
epoch: they are computed in one pass in the order of the dataset, kept in memory or, above a bound, in a
file that vanishes with the process, and never depend on where an interrupted training went on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .ahead import ahead
from .decoding import default_workers
from .errors import DatasetError, MethodError, UsageError
from .images import decode, mask_at, preprocess, to_batch_images
from .masks import MaskRule
from .method import Batch, Preprocess
from .samples import Dataset, Sample

if TYPE_CHECKING:
    from .training import Features, Stage, Truth

BATCHES_AHEAD = 3


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


class FeatureCache:
    """Named rows for ``count`` images, in memory or in a file without a name."""

    def __init__(self, count: int, rows: Mapping[str, Tensor], folder: Path | None) -> None:
        self.table = {
            name: _store((count, *value.shape[1:]), value.dtype, folder) for name, value in rows.items()
        }

    def write(self, start: int, rows: Mapping[str, Tensor]) -> None:
        """Keep the rows of the images from ``start`` on."""
        for name, value in rows.items():
            self.table[name][start : start + len(value)] = value.cpu()

    def rows(self, indices: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Return the rows of some images on ``device``."""
        return {name: store[list(indices)].to(device) for name, store in self.table.items()}


def _store(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None) -> Tensor:
    if folder is None:
        return torch.empty(shape, dtype=dtype)
    numbers = int(np.prod(shape))
    size = numbers * dtype.itemsize
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".features-", suffix=".part") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is found now, not as a crash later
        return torch.from_file(file.name, shared=True, size=numbers, dtype=dtype).view(shape)


@dataclass(frozen=True)
class CacheBounds:
    """How many bytes of features may be kept in memory and, above that, in a file in ``folder``."""

    memory: int = 4 << 30
    disk: int = 64 << 30
    folder: Path = Path()

    def place(self, size: int) -> str:
        """Return "memory", "disk" or "nowhere" for ``size`` bytes."""
        if size <= self.memory:
            return "memory"
        return "disk" if size <= min(self.disk, _free(self.folder) * 9 // 10) else "nowhere"


def _free(folder: Path) -> int:
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


class Feeder:
    """Gives the batches of an epoch: frozen features and the truth, on the device."""

    def __init__(
        self,
        data: TrainingSet,
        device: torch.device,
        seed: int,
        *,
        bounds: CacheBounds | None = None,
        workers: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if data.spec.tiles != "none" or data.spec.resize != "squash":
            raise MethodError("training takes whole square images: leave tiles=none and resize=squash")
        self.data, self.device, self.seed, self.say = data, device, seed, say
        self.bounds, self.workers = bounds or CacheBounds(), workers or default_workers()
        self.cache: FeatureCache | None = None

    def begin(self, stage: Stage) -> None:
        """Compute the frozen features of a stage once, if they may be kept."""
        self.cache = None
        if not stage.cached:
            return
        indices = list(range(len(self.data.samples)))
        chunks = [indices[i : i + stage.batch_size] for i in range(0, len(indices), stage.batch_size)]
        with closing(ahead(self.data.example, indices, self.workers, self._ahead(stage))) as examples:
            for chunk in chunks:
                rows = self.encode(stage, chunk, [next(examples) for _ in chunk])
                if self.cache is None:
                    self.cache = self._allocate(rows)
                if self.cache is None:
                    return
                self.cache.write(chunk[0], rows)

    def _allocate(self, rows: Mapping[str, Tensor]) -> FeatureCache | None:
        count = len(self.data.samples)
        size = sum(value[0].nbytes for value in rows.values()) * count
        place, cache = self.bounds.place(size), None
        if place != "nowhere":
            with suppress(OSError):
                cache = FeatureCache(count, rows, self.bounds.folder if place == "disk" else None)
        amount = f"frozen features of {count} images, {size / 2**30:.2f} GiB"
        if cache is None:
            self.say(f"{amount}: more than may be kept; they are computed again in every epoch")
        elif place == "disk":
            self.say(f"{amount}: kept in a file in {self.bounds.folder} until the end")
        return cache

    def _ahead(self, stage: Stage) -> int:
        return BATCHES_AHEAD * stage.batch_size

    def epoch(self, stage: Stage, number: int, epoch: int) -> Iterator[tuple[Features, Truth]]:
        """Yield the batches of an epoch of stage ``number``."""
        count = len(self.data.samples)
        order = np.arange(count)
        if stage.shuffle:
            order = np.random.default_rng([self.seed, number, epoch]).permutation(count)
        indices = [int(index) for index in order]
        call = partial(self._vary, stage, number, epoch)
        with closing(ahead(call, indices, self.workers, self._ahead(stage))) as examples:
            for start in range(0, count, stage.batch_size):
                chunk = indices[start : start + stage.batch_size]
                rows = self._rows(stage, chunk, [next(examples) for _ in chunk])
                yield {k: v for k, v in rows.items() if k != "mask"}, self.truth(chunk, rows["mask"])

    def _vary(self, stage: Stage, number: int, epoch: int, index: int) -> Example | None:
        varied = None
        if stage.vary is not None:
            varied = stage.vary(self.data, index, np.random.default_rng([self.seed, number, epoch, index]))
        return self.data.example(index) if varied is None and self.cache is None else varied

    def _rows(
        self, stage: Stage, chunk: Sequence[int], examples: Sequence[Example | None]
    ) -> dict[str, Tensor]:
        """Return features and masks: of fresh examples through the tower, of all others from the cache."""
        fresh = [place for place, example in enumerate(examples) if example is not None]
        computed: dict[str, Tensor] = {}
        if fresh:
            found = [example for example in examples if example is not None]
            computed = self.encode(stage, [chunk[place] for place in fresh], found)
        if len(fresh) == len(chunk):
            return computed
        assert self.cache is not None
        rows = self.cache.rows(chunk, self.device)
        for name, value in computed.items():
            rows[name][fresh] = value
        return rows

    def encode(self, stage: Stage, indices: Sequence[int], examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the frozen features and the ``mask`` (B, S, S) of examples, on the device."""
        images = torch.stack([example.image for example in examples]).to(self.device)
        side = images.shape[-1]
        samples = [self.data.samples[index] for index in indices]
        batch = Batch(
            images[:, None],
            torch.tensor([0, 0, side, side]).expand(len(images), 1, 4),
            torch.tensor([side, side]).expand(len(images), 2),
            [sample.key for sample in samples],
            [sample.category for sample in samples],
        )
        with torch.no_grad():
            features = stage.features(batch)
        masks = torch.stack([example.mask for example in examples]).to(self.device)
        return {**features, "mask": masks}

    def truth(self, indices: Sequence[int], masks: Tensor) -> Truth:
        """Return what is known of some samples."""
        from .training import Truth

        samples = [self.data.samples[index] for index in indices]
        labels = torch.tensor([int(sample.anomalous) for sample in samples], device=self.device)
        return Truth(masks.float(), labels, [sample.category for sample in samples])
