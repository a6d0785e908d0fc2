"""What numbers are taken from: masks, evidence, rules and code; and whether a record still stands on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..environment import code_digest, installed
from ..errors import RecordError
from ..files import digest_of
from ..method import Method, Resolved, source_digest
from ..records import MASK_COLUMN, RECORD, Contents, Record, read_masks, read_record
from ..samples import Dataset

_COUNTS = ("torch", "numpy", "scipy", "numba", "pillow")
"""The packages that maps and metrics are computed with."""
_RESULTS = frozenset({"schema", "record", "created", "categories", "warnings", "seconds", "tables", "seal"})
"""What a record holds beside what it was taken from."""


class Masks:
    """The masks of a dataset as they are now: the SHA-256 of each by its image's key."""

    def __init__(self, dataset: Dataset, contents: Contents) -> None:
        self.hashes = contents.masks() if dataset.masks != "none" else {}
        rules = (dataset.masks, dataset.mask_positive, dataset.mask_mismatch, dataset.empty_mask)
        self.digest = digest_of([self.hashes, *map(str, rules)])
        """Over every mask and over what decides how masks are read."""

    def beside(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a row of ``images.csv`` with the digest of its mask, where the dataset has masks."""
        return {**row, MASK_COLUMN: self.hashes.get(row["key"], "")} if self.hashes else row

    def changes(self, folder: Path) -> tuple[str, ...]:
        """Return in words which masks are not those of the record in ``folder``; nothing if there is none."""
        try:
            before = read_masks(folder)
        except RecordError:
            return ()
        changed = [key for key, sha256 in before.items() if self.hashes.get(key) != sha256]
        if not changed:
            return ()
        first = f"{len(changed)} masks changed since it was scored (first {min(changed)})"
        return (f"{folder}: {first}: scored again",)


def basis_of(resolved: Resolved, method: Method, dataset: Dataset) -> str:
    """Return the digest over the code that makes numbers of evidence, and what no other digest covers.

    Empty for a user's method: which other code it calls is not known.
    """
    if source_digest(resolved.card):
        return ""
    versions = [code_digest(), *map(installed, _COUNTS)]
    groups = {sample.key: dict(sample.groups) for sample in dataset.samples if sample.groups}
    return digest_of([versions, repr(method), dataset.split, groups])


def standing(folder: Path, claims: Mapping[str, Any]) -> Record | None:
    """Return the record in ``folder`` if it is as it was written, and taken from what is claimed.

    ``claims`` are everything that its numbers depend on, as a record holds it.  Without ``evidence`` or
    ``basis`` among them nothing stands.
    """
    if not (claims.get("evidence") and claims.get("basis")):
        return None
    try:
        found = read_record(folder / RECORD)
    except RecordError:
        return None
    said = {name: value for name, value in found.content.items() if name not in _RESULTS}
    stands = not found.edited and digest_of(said) == digest_of(claims)
    return dataclasses.replace(found, kept=True) if stands else None
