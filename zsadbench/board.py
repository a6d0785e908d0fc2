"""Leaderboards: one table per group of records that may be compared, a pure function of the records.

A :class:`Board` never mixes groups (dataset, contents, protocol, metric version) in a column, marks
what must not be overlooked, and keeps published figures apart from measured ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from .boardrows import MEAN, By, Row, percent, rows_of
from .errors import RecordError, UsageError, suggest
from .groups import Group
from .metrics import METRICS
from .pairs import Comparison, in_order, paired_frame
from .recordfiles import is_metric
from .records import Record, load_records

DEFAULT_METRICS = (
    "image_auroc",
    "image_ap",
    "image_f1max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "pixel_aupro",
)
MARKS = {
    "transductive": "image scores use all test images of a category, so a single image has none",
    "order-dependent": "results depend on the order of the images",
    "subset": "only a part of the dataset was evaluated",
    "failed": "images that could not be read are left out of the numbers",
    "skipped": "files with problems were left out on request",
    "foreign maps": "maps of another code base, scored here",
    "seen data": "tested on images that were trained on",
    "legacy": "approximate metrics as other code bases print them",
    "custom": "rules changed by hand: neither the authors' nor the common protocol",
    "random weights": "an untrained network: a test of the machinery, no result of the method",
    "incomplete": "the observation had not ended when it was scored",
}
"""Mark -> what it means; a count before it, as in ``3 failed``, is left aside."""

FEWEST_REPLICATES = 100

SYMBOLS = {"transductive": "†", "order-dependent": "‡"}


@dataclass(frozen=True)
class Board:
    """One table: methods (or methods and categories) of one group of records."""

    group: Group
    by: By
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    ranked_by: str = ""
    """The metric ranks go by; empty where there are none."""
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    """What intervals, ranks and comparisons mean and where they are missing."""

    @property
    def records(self) -> list[Record]:
        """Every record behind the rows, each once."""
        return list({id(record): record for row in self.rows for record in row.records}.values())

    @property
    def title(self) -> str:
        """Return the dataset with its number of images."""
        name = str(self.records[0].observation["dataset"].get("title") or self.group.dataset)
        name += f" ({self.group.dataset})" if name != self.group.dataset else ""
        return f"{name}: {_counts(self.records[0])}"

    @property
    def subtitle(self) -> str:
        """Return the protocol and, where they are one for all, its rules."""
        return self._protocol("see below")

    @property
    def shown(self) -> tuple[str, ...]:
        """The metrics that have a value somewhere, or all when none has."""
        has = [
            metric
            for metric in self.metrics
            if any(row.cell(metric).value is not None or metric in row.published for row in self.rows)
        ]
        return tuple(has) or self.metrics

    @property
    def marks(self) -> list[str]:
        """Marks that stand in some row, each once."""
        found = dict.fromkeys(mark for row in self.rows for mark in row.marks)
        return list(found)

    @property
    def footer(self) -> list[str]:
        """Return what a reader must know: means, rules, gaps, marks and versions."""
        return [*self._conditions(), *self.notes, *self._explanations(), self._versions()]

    @property
    def sources(self) -> list[str]:
        """Return where the published figures beside the rows come from."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            for metric, entry in row.published.items():
                about = ", ".join(filter(None, [entry.variant, entry.backbone, entry.source]))
                rule = ", rule not stated" if entry.rule_unknown else ""
                found.setdefault(f"{entry.kind}{rule}: {about}", []).append(f"{row.record.method} {metric}")
        return [f"{', '.join(dict.fromkeys(names))}: {text}." for text, names in found.items()]

    def is_best(self, row: Row, metric: str) -> bool:
        """Tell whether a row holds the best printed value of its category, where there is a contest."""
        return self._stands(row, metric, 0)

    def is_second(self, row: Row, metric: str) -> bool:
        """Tell whether a row holds the second best printed value of its category."""
        return self._stands(row, metric, 1)

    def _stands(self, row: Row, metric: str, place: int) -> bool:
        value = row.cell(metric).value
        printed = self._printed.get((metric, row.category), [])
        return value is not None and printed[place : place + 1] == [percent(value)]

    @cached_property
    def _printed(self) -> dict[tuple[str, str], list[str]]:
        """The distinct printed values of each metric and category, best first, where there is a contest."""
        values: dict[tuple[str, str], list[float]] = {}
        for row in self.rows:
            for metric in self.metrics:
                if (value := row.cell(metric).value) is not None:
                    values.setdefault((metric, row.category), []).append(value)
        return {
            place: list(dict.fromkeys(map(percent, sorted(several, reverse=True))))
            for place, several in values.items()
            if len(several) > 1
        }

    def lines(self) -> list[dict[str, Any]]:
        """Return one mapping per row, as in :meth:`frame`; undefined is None."""
        lines = []
        for row in self.rows:
            line, cells = self._identity(row), {metric: row.cell(metric) for metric in self.metrics}
            line |= {metric: cell.value for metric, cell in cells.items()}
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
        """Return the board at full precision in [0, 1]; published figures in columns of their own."""
        return frame_of([self])

    def _identity(self, row: Row) -> dict[str, Any]:
        record, group = row.record, self.group
        partial = {m: cell for m in self.metrics if (cell := row.cell(m)).partial}
        return {
            "dataset": group.dataset,
            "dataset_digest": group.dataset_digest[:12],
            "contents_digest": group.contents_digest[:12],
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
            "seeds": len(row.records),
            "category": row.category,
            "categories": len(record.categories) if row.category == MEAN else 1,
            "incomplete": "; ".join(f"{m} {cell.used}/{cell.total}" for m, cell in partial.items()),
            "marks": "; ".join(row.marks),
        }

    def _protocol(self, where: str) -> str:
        rules = {record.rules for record in self.records}
        rule = rules.pop() if len(rules) == 1 else f"rules of each method's authors, {where}"
        return f"Protocol {self.records[0].protocol_label}: {rule}"

    def _conditions(self) -> list[str]:
        lines = [self._unit()]
        rules: dict[str, dict[str, None]] = {}
        for row in self.rows:
            rules.setdefault(row.record.rules, {})[row.record.method] = None
        if len(rules) > 1:
            each = (f"{', '.join(methods)}: {rule}" for rule, methods in rules.items())
            lines.append(f"Rules of each method's authors: {'; '.join(each)}.")
        missing: dict[str, list[str]] = {}
        for metric in self.metrics:
            for reason in dict.fromkeys(r for record in self.records for r in record.reasons(metric)):
                missing.setdefault(reason, []).append(metric)
        return lines + [f"n/a in {', '.join(metrics)}: {reason}." for reason, metrics in missing.items()]

    def _unit(self) -> str:
        seeds = any(len(row.records) > 1 for row in self.rows)
        return self._averages() + (" ±: sample standard deviation over seeds." if seeds else "")

    def _averages(self) -> str:
        counts = {len(record.categories) for record in self.records}
        if self.by == "category" or max(counts) == 1:
            return "In percent."
        numbers = " or ".join(map(str, sorted(counts)))
        partial = any(row.cell(metric).partial for row in self.rows for metric in self.metrics)
        gaps = ", (n/N): over n of N only" if partial else ""
        return f"In percent, unweighted mean over {numbers} categories{gaps}."

    def _explanations(self) -> list[str]:
        words = dict.fromkeys(mark.lstrip("0123456789 ") for mark in self.marks)
        symbols = {word: f"{SYMBOLS[word]} " if word in SYMBOLS else "" for word in words}
        return [f"{symbols[word]}{word}: {MARKS[word]}." for word in words if word in MARKS]

    def _versions(self) -> str:
        environments = [record.observation.get("environment") or {} for record in self.records]
        versions = sorted({str(found["zsadbench"]) for found in environments if "zsadbench" in found})
        program = f", zsadbench {' and '.join(versions)}" if versions else ""
        data = f"samples {self.group.dataset_digest[:12]}, contents {self.group.contents_digest[:12]}"
        return f"{self._protocol('see above')}. Metrics version {self.group.metric_version}{program}; {data}."


def boards(
    records: Sequence[Record],
    *,
    metrics: Sequence[str] | None = None,
    by: str | None = None,
    sort: str | None = None,
    published: bool = True,
    merge: bool = False,
    intervals: bool = False,
    paired: bool = False,
    replicates: int = 1000,
    say: Callable[[str], None] = lambda line: None,
) -> list[Board]:
    """Return one board per group of records, sorted by dataset and protocol.

    ``metrics`` are ids, by default :data:`DEFAULT_METRICS`; ``by`` is ``"category"`` for one row per
    method and category; ``sort`` is a metric, by default the first one that has a value; ``merge``
    demands a single board.  ``intervals`` adds 95 % intervals and ranks from ``replicates`` draws of
    the test images, ``paired`` also every pair of methods, in the order of ``records``; ``say`` is
    told what takes long.

    Raises:
        UsageError: for an unknown metric or ``by``, or too few ``replicates``.
        RecordError: for a metric no record has, when ``merge`` meets records of several groups, or for
            image scores that cannot be read.
    """
    chosen = _known_metrics(records, metrics or DEFAULT_METRICS, optional=metrics is None)
    _known_metrics(records, [sort] if sort else [], optional=False)
    if by is not None and by not in get_args(By):
        raise UsageError(f"cannot make a board by '{by}'.{suggest(by, get_args(By))}")
    grouping: By = "category" if by == "category" else "method"
    groups: dict[Group, list[Record]] = {}
    for record in records:
        groups.setdefault(record.group, []).append(record)
    if merge and len(groups) > 1:
        raise RecordError(_odd_one(groups))
    tables = [_board(group, groups[group], chosen, grouping, sort, published) for group in sorted(groups)]
    if not intervals and not paired:
        return tables
    from .comparison import with_statistics

    if replicates < FEWEST_REPLICATES:
        raise UsageError(f"{replicates} replicates say little; give {FEWEST_REPLICATES} or more")
    if paired and all(len({row.label for row in board.rows}) < 2 for board in tables):
        raise RecordError(_no_pair(groups))
    return [
        with_statistics(board, sort or board.shown[0], records, paired=paired, replicates=replicates, say=say)
        for board in tables
    ]


def compare(
    paths: str | Path | Sequence[str | Path],
    *,
    metrics: Sequence[str] | None = None,
    by: str | None = None,
    sort: str | None = None,
    published: bool = True,
    merge: bool = False,
    intervals: bool = False,
    paired: bool = False,
    replicates: int = 1000,
) -> pd.DataFrame:
    """Return the boards of the records at or below ``paths`` as one frame, full precision in [0, 1].

    The columns ``dataset`` to ``metric_version`` name the group a row belongs to: only rows that
    agree in them may be compared.  ``intervals`` adds 95 % intervals and ranks; ``paired`` returns one
    row per pair of methods and metric instead, as
    :func:`zsadbench.pairs.paired_frame` has it.

    Raises:
        RecordError: if there is no record, or as :func:`boards` says.
    """
    several = [paths] if isinstance(paths, str | Path) else paths
    folders = [Path(path) for path in several]
    records = in_order(load_records(folders), folders)
    if not records:
        raise RecordError(nothing_there(folders))
    tables = boards(
        records,
        metrics=metrics,
        by=by,
        sort=sort,
        published=published,
        merge=merge,
        intervals=intervals,
        paired=paired,
        replicates=replicates,
    )
    if not paired:
        return frame_of(tables)
    return paired_frame(tables)


def show_boards(records: Sequence[Record]) -> None:
    """Print the boards of ``records`` on the terminal."""
    from .boardtext import print_boards

    print_boards(boards(records))


def frame_of(tables: Sequence[Board]) -> pd.DataFrame:
    """Return several boards as one frame, one below the other."""
    lines = [line for board in tables for line in board.lines()]
    metrics = list(dict.fromkeys(metric for board in tables for metric in board.metrics))
    frame = pd.DataFrame(lines, columns=_columns(lines, metrics))
    frame = frame.astype(dict.fromkeys(metrics, float))
    return frame.astype({"rank": "Int64"}) if "rank" in frame else frame


def nothing_there(paths: Sequence[Path]) -> str:
    """Return in words why there is nothing to compare and what to do."""
    names = ", ".join(map(str, paths))
    if any(True for path in paths if path.is_dir() for _ in path.rglob("observation.json")):
        return f"{names}: evidence but no readable record; run `zsad score RUN_DIR` on it, it needs no CLIP."
    return f"{names}: no readable record here; run `zsad run --method clip --dataset NAME` first."


def _known_metrics(records: Sequence[Record], wanted: Sequence[str], optional: bool) -> tuple[str, ...]:
    present = {metric for record in records for metric in record.metrics}
    for metric in wanted:
        if not is_metric(metric):
            raise UsageError(f"unknown metric '{metric}'.{suggest(metric, METRICS)}")
        if metric not in present and not optional:
            limit = metric.partition("@")[2]
            remedy = (
                f"`zsad score RUN_DIR --aupro-limit {limit}` adds it" if limit else "score the runs again"
            )
            raise RecordError(f"no record has the metric '{metric}'; {remedy}.")
    return tuple(dict.fromkeys(wanted))


def _board(
    group: Group,
    records: Sequence[Record],
    metrics: tuple[str, ...],
    by: By,
    sort: str | None,
    published: bool,
) -> Board:
    rows = rows_of(records, metrics, by, published)
    board = Board(group, by, metrics, tuple(rows))
    key = sort or board.shown[0]
    categories = {name: i for i, name in enumerate(dict.fromkeys(row.category for row in rows))}

    def order(row: Row) -> tuple[int, float, str]:
        value = row.cell(key).value
        return (categories[row.category], -value if value is not None else 1.0, row.label)

    return Board(group, by, metrics, tuple(sorted(rows, key=order)))


def _odd_one(groups: dict[Group, list[Record]]) -> str:
    """Say which group stands apart from the largest one, where its records lie and in what it differs."""
    ranked = sorted(groups, key=lambda group: (-len(groups[group]), group))
    usual, odd = ranked[0], ranked[-1]
    lies = ", ".join(str(record.path.parent) for record in groups[odd])
    return (
        f"these records cannot stand in one column: {lies} ({odd}) has {', '.join(odd.differences(usual))}; "
        "leave it out or score all runs under one protocol with `zsad score`."
    )


def _no_pair(groups: dict[Group, list[Record]]) -> str:
    if len(groups) > 1:
        return _odd_one(groups)
    return (
        "only one method here (equal runs count once), and a pair needs two; give the results of another "
        "method on this dataset."
    )


def _columns(lines: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    """Return identity, metrics, rank, spreads, bounds, published columns, each only where a row has it."""
    present = list(dict.fromkeys(key for line in lines for key in line))
    extra = [f"{m}_std" for m in metrics]
    extra += [f"{bound}_{m}" for m in metrics for bound in ("low", "high")]
    extra += [f"published_{m}{suffix}" for m in metrics for suffix in ("", "_kind")]
    return [key for key in present if key not in extra] + [key for key in extra if key in present]


def _counts(record: Record) -> str:
    rows = record.categories.values()
    normal, anomalous = (sum(row.get(label) or 0 for row in rows) for label in ("normal", "anomalous"))
    plural = f"{len(rows)} categories" if len(rows) > 1 else "1 category"
    return f"{normal + anomalous} images ({normal} normal, {anomalous} anomalous, {plural})"
