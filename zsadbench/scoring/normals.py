"""Thresholds that no test label fixes: from the evidence of normal validation images (SegF1, ClassF1).

The validation images are observed beside the test images, into a folder of their own, when a metric that
needs them is asked for.  They are scored like the test images of their category, under the same protocol.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch

from ..errors import RecordError
from ..files import contents_digest
from ..method import Resolved
from ..metrics import NEEDS_NORMALS, Spread, image_threshold, pixel_threshold
from ..records import EvidenceStore, Slice, joined_digest, plan
from ..samples import Dataset
from .category import Fixed
from .protocol import EvaluationProtocol
from .stored import StoredMaps

VALIDATION = "validation"
"""Folder of an observation that holds the evidence of its validation images."""
_NO_SPLIT = "the description of the dataset names no validation images"
_RELATES = "the method judges images by the others of their category: a validation image alone has no score"
_TRANSDUCTIVE = (
    "the image scores lie between the lowest and the highest of the test images; under --protocol common-1 "
    "they do not"
)


def needs_normals(metrics: Sequence[str]) -> tuple[str, ...]:
    """Return those of ``metrics`` that need normal validation images."""
    return tuple(metric for metric in metrics if metric in NEEDS_NORMALS)


def no_thresholds(rules: EvaluationProtocol, why: str) -> Fixed:
    """Return that there is no threshold, for one reason."""
    return Fixed({}, dict.fromkeys(needs_normals(rules.metrics), why))


class Normals:
    """The normal validation images of an observation, and the thresholds that they fix.

    ``validation`` are their samples, None where the dataset has none by its description.  With ``strict``
    evidence of more images than these is refused: then they were not listed from the same files.

    Raises:
        RecordError: if some of them are not observed.
    """

    def __init__(
        self,
        run_dir: Path,
        resolved: Resolved,
        validation: Dataset | None,
        rules: EvaluationProtocol,
        strict: bool = False,
    ) -> None:
        self.resolved, self.rules, self.validation = resolved, rules, validation
        self.slices: list[Slice] = []
        self._why = _RELATES if resolved.relates else _NO_SPLIT if validation is None else ""
        if validation is None or self._why:
            return
        folder = run_dir / VALIDATION
        self._stored = StoredMaps(folder, resolved, validation, rules)
        store = EvidenceStore(folder)
        for number, part in enumerate(plan(validation.samples, whole_categories=resolved.whole_categories)):
            found = store.find(number, [validation.samples[i].key for i in part])
            if found is None:
                asked = " ".join(f"--metric {metric}" for metric in needs_normals(rules.metrics))
                raise RecordError(
                    f"{run_dir}: {len(validation.samples)} validation images are not observed, or not all of "
                    f"them; repeat the zsad run command with {asked}"
                )
            self.slices.append(found)
        if strict and len([*store.folder.glob("*.safetensors")]) > len(self.slices):
            raise RecordError(
                f"{store.folder}: holds evidence of validation images that are not in {validation.root} now; "
                "give the same data with --data, or repeat the zsad run command"
            )

    def described(self) -> dict[str, Any]:
        """Return what a record says of the validation images; nothing where none is used."""
        if self.validation is None or self._why:
            return {}
        return {
            VALIDATION: {
                "split": self.validation.split,
                "images": sum(len(part.keys) for part in self.slices),
                "failed": sum(len(part.failed) for part in self.slices),
                "digest": self.validation.digest,
                "contents": contents_of(self.slices),
                "evidence": joined_digest(self.slices),
            }
        }

    def warnings(self, tested: Sequence[str]) -> list[str]:
        """Return what deserves a look; ``tested`` are the SHA-256 of the test images."""
        failed = [key for part in self.slices for key in part.failed]
        same = set(tested).intersection(sha256 for part in self.slices for sha256 in part.hashes)
        return [
            *([f"{len(failed)} validation images could not be read (first {min(failed)})"] if failed else []),
            *([f"{len(same)} validation images are test images, byte for byte"] if same else []),
        ]

    def alone(self, category: str) -> Normals:
        """Return them with the evidence of one category in memory, to fix its thresholds elsewhere."""
        found = copy(self)
        found.slices = []
        found.validation = self.validation and dataclasses.replace(self.validation, samples=(), problems=())
        if not self._why and category in self._stored.categories:
            found._stored = self._stored.alone(category)
        return found

    def fixed(self, category: str, workers: int | None = None) -> Fixed:
        """Return the thresholds of a category."""
        if self._why:
            return no_thresholds(self.rules, self._why)
        none = f"no normal validation image (split '{self.validation.split}')" if self.validation else ""
        if category not in self._stored.categories:
            return no_thresholds(self.rules, none)
        reader = self._stored.reader(category)
        keys = reader.maps.keys
        if not keys:
            return no_thresholds(self.rules, none)
        extrema = torch.zeros(len(keys), 2, dtype=torch.float64)
        spreads = []
        for row, one, _ in reader.visit(workers):
            extrema[row, 0], extrema[row, 1] = float(one.min()), float(one.max())
            spreads.append(Spread.of(one, keys[row]))
        values, reasons = {"pixel_segf1": pixel_threshold(spreads)}, {}
        if self.resolved.card.transductive and not self.rules.inductive:
            reasons["image_classf1"] = _TRANSDUCTIVE
        else:
            values["image_classf1"] = image_threshold(reader.maps.image_scores(extrema).double().numpy())
            reasons["image_classf1"] = "a single validation image has no spread"
        asked = needs_normals(self.rules.metrics)
        return Fixed(
            {name: at for name, at in values.items() if at is not None and name in asked},
            {name: why for name, why in reasons.items() if values.get(name) is None and name in asked},
        )


def contents_of(slices: Sequence[Slice]) -> str:
    """Return the digest over the images of some evidence."""
    return contents_digest({k: h for part in slices for k, h in zip(part.keys, part.hashes, strict=True)})
