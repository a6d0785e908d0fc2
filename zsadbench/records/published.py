"""Published numbers: read from the shipped table and matched with ours, never mixed with them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources

KINDS = ("paper", "author-log", "quoted", "rerun", "derived")
"""How a number came to us, the most trusted first."""

LEGACY_RULE = "legacy200"
_FEW_SHOT = re.compile(r"\d+-shot")


@dataclass(frozen=True)
class Published:
    """One published figure; ``value`` in [0, 1], ``category`` is ``mean`` for a whole dataset.

    ``rule`` tells for AUPRO whether it came from 200 thresholds (``legacy200``).
    """

    method: str
    variant: str
    dataset: str
    category: str
    metric: str
    value: float
    kind: str
    backbone: str
    image_size: str
    source: str
    rule: str

    @property
    def rule_unknown(self) -> bool:
        """Whether the source does not say how its AUPRO was computed."""
        return _is_aupro(self.metric) and self.rule != LEGACY_RULE


@cache
def published_numbers() -> tuple[Published, ...]:
    """Return every row of the shipped table, in its order."""
    text = resources.files("zsadbench.results").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            method=row["method"],
            variant=row["variant"],
            dataset=row["dataset"],
            category=row["category"],
            metric=row["metric"],
            value=float(Decimal(row["value"]) / 100),
            kind=row["kind"],
            backbone=row["backbone"],
            image_size=row["image_size"],
            source=row["source"],
            rule=row["protocol"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def best_published(
    method: str, variant: str, dataset: str, category: str, metrics: Iterable[str], legacy: bool
) -> dict[str, Published]:
    """Return by metric the most trusted figure for a method and variant; of equals the first listed.

    A variant of ours has figures of its own name only (``clip@ac`` those of ``clip-ac``), the
    reference has the zero-shot ones.  An AUPRO from 200 thresholds is returned for ``legacy`` boards
    alone, every other AUPRO for exact ones alone.
    """
    wanted = set(metrics)
    found: dict[str, Published] = {}
    for entry in published_numbers():
        if (entry.dataset, entry.category) != (dataset, category) or entry.metric not in wanted:
            continue
        if not _same_method(entry, method, variant):
            continue
        if _is_aupro(entry.metric) and (entry.rule == LEGACY_RULE) != legacy:
            continue
        known = found.get(entry.metric)
        if known is None or KINDS.index(entry.kind) < KINDS.index(known.kind):
            found[entry.metric] = entry
    return found


def _is_aupro(metric: str) -> bool:
    return metric.partition("@")[0] == "pixel_aupro"


def _same_method(entry: Published, method: str, variant: str) -> bool:
    if variant == "reference":
        return entry.method == method and not _FEW_SHOT.fullmatch(entry.variant)
    return entry.method == f"{method}-{variant}" or (entry.method, entry.variant) == (method, variant)
