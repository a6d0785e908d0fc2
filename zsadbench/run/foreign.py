"""Anomaly maps of other code bases: files named after the sample keys, scored like our own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..environment import environment
from ..errors import UsageError
from ..files import contents_digest, digest_of
from ..images import check_maps, find_maps, read_map, read_scores
from ..records import Record, write_observation
from ..samples import Dataset, Sample
from ..scoring import (
    CategoryScores,
    EvaluationProtocol,
    Fixed,
    Scoring,
    Unit,
    frame,
    no_thresholds,
    score_category,
    scored,
)
from ..scoring import protocol as make_protocol
from .jobs import Request, describe_dataset, find_samples

if TYPE_CHECKING:
    import pandas as pd

LONGEST_NAME = 200


def score_maps(maps: str | Path, dataset: str, **options: Any) -> pd.DataFrame:
    """Score a folder of anomaly maps; returns one row per category.

    ``options`` are those of :func:`score_maps_record`.
    """
    return frame([score_maps_record(Path(maps), dataset, **options)])


def score_maps_record(
    maps: Path,
    dataset: str,
    *,
    name: str = "foreign",
    scores: Path | None = None,
    data: Path | None = None,
    out: Path = Path("results"),
    categories: Sequence[str] | None = None,
    protocol: str = "reference",
    workers: int | None = None,
    **options: Any,
) -> Record:
    """Score the maps below ``maps``, one per sample, and write an observation and a record.

    The map of sample ``a/b.png`` is ``a/b.npy`` or ``a/b.png.npy``; the suffix may be ``.npz`` (its only or
    ``map`` array), ``.tiff`` or ``.png`` (8 or 16 bit).  Image scores come from ``scores`` (csv with
    key,score), else each map's maximum.
    Under ``reference`` maps are brought to the size of the image's own mask.

    Raises:
        RecordError: listing samples without a map or score, or a file that is no map, lies on its side
            or would be the map of two samples.
        UsageError: for a name that no folder can have.
    """
    folder = _folder_of(name)
    request = Request(data=data, categories=tuple(categories) if categories else None, workers=workers)
    samples, skipped = find_samples(dataset, request)
    rules = make_protocol(protocol, reference_size="native", reference_masks="native", **options)
    found = find_maps(maps, samples.samples)
    check_maps(found, samples.samples)
    table = read_scores(scores, found) if scores else None
    contents = contents_digest({key: _sha256(file) for key, file in found.items()})
    digest = digest_of([name, samples.digest, contents, sorted((table or {}).items())])
    run_dir = out / samples.id / folder / digest[:12]
    about = {
        "id": name,
        "variant": "reference",
        "title": name,
        "version": 0,
        "parameters": {},
        "foreign": True,
    }
    observation = {
        "observation": digest,
        "method": about,
        "backbone": None,
        "checkpoint": None,
        "dataset": describe_dataset(samples, dataset, skipped, request)
        | {"contents": contents_digest({sample.key: _sha256(sample.image) for sample in samples.samples})},
        "failed": [],
        "seed": None,
        "marks": ["foreign maps"],
        "environment": environment("cpu", "fp32"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "complete": True,
    }
    write_observation(run_dir, observation)

    units: list[Unit] = []
    fixed = no_thresholds(rules, "maps of other code come without maps of normal validation images")
    for category in samples.categories:
        of_it = [sample for sample in samples.samples if sample.category == category]
        given = ForeignMaps([sample.key for sample in of_it], found, table)
        units.append(partial(_scored, category, of_it, given, rules, samples, fixed))
    return next(scored([Scoring.of(run_dir, observation, samples, rules, units)], workers))


def _scored(
    category: str,
    samples: Sequence[Sample],
    maps: ForeignMaps,
    rules: EvaluationProtocol,
    dataset: Dataset,
    fixed: Fixed,
    workers: int,
) -> CategoryScores:
    return score_category(category, samples, maps, rules, dataset, workers=workers, fixed=fixed)


class ForeignMaps:
    """The maps of one category, read from files when asked for."""

    def __init__(
        self, keys: Sequence[str], files: Mapping[str, Path], scores: Mapping[str, float] | None
    ) -> None:
        self.keys, self.files, self.scores = keys, files, scores

    def own_size(self, row: int) -> None:
        """Return None: a foreign map is brought to the mask's own size."""

    def render(self, row: int, size: tuple[int, int] | None) -> NDArray[np.floating[Any]]:
        """Return the map of a row, resized bilinearly (half-pixel centres) where the size differs."""
        values = read_map(self.files[self.keys[row]])
        if size is None or values.shape == size:
            return values
        import cv2

        resized = cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return np.asarray(resized)

    def image_scores(self, extrema: Tensor) -> Tensor:
        """Return the given scores, or the maximum of each map."""
        if self.scores is None:
            return extrema[:, 1]
        return torch.tensor([self.scores[key] for key in self.keys], dtype=torch.float64)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _folder_of(name: str) -> str:
    """Return the folder of a foreign method's records.

    Raises:
        UsageError: if the name is empty, a step to another folder, or too long.
    """
    folder = name.strip().replace("/", "_")
    if folder in ("", ".", "..") or "\0" in folder or len(os.fsencode(folder)) > LONGEST_NAME:
        raise UsageError(
            f"--name '{name[:40]}': give a name of 1 to {LONGEST_NAME} bytes that can be a folder's"
        )
    return folder
