"""Hands a stage its batches: decoded ahead, varied, and frozen features computed once.

Features of an image that is neither augmented nor changed by what is learned are the same in every
epoch: they are computed in one pass in the order of the dataset, kept in memory or, above a bound, in a
file that vanishes with the process, and never depend on where an interrupted training went on.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import MethodError
from ..images import ahead, default_workers
from ..inputs import Batch
from .data import Example, TrainingSet
from .stages import Features, Stage, Truth

BATCHES_AHEAD = 3


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
        """Tell a stage the batches of an epoch, and compute its frozen features once, if they may be kept."""
        self.cache = None
        stage.batches = math.ceil(len(self.data.samples) / stage.batch_size)
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
        """Return what is known of some samples, ``masks`` (B, H, W) among it."""
        samples = [self.data.samples[index] for index in indices]
        labels = torch.tensor([int(sample.anomalous) for sample in samples], device=self.device)
        return Truth(masks.float(), labels, [sample.category for sample in samples])
