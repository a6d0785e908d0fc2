"""Two methods on the same images: what a comparison holds, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..records import Record

if TYPE_CHECKING:
    from ..metrics import Interval

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """One metric of two methods on the same images: ``first`` - ``second``, rates in [0, 1].

    ``p`` is of the paired bootstrap; ``p_holm`` corrects it for the number of pairs, None for a single
    pair.  DeLong's test (image AUROC) and Wilcoxon's (at least eight categories) stand beside, not
    corrected.
    """

    first: str
    second: str
    category: str
    metric: str
    difference: float
    interval: Interval | None = None
    p: float | None = None
    p_holm: float | None = None
    p_delong: float | None = None
    p_wilcoxon: float | None = None

    @property
    def decisive(self) -> float | None:
        """The p-value to judge by."""
        return self.p if self.p_holm is None else self.p_holm

    @property
    def significant(self) -> bool:
        """Whether the difference is more than the choice of images explains."""
        return self.decisive is not None and self.decisive < SIGNIFICANT

    def line(self) -> dict[str, Any]:
        """Return the comparison as one flat mapping; undefined is None."""
        low, high = self.interval or (None, None)
        return {
            "first": self.first,
            "second": self.second,
            "category": self.category,
            "metric": self.metric,
            "difference": self.difference,
            "low": low,
            "high": high,
            "p": self.p,
            "p_holm": self.p_holm,
            "p_delong": self.p_delong,
            "p_wilcoxon": self.p_wilcoxon,
        }


def in_order(records: Sequence[Record], paths: Sequence[Path]) -> list[Record]:
    """Return records in the order of the ``paths`` they lie below."""
    given = [path.resolve() for path in paths]

    def place(record: Record) -> int:
        found = record.path.resolve()
        return next(i for i, path in enumerate(given) if path == found or path in found.parents)

    return sorted(records, key=place)
