"""Writes the ``meta.json`` that most code of the field reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import DatasetError
from ..files import write_atomic
from ..samples import Dataset, Sample

Entry = dict[str, str | int]


def meta_json(datasets: Iterable[Dataset]) -> dict[str, dict[str, list[Entry]]]:
    """Return splits of one dataset in the shared form: split -> class -> records, paths below the root.

    A normal image has the mask path ``""``, and so has an anomalous one without a mask.
    """
    splits: dict[str, dict[str, list[Entry]]] = {"train": {}, "test": {}}
    for dataset in datasets:
        classes = splits.setdefault(dataset.split, {})
        for sample in dataset.samples:
            classes.setdefault(sample.category, []).append(_entry(sample, dataset.root))
    return splits


def write_meta_json(path: Path, datasets: Iterable[Dataset], force: bool = False) -> None:
    """Write ``meta_json`` to a file, in UTF-8; an existing file is kept unless ``force``.

    Raises:
        DatasetError: if the file exists and ``force`` is not given.
    """
    if path.exists() and not force:
        raise DatasetError(f"{path} exists; give another name, or --force to replace it.")
    text = json.dumps(meta_json(datasets), ensure_ascii=False, indent=1)
    write_atomic(path, f"{text}\n".encode())


def _entry(sample: Sample, root: Path) -> Entry:
    return {
        "img_path": sample.image.relative_to(root).as_posix(),
        "mask_path": sample.mask.relative_to(root).as_posix() if sample.mask else "",
        "cls_name": sample.category,
        "specie_name": sample.specie,
        "anomaly": int(sample.anomalous),
    }
