"""Leaderboards as data: one table per group of records that may be compared.

A :class:`Board` never mixes groups (dataset, contents, protocol, metric version) in a column and keeps
published figures apart from measured ones; what it says in words stands in ``words``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..metrics import AVERAGE_RANK, SEVEN, worth
from ..records import Group, Record
from .beside import MEAN
from .pairs import Comparison
from .rows import By, Row, as_printed, contests, with_average_ranks

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_METRICS = SEVEN
FEWEST_REPLICATES = 100


def _ranked(metric: str, values: Sequence[float]) -> list[float]:
    """Return values of a metric, best first."""
    return sorted(values, key=lambda value: worth(metric, value), reverse=True)


@dataclass(frozen=True)
class Board:
    """One table: methods (or methods and categories) of one group of records."""

    group: Group
    by: By
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    sorted_by: str = ""
    """The metric that orders the rows of a category."""
    ranked_by: str = ""
    """The metric ranks go by; empty where there are none."""
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    """What intervals, ranks and comparisons mean and where they are missing, and which rows are left out."""
    axis: str = "category"
    """What the rows of a board by category stand for: a category, or a value of this group."""
    costs: tuple[str, ...] = ()
    """What the runs took, beside the metrics: ids of `rows.COSTS`."""
    unit: str = ""
    """The group whose highest score stands for all its images; empty where each image has its own."""

    @property
    def records(self) -> list[Record]:
        """Every record behind the rows, each once."""
        return list({id(record): record for row in self.rows for record in row.records}.values())

    @property
    def shown(self) -> tuple[str, ...]:
        """The metrics that have a value somewhere, or all when none has."""
        has = [
            metric
            for metric in self.metrics
            if any(row.cell(metric).value is not None or metric in row.published for row in self.rows)
        ]
        return tuple(has) or self.metrics

    def of(self, rows: Sequence[Row]) -> Board:
        """Return the board of these of its rows alone, average ranks taken among them."""
        ranked = AVERAGE_RANK in self.metrics
        return replace(self, rows=tuple(with_average_ranks(rows, contests(self.metrics)) if ranked else rows))

    def judged_by(self, sort: str | None = None) -> str:
        """Return the metric by which methods are significantly better: ``sort``, else the first with a value.

        An average rank is none, as it has no draws.
        """
        return next(metric for metric in filter(None, (sort, *self.shown, *SEVEN)) if metric != AVERAGE_RANK)

    @property
    def marks(self) -> list[str]:
        """Marks that stand in some row, each once."""
        found = dict.fromkeys(mark for row in self.rows for mark in row.marks)
        return list(found)

    @cached_property
    def other_sources(self) -> dict[tuple[str, str], int]:
        """The sources of figures that do not stand beside a row by themselves, numbered from 1."""
        found = dict.fromkeys((source.kind, source.about) for row in self.rows for source in row.others)
        return {source: number for number, source in enumerate(found, 1)}

    def is_best(self, row: Row, metric: str) -> bool:
        """Tell whether a row holds the best printed value of its category, where there is a contest."""
        return self._stands(row, metric, 0)

    def is_second(self, row: Row, metric: str) -> bool:
        """Tell whether a row holds the second best printed value of its category."""
        return self._stands(row, metric, 1)

    def _stands(self, row: Row, metric: str, place: int) -> bool:
        value = row.cell(metric).value
        printed = self._printed.get((metric, row.category), [])
        return value is not None and printed[place : place + 1] == [as_printed(metric, value)]

    @cached_property
    def _printed(self) -> dict[tuple[str, str], list[str]]:
        """The distinct printed values of each metric and category, best first, where there is a contest."""
        values: dict[tuple[str, str], list[float]] = {}
        for row in self.rows:
            for metric in self.metrics:
                if (value := row.cell(metric).value) is not None:
                    values.setdefault((metric, row.category), []).append(value)
        return {
            (metric, category): list(dict.fromkeys(as_printed(metric, v) for v in _ranked(metric, several)))
            for (metric, category), several in values.items()
            if len(several) > 1
        }

    def lines(self) -> list[dict[str, Any]]:
        """Return one mapping per row, as in :meth:`frame`; undefined is None, average ranks are places."""
        lines = []
        for row in self.rows:
            line, cells = self._identity(row), {metric: row.cell(metric) for metric in self.metrics}
            line |= {metric: cell.value for metric, cell in cells.items()}
            line |= {name: row.cost(name) for name in self.costs}
            line |= {f"{m}_std": cell.spread for m, cell in cells.items() if cell.spread is not None}
            line |= {"rank": row.rank, "ranked_by": self.ranked_by} if self.ranked_by else {}
            for metric, cell in cells.items():
                if cell.interval:
                    line |= {f"low_{metric}": cell.interval.low, f"high_{metric}": cell.interval.high}
            for metric, entry in row.published.items():
                line |= {f"published_{metric}": entry.value, f"published_{metric}_kind": entry.kind}
            lines.append(line)
        return lines

    def frame(self) -> pd.DataFrame:
        """Return the board at full precision: rates in [0, 1], published figures in columns of their own."""
        return frame_of([self])

    def _identity(self, row: Row) -> dict[str, Any]:
        record, group = row.record, self.group
        partial = {m: cell for m in self.metrics if (cell := row.cell(m)).partial}
        return {
            "dataset": group.dataset,
            "dataset_digest": group.dataset_digest[:12],
            "contents_digest": group.contents_digest[:12],
            "masks_digest": group.masks_digest[:12],
            "protocol": group.protocol,
            "protocol_version": group.protocol_version,
            "mask_positive": group.mask_positive,
            "rules": record.rules,
            "metric_version": group.metric_version,
            "method": record.method_id,
            "variant": record.variant,
            "method_version": str(record.observation["method"].get("version", "")),
            "backbone": record.backbone,
            "observation": row.digest,
            "label": row.label,
            "seeds": len(row.records),
            **({"by": self.axis} if self.axis != "category" else {}),
            **({"per": self.unit} if self.unit else {}),
            "category": row.category,
            "categories": len(record.categories) if row.category == MEAN else 1,
            "incomplete": "; ".join(f"{m} {cell.used}/{cell.total}" for m, cell in partial.items()),
            "marks": "; ".join(row.marks),
        }


def frame_of(tables: Sequence[Board]) -> pd.DataFrame:
    """Return several boards as one frame, one below the other."""
    import pandas as pd

    lines = [line for board in tables for line in board.lines()]
    metrics = list(dict.fromkeys(name for board in tables for name in (*board.metrics, *board.costs)))
    frame = pd.DataFrame(lines, columns=_columns(lines, metrics))
    frame = frame.astype(dict.fromkeys(metrics, float))
    return frame.astype({"rank": "Int64"}) if "rank" in frame else frame


def pair_lines(board: Board) -> list[dict[str, Any]]:
    """Return one mapping per comparison of a board, its group first."""
    group = {
        "dataset": board.group.dataset,
        "protocol": board.group.protocol,
        "protocol_version": board.group.protocol_version,
        "metric_version": board.group.metric_version,
    }
    return [group | pair.line() for pair in board.comparisons]


def paired_frame(tables: Sequence[Board]) -> pd.DataFrame:
    """Return the comparisons of several boards: group, pair, metric, difference, interval, p-values.

    Rates are in [0, 1], the difference is first - second; undefined is empty.
    """
    import pandas as pd

    frame = pd.DataFrame([line for board in tables for line in pair_lines(board)])
    numbers = [name for name in ("low", "high", "p", "p_holm", "p_delong", "p_wilcoxon") if name in frame]
    return frame.astype(dict.fromkeys(numbers, float))


def _columns(lines: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    """Return identity, metrics, rank, spreads, bounds, published columns, each only where a row has it."""
    present = list(dict.fromkeys(key for line in lines for key in line))
    extra = [f"{m}_std" for m in metrics]
    extra += [f"{bound}_{m}" for m in metrics for bound in ("low", "high")]
    extra += [f"published_{m}{suffix}" for m in metrics for suffix in ("", "_kind")]
    return [key for key in present if key not in extra] + [key for key in extra if key in present]
