"""From records to the rows of a board: the newest of equals, seeds together, one label for each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..files import digest_of
from ..metrics import AVERAGE_RANK, DERIVED, SEVEN, places, worth
from ..records import Published, Record
from .beside import MEAN, Choice, Source, beside, shortfall
from .labels import labels_of, map_parameters, short_digest

if TYPE_CHECKING:
    from ..metrics import Interval

By = Literal["method", "category"]

COSTS = {
    "encode_ms": "Encode ms/image",
    "own_ms": "Own ms/image",
    "images_per_s": "Encode images/s",
    "latency_ms": "Latency ms",
    "latency_p95_ms": "Latency ms (95 %)",
    "memory_mb": "Peak MB",
}
"""What a run took, by the names that are asked for beside those of metrics, with titles."""


@dataclass(frozen=True)
class Cell:
    """One number of a board: the mean over ``total`` categories (``used`` of them) and over seeds.

    It is a rate in [0, 1], of ``metric`` ``average_rank`` a place from 1 upwards.
    """

    value: float | None
    spread: float | None
    used: int
    total: int
    interval: Interval | None = None
    metric: str = ""

    @property
    def partial(self) -> bool:
        """Whether some categories have no value."""
        return self.value is not None and self.used < self.total

    def __str__(self) -> str:
        if self.value is None:
            return "n/a"
        text = as_printed(self.metric, self.value)
        text += f" ± {percent(self.spread)}" if self.spread is not None else ""
        text += f" {bounds(self.interval)}" if self.interval else ""
        return text + (f" ({self.used}/{self.total})" if self.partial else "")


@dataclass(frozen=True)
class Row:
    """A method on a board; several ``records`` differ in the seed only."""

    label: str
    category: str
    records: tuple[Record, ...]
    published: Mapping[str, Published] = field(default_factory=dict)
    """By metric, the published figure of the same method under the same conditions."""
    others: tuple[Source, ...] = ()
    """Where else figures of the method are published, if asked for."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    rank: int | None = None
    average_ranks: Mapping[str, float] = field(default_factory=dict)
    """By category, the mean of its places among the rows of a board."""

    @property
    def record(self) -> Record:
        """The first record: all share method, backbone and protocol."""
        return self.records[0]

    @property
    def digest(self) -> str:
        """Short digest of what was observed, over all seeds."""
        return short_digest(self.records)

    @property
    def marks(self) -> list[str]:
        """Marks of any of the records, each once."""
        found = dict.fromkeys(mark for record in self.records for mark in record.marks)
        return [*found, *filter(None, dict.fromkeys(map(shortfall, self.records)))]

    @property
    def created(self) -> str:
        """When the newest of its records was written, ISO 8601."""
        return max(record.created for record in self.records)

    def cell(self, metric: str) -> Cell:
        """Return the number of a metric, with the sample standard deviation over seeds."""
        if metric == AVERAGE_RANK:
            return self._average_rank()
        means = [self._mean(record, metric) for record in self.records]
        values = [value for value, _, _ in means if value is not None]
        spread = statistics.stdev(values) if len(values) > 1 else None
        value = math.fsum(values) / len(values) if values else None
        used = min(used for _, used, _ in means)
        return Cell(value, spread, used, means[0][2], self.intervals.get(metric), metric)

    def _average_rank(self) -> Cell:
        own = self.average_ranks
        ranks = [*own.values()] if self.category == MEAN else [own[c] for c in [self.category] if c in own]
        value = math.fsum(ranks) / len(ranks) if ranks else None
        return Cell(value, None, len(ranks), len(ranks), None, AVERAGE_RANK)

    def cost(self, name: str) -> float | None:
        """Return what the runs took, the mean over seeds; None where that is not known of all."""
        values = [_cost(record.observation, name) for record in self.records]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if len(known) == len(values) else None

    def standing(self, metric: str) -> float:
        """Return what to sort rows by, the best first and those without a value last."""
        value = self.cell(metric).value
        return math.inf if value is None else -worth(metric, value)

    def _mean(self, record: Record, metric: str) -> tuple[float | None, int, int]:
        if self.category == MEAN:
            return record.mean(metric)
        value = record.value(self.category, metric)
        return value, int(value is not None), 1


def _cost(seen: Mapping[str, Any], name: str) -> float | None:
    """Return one of :data:`COSTS`; None where an observation does not say it."""
    if name == "memory_mb":
        return _number(seen.get("peak_memory_mb"))
    said = seen.get("cost")
    said = said if isinstance(said, Mapping) else {}
    if name.startswith("latency"):
        latency = said.get("latency")
        key = "p95_ms" if "p95" in name else "median_ms"
        return _number(latency.get(key)) if isinstance(latency, Mapping) else None
    images, own, shared = (_number(said.get(key)) for key in ("images", "own_seconds", "shared_seconds"))
    if not images or own is None or shared is None:
        return None
    whole = 1000 * (own if name == "own_ms" else own + shared) / images
    return whole if name != "images_per_s" else 1000 / whole if whole else None


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    return float(value) if good else None


def cost_printed(value: float | None) -> str:
    """Return what a run took as text; empty where it is not known."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def percent(value: float) -> str:
    """Return a rate as percent with one decimal."""
    return f"{100 * value:.1f}"


def as_printed(metric: str, value: float) -> str:
    """Return a number of a board as text: a rate in percent, an average rank with two decimals."""
    return f"{value:.2f}" if metric == AVERAGE_RANK else percent(value)


def bounds(interval: Interval) -> str:
    """Return an interval of rates as percent with one decimal."""
    return f"[{percent(interval.low)}, {percent(interval.high)}]"


def rows_of(records: Sequence[Record], metrics: Sequence[str], by: By, published: Choice) -> list[Row]:
    """Return the rows of one group of records, unsorted but in a fixed order."""
    entries = _join_seeds(_newest(records))
    rows = []
    for label, entry in zip(labels_of(entries), entries, strict=True):
        categories = [MEAN] if by == "method" else list(entry[0].categories)
        for category in categories:
            figures, others = beside(entry[0], category, metrics, published)
            rows.append(Row(label, category, entry, figures, others))
    return rows


def contests(metrics: Sequence[str]) -> tuple[str, ...]:
    """Return what average ranks are taken over beside ``metrics``: all that are measured, else the seven."""
    return tuple(metric for metric in metrics if metric not in DERIVED) or SEVEN


def with_average_ranks(rows: Sequence[Row], metrics: Sequence[str]) -> list[Row]:
    """Return the rows with the mean, in each category, of their places among the rows in every metric.

    Only methods with every value that some row has are ranked, so that all are ranked in the same contests.
    """
    methods = {row.label: row for row in rows}
    names = dict.fromkeys(name for row in methods.values() for name in row.record.categories)
    values = {
        (name, metric): {label: _value_in(row, name, metric) for label, row in methods.items()}
        for name in names
        for metric in metrics
    }
    held = {place: found for place, found in values.items() if any(v is not None for v in found.values())}
    whole = [label for label in methods if all(found[label] is not None for found in held.values())]
    won: dict[str, dict[str, list[float]]] = {label: {} for label in methods}
    for (name, metric), found in held.items():
        own = [value for label in whole if (value := found[label]) is not None]
        for label, place in zip(whole, places(metric, own), strict=True):
            won[label].setdefault(name, []).append(place)
    ranks = {
        label: {name: math.fsum(own) / len(own) for name, own in by_name.items()}
        for label, by_name in won.items()
    }
    return [replace(row, average_ranks=ranks[row.label]) for row in rows]


def _value_in(row: Row, category: str, metric: str) -> float | None:
    if any(category not in record.categories for record in row.records):
        return None
    return replace(row, category=category).cell(metric).value


def _newest(records: Iterable[Record]) -> list[Record]:
    """Keep the newest of the records that differ in nothing but the time of their making."""
    newest: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: (record.created, str(record.path))):
        newest[digest_of([record.method, record.observation_digest, map_parameters(record)])] = record
    return sorted(newest.values(), key=lambda record: (record.method, record.backbone, record.digest))


def _join_seeds(records: Iterable[Record]) -> list[tuple[Record, ...]]:
    """Join records that differ in the seed only; where two of a kind share a seed all stay apart."""
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(_kind(record), []).append(record)
    joined: list[tuple[Record, ...]] = []
    for same in kinds.values():
        seeds = [record.seed for record in same]
        if None not in seeds and len(set(seeds)) == len(seeds):
            joined.append(tuple(sorted(same, key=lambda record: record.seed or 0)))
        else:
            joined += [(record,) for record in same]
    return joined


def _kind(record: Record) -> str:
    """Return the digest of everything that makes the method what it is, except the seed."""
    observation = record.observation
    parts = [observation[key] for key in ("method", "backbone")]
    parts += [observation.get(key) for key in ("checkpoint", "wordings")]
    dtype = (observation.get("environment") or {}).get("dtype")
    return digest_of([_unseeded(parts), dtype, map_parameters(record)])


def _unseeded(value: Any) -> Any:
    """Return a value without seeds; random weights have one too, and a checksum that follows it."""
    if isinstance(value, list):
        return [_unseeded(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    plain = {key: _unseeded(item) for key, item in value.items() if key != "seed"}
    if str(plain.get("weights")).partition(":")[0] == "random":
        plain = {key: item for key, item in plain.items() if key not in ("weights", "sha256")}
    return plain
