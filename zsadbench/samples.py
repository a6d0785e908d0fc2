"""A description and a folder become a list of samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a dataset."""

    key: str
    category: str
    anomalous: bool
    image: Path
    mask: Path | None
    specie: str = ""
