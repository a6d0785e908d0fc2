"""Anomaly maps of other code bases: files named after the sample keys, scored like our own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..environment import environment
from ..errors import RecordError
from ..files import contents_digest, digest_of
from ..metrics import as_real
from ..records import Record, write_observation
from ..scoring import Maps, frame, read_scores, score_all
from ..scoring import protocol as make_protocol
from .jobs import Request, describe_dataset, find_samples

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".npy", ".npz", ".tiff", ".tif", ".png")


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

    The map of sample ``a/b.png`` is ``a/b.npy``, ``.npz`` (its only or ``map`` array), ``.tiff`` or ``.png``
    (8 or 16 bit).  Image scores come from ``scores`` (csv with key,score), else each map's maximum.
    Under ``reference`` maps are brought to the size of the image's own mask.

    Raises:
        RecordError: listing samples without a map or score, or a file that is no map.
    """
    request = Request(data=data, categories=tuple(categories) if categories else None, workers=workers)
    samples, skipped = find_samples(dataset, request)
    files = {sample.key: _file_of(maps, sample.key) for sample in samples.samples}
    _refuse_missing(maps, [key for key, file in files.items() if file is None], "map")
    table = read_scores(scores) if scores else None
    if table is not None and scores is not None:
        _refuse_missing(scores, [key for key in files if key not in table], "score")
    rules = make_protocol(protocol, reference_size="native", reference_masks="native", **options)
    found = {key: file for key, file in files.items() if file is not None}
    contents = contents_digest({key: _sha256(file) for key, file in found.items()})
    digest = digest_of([name, samples.digest, contents, sorted((table or {}).items())])
    run_dir = out / samples.id / name.replace("/", "_") / digest[:12]
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

    def by_category() -> Iterator[tuple[str, Maps]]:
        for category in samples.categories:
            keys = [sample.key for sample in samples.samples if sample.category == category]
            yield category, ForeignMaps(keys, found, table)

    return score_all(run_dir, observation, samples, rules, by_category(), workers)


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


def read_map(path: Path) -> NDArray[np.floating[Any]]:
    """Return the map in a .npy, .npz, .tiff or .png file as reals (H, W).

    They are float64 where float32 cannot hold them.

    Raises:
        RecordError: if the file is damaged, holds no single map, or numbers that are not finite.
    """
    try:
        values = _read(path)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise RecordError(f"{path}: cannot be read as an anomaly map ({error}); write it again") from None
    values = np.squeeze(values)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise RecordError(
            f"{path}: an anomaly map is one array of numbers (H, W); this is {values.dtype} {values.shape}"
        )
    values = as_real(values)
    if not np.isfinite(values).all():
        raise RecordError(f"{path}: the map holds numbers that are not finite; write it again")
    return values


def _read(path: Path) -> NDArray[Any]:
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            if len(names) != 1 and "map" not in names:
                raise ValueError(f"it holds {names}; name the array 'map'")
            return np.asarray(archive["map" if "map" in names else names[0]])
    import cv2

    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("not an image")
    return np.asarray(pixels)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _file_of(folder: Path, key: str) -> Path | None:
    base = folder / key
    candidates = (candidate for s in SUFFIXES for candidate in (base.with_suffix(s), Path(f"{base}{s}")))
    return next((path for path in candidates if path.is_file()), None)


def _refuse_missing(place: Path, keys: Sequence[str], what: str) -> None:
    if keys:
        shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
        raise RecordError(
            f"{place}: no {what} for {len(keys)} samples: {shown}; {what}s are found by the sample's key "
            f"(its path below the dataset), as in {Path(keys[0]).with_suffix('.npy')}"
            if what == "map"
            else f"{place}: no {what} for {len(keys)} samples: {shown}; add rows with their keys"
        )
