"""Published numbers: read from the shipped table and matched with ours, never mixed with them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import resources

KINDS = ("author-log", "paper", "quoted", "rerun", "derived")
"""How a number came to us, the most trusted first."""

LEGACY_RULE = "legacy200"
_FEW_SHOT = re.compile(r"\d+-shot")
_WEIGHTS = re.compile(r"openai|laion\w+", re.IGNORECASE)


@dataclass(frozen=True)
class Published:
    """One published figure; ``value`` in [0, 1], ``category`` is ``mean`` for a whole dataset.

    ``rule`` tells for AUPRO whether it came from 200 thresholds (``legacy200``); ``backbone`` and
    ``image_size`` are empty where the source does not state them.
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

    @property
    def architecture(self) -> str:
        """The backbone's name as open_clip spells it; empty where it is not stated."""
        name = self.backbone.partition(" ")[0]
        return name.replace("/", "-").replace("@", "-").removesuffix("px")

    @property
    def weights(self) -> str:
        """The start of the weights' tag; empty where it is not stated."""
        found = _WEIGHTS.search(self.backbone.partition(" ")[2].replace("-", ""))
        return found[0].lower() if found else ""

    @property
    def size(self) -> int | None:
        """The network's input size; None where it is not stated."""
        return int(self.image_size) if self.image_size else None

    @property
    def retrained(self) -> bool:
        """Whether it is of a checkpoint that others trained."""
        return self.variant.startswith("retrained")

    @property
    def about(self) -> str:
        """What the figure was made with and where it stands."""
        size = f"{self.image_size} px" if self.image_size else ""
        return ", ".join(filter(None, [self.variant, self.backbone, size, self.source]))


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


def published_figures(
    method: str, variant: str, dataset: str, category: str, metrics: Iterable[str], legacy: bool
) -> list[Published]:
    """Return the figures of a method and variant, the most trusted first; equals as they are listed.

    A variant of ours has figures of its own name only (``clip@ac`` those of ``clip-ac``), the
    reference has the zero-shot ones.  An AUPRO from 200 thresholds is returned for ``legacy`` boards
    alone, every other AUPRO for exact ones alone.
    """
    wanted = set(metrics)
    found = [
        entry
        for entry in _by_place().get((dataset, category), ())
        if entry.metric in wanted
        and _same_method(entry, method, variant)
        and (not _is_aupro(entry.metric) or (entry.rule == LEGACY_RULE) == legacy)
    ]
    return sorted(found, key=lambda entry: (KINDS.index(entry.kind), bool(entry.variant)))


@cache
def _by_place() -> dict[tuple[str, str], list[Published]]:
    places: dict[tuple[str, str], list[Published]] = {}
    for entry in published_numbers():
        places.setdefault((entry.dataset, entry.category), []).append(entry)
    return places


def _is_aupro(metric: str) -> bool:
    return metric.partition("@")[0] == "pixel_aupro"


def _same_method(entry: Published, method: str, variant: str) -> bool:
    if variant == "reference":
        return entry.method == method and not _FEW_SHOT.fullmatch(entry.variant)
    return entry.method == f"{method}-{variant}" or (entry.method, entry.variant) == (method, variant)
