"""Which masks numbers were taken with: their digest in a record, and what changed since an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..files import digest_of
from ..records import MASK_COLUMN, Contents, read_masks
from ..samples import Dataset


class Masks:
    """The masks of a dataset as they are now: the SHA-256 of each by its image's key."""

    def __init__(self, dataset: Dataset, contents: Contents) -> None:
        self.hashes = contents.masks() if dataset.masks != "none" else {}
        rules = (dataset.masks, dataset.mask_positive, dataset.mask_mismatch, dataset.empty_mask)
        self.digest = digest_of([self.hashes, *map(str, rules)])
        """Over every mask and over what decides how masks are read."""

    def beside(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row of ``images.csv`` with the digest of its mask, where the dataset has masks."""
        return {**row, MASK_COLUMN: self.hashes.get(row["key"], "")} if self.hashes else dict(row)

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
