"""A file beside its method on a dataset: what its metrics lose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DatasetError
from ..images import Loaded, stream
from ..maps import upsample
from ..metrics import SEVEN
from ..records import Slice
from ..samples import Dataset, Sample
from ..scoring import EvidenceMaps, protocol, score_category
from ..views import ClipEngine
from .model import ModelEngine


@dataclass(frozen=True)
class Validation:
    """Metrics of the method in torch and of the file, by id, in [0, 1], means over categories.

    ``failed`` of the ``images`` could not be read; ``allowed`` is how far a metric may change, in points.
    """

    dataset: str
    images: int
    failed: int
    metrics: Mapping[str, tuple[float, float]]
    allowed: float

    @property
    def change(self) -> float:
        """The largest change of a metric, in points."""
        return max((100 * abs(file - method) for method, file in self.metrics.values()), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether no metric changes by more than is allowed."""
        return self.change <= self.allowed

    @property
    def words(self) -> str:
        """What was found, in one line."""
        told = ", ".join(
            f"{name} {100 * method:.2f} -> {100 * file:.2f}" for name, (method, file) in self.metrics.items()
        )
        unread = f", {self.failed} of them unreadable" if self.failed else ""
        return (
            f"{self.dataset}, {self.images} images{unread}: {told}; "
            f"changes by {self.change:.2g} points at most ({self.allowed:g} allowed)"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the numbers and whether they pass."""
        return vars(self) | {"change": self.change, "passed": self.passed}


@dataclass(frozen=True)
class FileMaps:
    """The maps (N, h, w) and scores (N,) that a file gave for one category, as scoring reads them."""

    keys: Sequence[str]
    maps: NDArray[np.float32]
    scores: NDArray[np.float64]
    frame: tuple[int, int]

    def own_size(self, row: int) -> tuple[int, int]:
        """Return the size of the network's input."""
        return self.frame

    def render(self, row: int, size: tuple[int, int] | None) -> NDArray[np.float32]:
        """Return one map, bilinear at ``size``."""
        one = torch.from_numpy(self.maps[row])
        return np.asarray(upsample(one[None], size or self.frame)[0].numpy())

    def image_scores(self, extrema: Tensor) -> Tensor:
        """Return the scores as they are."""
        return torch.from_numpy(self.scores)


def validate(engine: ClipEngine, model: ModelEngine, dataset: Dataset, allowed: float) -> Validation:
    """Return the metrics of both sides on the images of ``dataset``, under the method's own protocol.

    The prompts say the words of the file in all categories; image scores are inductive, as in the file.

    Raises:
        DatasetError: if no image can be read.
    """
    rules = protocol(
        "reference", reference_size=engine.resolved.size, reference_masks=engine.resolved.mask_resize
    )
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = []
    failed = 0
    for category, group in groupby(dataset.samples, key=lambda sample: sample.category):
        samples = list(group)
        sides = _observed(engine, model, samples)
        failed += len(samples) - (len(sides[0].keys) if sides else 0)
        if sides:
            method, file = (score_category(category, samples, one, rules, dataset).row for one in sides)
            rows.append((method, file))
    if not rows:
        raise DatasetError(f"{dataset.id}: none of its images can be read, so nothing is validated")
    metrics = {}
    for name in SEVEN:
        known = [(one[name], other[name]) for one, other in rows if None not in (one[name], other[name])]
        if known:
            method_mean, file_mean = np.mean(known, axis=0).tolist()
            metrics[name] = (method_mean, file_mean)
    return Validation(dataset.id, len(dataset.samples), failed, metrics, allowed)


def _observed(
    engine: ClipEngine, model: ModelEngine, samples: Sequence[Sample]
) -> tuple[EvidenceMaps, FileMaps] | None:
    """Return maps and scores of a category by both sides, of the images that can be read; None for none."""
    keys: list[str] = []
    theirs, ours = [], []
    for batch in _batches(engine, samples):
        keys += [one.sample.key for one in batch]
        theirs.append({name: torch.as_tensor(value) for name, value in engine.observe(batch).items()})
        ours.append(model.observe(batch))
    if not keys:
        return None
    evidence = {name: torch.cat([part[name] for part in theirs]) for name in theirs[0]}
    maps, scores = (np.concatenate([part[name] for part in ours]) for name in ("map", "score"))
    side = engine.spec.size
    file = FileMaps(keys, maps, scores.astype(np.float64), (side, side))
    return EvidenceMaps(engine.method, Slice(evidence, keys, [])), file


def _batches(engine: ClipEngine, samples: Sequence[Sample]) -> Iterator[list[Loaded]]:
    """Yield the images that can be read, in batches, under the engine's words."""
    named = [replace(sample, category=engine.words) for sample in samples]
    with closing(stream(named, [engine.spec])) as loader:
        while batch := list(islice(loader, engine.batch_size)):
            if good := [one for one in batch if one.error is None]:
                yield good
