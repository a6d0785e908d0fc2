"""What a dataset description says, once it is parsed and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..samples import Expect, Masks
from .templates import Segment, Template

Values = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Rule:
    """One ``[[samples]]`` block."""

    where: str
    image: tuple[Template, ...]
    mask: tuple[Template, ...]
    tables: tuple[Template, ...]
    """Where the samples are listed, of which the first that exists counts; empty: the folders tell."""
    records: tuple[Segment, ...] | None
    columns: Mapping[str, str]
    header: tuple[str, ...]
    """The columns of a table without a line of headings."""
    separator: str
    parts: tuple[Template, ...]
    """Take the path of a listed image apart: what they capture are fields too."""
    normal_when: Values
    anomaly_when: Values
    label: str
    category: Template
    split: Template | None
    specie: Template | None
    groups: Mapping[str, Template]
    saturation: Template | None = None
    """The file that says how much of each defect must be found (sPRO), MVTec LOCO's defects_config.json."""


@dataclass(frozen=True)
class Description:
    """What a ``.toml`` of a dataset says."""

    path: Path
    id: str
    title: str
    domain: str
    license: str
    url: str
    citation: str
    subroot: tuple[str, ...]
    exclude: tuple[str, ...]
    masks: Masks
    mask_positive: str | tuple[int, ...]
    mask_mismatch: str
    empty_mask: str
    expect: Expect | None
    classes: Mapping[str, str]
    rules: tuple[Rule, ...]
    backbone: str = ""
    validation: str = ""
    """The split whose normal images fix thresholds; empty: there is none."""
    remarks: tuple[str, ...] = ()
    """What the user should know of a description that was found out."""

    def words(self, category: str) -> str:
        """Return the default words of a category: the class table's, else the name without underscores."""
        return self.classes.get(category) or category.replace("_", " ").strip()

    def outline(self) -> list[str]:
        """Return the expected tree, one path template a line."""
        parts = [part for r in self.rules for part in r.tables[:1] + r.image + r.mask]
        lines = dict.fromkeys(part.outline() for part in parts)
        return [line for line in lines if line not in ("{image}", "{mask}")]
