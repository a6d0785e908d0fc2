"""The maps of a finished run, rendered from its evidence, beside the dataset it was made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from copy import copy
from pathlib import Path
from typing import Any

from ..data import load_dataset, load_validation, subset
from ..errors import RecordError
from ..method import Resolved, override
from ..records import EvidenceStore, Kept, Record, Slice, by_category, check_run, joined_digest, plan
from ..samples import Dataset
from .category import NOTHING_FIXED, CategoryScores, EvidenceMaps, Fixed, MapReader, score_category
from .code import NOBODY, UserMethods, restore
from .protocol import EvaluationProtocol


class StoredMaps:
    """The maps of a finished run, rendered from its evidence under one protocol."""

    def __init__(
        self, run_dir: Path, resolved: Resolved, dataset: Dataset, rules: EvaluationProtocol
    ) -> None:
        method = resolved.inductive if rules.inductive else resolved.method
        self.method = override(method, rules.map_parameters)
        self.dataset, self.rules = dataset, rules
        self.store: EvidenceStore = EvidenceStore(run_dir)
        slices = plan(dataset.samples, whole_categories=resolved.whole_categories)
        self._slices = dict(by_category(dataset.samples, slices))

    @classmethod
    def of(cls, record: Record, data: Path | None = None, users: UserMethods = NOBODY) -> StoredMaps:
        """Return the maps a record was computed from.

        Raises:
            RecordError: for foreign maps, which are not kept, evidence of another version of a method, and
                users' methods that ``users`` lacks.
            DatasetError: if the dataset is not found.
        """
        said = record.observation
        if said["method"].get("foreign") or not said["method"].get("spec"):
            raise RecordError(f"{record.method}: maps of other code, scored here; they are not stored")
        check_run(record.path, said, record.protocol)
        rules = EvaluationProtocol.of(record.protocol)
        return cls(record.path.parents[1], restore(said, users), observed_dataset(said, data), rules)

    @property
    def categories(self) -> list[str]:
        """The categories, in the order of the dataset."""
        return list(self._slices)

    def scored(self, category: str, workers: int = 0, fixed: Fixed = NOTHING_FIXED) -> CategoryScores | None:
        """Return every metric of a category; None where none of its images could be read.

        ``workers`` and ``fixed`` as for :func:`score_category`.

        Raises:
            RecordError: if a slice is missing, damaged or of other images.
            DatasetError: if a mask cannot be read.
        """
        part = self.part(category)
        if not part.keys:
            return None
        samples = [sample for sample in self.dataset.samples if sample.category == category]
        found = score_category(
            category, samples, self.rendered(part), self.rules, self.dataset, workers=workers, fixed=fixed
        )
        hashes = dict(zip(part.keys, part.hashes, strict=True))
        return dataclasses.replace(found, hashes=hashes, evidence=part.digest)

    def alone(self, category: str) -> StoredMaps:
        """Return the maps of one category, with its evidence in memory.

        Raises:
            RecordError: if a slice is missing.
        """
        numbers = self._slices[category]
        found, store = copy(self), Kept(self.store.folder.parent)
        store.contents |= {number: self.store.content(number) for number in numbers}
        samples = tuple(sample for sample in self.dataset.samples if sample.category == category)
        found.dataset = dataclasses.replace(self.dataset, samples=samples, problems=())
        found.store, found._slices = store, {category: numbers}
        return found

    def part(self, category: str) -> Slice:
        """Return the evidence of a category.

        Raises:
            RecordError: if a slice is missing, damaged or of other images.
        """
        part = self.store.category(self._slices[category])
        known = {sample.key for sample in self.dataset.samples if sample.category == category}
        if not known.issuperset(part.keys):
            raise RecordError(
                f"{self.store.folder}: the evidence of '{category}' is of other images; delete the folder "
                "and repeat the zsad run command"
            )
        return part

    def digests(self, slices: Mapping[int, Slice]) -> dict[str, str]:
        """Return the digests by category that :meth:`scored` will find, of slices that were read before."""
        parts = {name: [slices[number] for number in numbers] for name, numbers in self._slices.items()}
        return {name: joined_digest(own) for name, own in parts.items() if any(part.keys for part in own)}

    def rendered(self, part: Slice) -> EvidenceMaps:
        """Return the maps of evidence."""
        return EvidenceMaps(self.method, part, self.rules.exact_maps)

    def reader(self, category: str) -> MapReader:
        """Return the maps and masks of a category."""
        maps = self.rendered(self.part(category))
        known = {sample.key: sample for sample in self.dataset.samples if sample.category == category}
        return MapReader(self.rules, maps, known, self.dataset)


def observed_dataset(observation: Mapping[str, Any], data: Path | None) -> Dataset:
    """Return the samples an observation was made of, from ``data`` or from where they lay then.

    Raises:
        RecordError: if the list of samples is another one now.
        DatasetError: if the dataset is not found.
    """
    said = observation["dataset"]
    spec, root = said["spec"], Path(said["root"])
    place = data or (root if root.is_dir() else None)
    if Path(spec).suffix != ".toml" and Path(spec).is_absolute():  # a bare folder is its own description
        spec, place = str(data or spec), None
    chosen = said.get("selection") or {}
    categories = chosen.get("categories") or ()
    dataset = load_dataset(spec, place, skip_bad=True, allow_missing=True, categories=categories)
    dataset = subset(dataset, limit=chosen.get("limit"), categories=categories)
    dataset = without(dataset, said.get("skipped", ()))
    if dataset.digest != said["digest"]:
        raise RecordError(
            f"dataset '{said['id']}' in {dataset.root} lists other samples than when it was observed; give "
            "the same data with --data, or run again"
        )
    return dataset


def validation_of(
    spec: str,
    dataset: Dataset,
    limit: int | None = None,
    *,
    skip_bad: bool = True,
    follow_outside: bool = False,
) -> Dataset | None:
    """Return the normal validation images beside test images; None where the description names none.

    A ``limit`` that cuts the test images holds for them as well.

    Raises:
        DatasetError: as :func:`zsadbench.data.load_validation` says.
    """
    if Path(spec).suffix != ".toml" and Path(spec).is_absolute():
        spec = str(dataset.root)
    found = load_validation(spec, dataset, skip_bad=skip_bad, follow_outside=follow_outside)
    return subset(found, limit=limit) if found and found.samples and dataset.cut else found


def without(dataset: Dataset, keys: Collection[str]) -> Dataset:
    """Return ``dataset`` less the samples of the given keys."""
    if not keys:
        return dataset
    samples = tuple(sample for sample in dataset.samples if sample.key not in keys)
    present = {sample.category for sample in samples}
    categories = tuple(category for category in dataset.categories if category in present)
    return dataclasses.replace(dataset, samples=samples, categories=categories)
