"""Rows of a board against each other on the same draws of images: differences, p-values, ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from ..metrics import (
    AVERAGE_RANK,
    MAD,
    REPLICATES,
    DeLong,
    Interval,
    Placements,
    Reals,
    bootstrap_p,
    delong,
    delong_p,
    holm,
    interval,
    placements,
    wilcoxon_p,
    worth,
)
from ..records import Grouping, Record
from ..scoring import NOBODY, UserMethods
from .beside import MEAN
from .intervals import Draws, draws_of
from .pairs import SIGNIFICANT, Comparison
from .rows import Row
from .words import metric_title

if TYPE_CHECKING:
    from .board import Board

_NO_DRAWS = (
    "An average rank has no interval: in draws of the images near-equal methods change places, so that draws "
    "lie nearer to the middle than the rank itself."
)
SeedDraws = Mapping[str, Draws]
"""Draws by the digest of their record."""


def with_statistics(
    board: Board,
    ranked_by: str,
    order: Sequence[Record],
    *,
    paired: bool = False,
    replicates: int = REPLICATES,
    grouping: Grouping | None = None,
    workers: int | None = None,
    users: UserMethods = NOBODY,
    say: Callable[[str], None] = lambda line: None,
) -> Board:
    """Return the board with an interval for every number, ranks by ``ranked_by`` and, if asked, all pairs.

    With a ``grouping`` whole groups of images are drawn, and DeLong's test, for which images are
    independent, is left out.  A pair stands in the order in which its records come in ``order``.  The rank
    is 1 + the number of methods significantly better.

    Raises:
        RecordError: if the image scores of a record cannot be read.
    """
    metrics = [metric for metric in dict.fromkeys([*board.shown, ranked_by]) if metric != AVERAGE_RANK]
    pixels = any(metric.startswith("pixel_") or metric == MAD for metric in metrics)
    draws = {
        record.digest: draws_of(
            record,
            pixels=pixels,
            replicates=replicates,
            grouping=grouping,
            workers=workers,
            users=users,
            say=say,
        )
        for record in board.records
    }
    places = {record.digest: place for place, record in enumerate(order)}
    rows = sorted(board.rows, key=lambda row: min(places[record.digest] for record in row.records))
    found = [
        comparison
        for metric in metrics
        for category in dict.fromkeys(row.category for row in board.rows)
        for comparison in _pairs([row for row in rows if row.category == category], metric, draws)
    ]
    ranked = [pair for pair in found if pair.metric == ranked_by]
    ranks = _ranks(board.rows, ranked, ranked_by)
    return dataclasses.replace(
        board,
        rows=tuple(
            dataclasses.replace(row, intervals=_intervals(row, metrics, draws), rank=rank)
            for row, rank in zip(board.rows, ranks, strict=True)
        ),
        ranked_by=ranked_by if ranked else "",
        comparisons=tuple(pair for pair in found if pair.metric in board.shown) if paired else (),
        notes=(
            *board.notes,
            *_notes(draws.values(), found, ranked_by, replicates, paired),
            *([_NO_DRAWS] if AVERAGE_RANK in board.shown else []),
        ),
    )


def row_draws(row: Row, metric: str, draws: SeedDraws) -> Reals | None:
    """Return the draws of a row's number: mean over its categories and seeds; None where one has none."""
    means = []
    for record in row.records:
        values = draws[record.digest].values
        used = [(category, metric) for category in _used(row, record, metric)]
        if not used or any(place not in values for place in used):
            return None
        means.append(np.mean([values[place] for place in used], axis=0))
    return np.asarray(np.mean(means, axis=0))


def _used(row: Row, record: Record, metric: str) -> list[str]:
    """Return the categories a row's number is made of."""
    names = record.categories if row.category == MEAN else [row.category]
    return [name for name in names if record.value(name, metric) is not None]


def _intervals(row: Row, metrics: Sequence[str], draws: SeedDraws) -> dict[str, Interval]:
    found = {metric: row_draws(row, metric, draws) for metric in metrics}
    bounds = {metric: interval(each) for metric, each in found.items() if each is not None}
    return {metric: each for metric, each in bounds.items() if each is not None}


def _pairs(rows: Sequence[Row], metric: str, draws: SeedDraws) -> list[Comparison]:
    """Return all pairs of rows of one category that have the metric, corrected for their number."""
    valued = [row for row in rows if row.cell(metric).value is not None]
    pairs = [_compared(one, other, metric, draws) for one, other in combinations(valued, 2)]
    if len(pairs) < 2:
        return pairs
    corrected = holm([pair.p for pair in pairs])
    return [dataclasses.replace(pair, p_holm=p) for pair, p in zip(pairs, corrected, strict=True)]


def _compared(one: Row, other: Row, metric: str, draws: SeedDraws) -> Comparison:
    values = one.cell(metric).value, other.cell(metric).value
    difference = (values[0] or 0.0) - (values[1] or 0.0)
    plain = Comparison(one.label, other.label, one.category, metric, difference)
    if not _same_images(one, other, metric, draws):
        return plain
    first, second = row_draws(one, metric, draws), row_draws(other, metric, draws)
    drawn = None if first is None or second is None else first - second
    return dataclasses.replace(
        plain,
        interval=None if drawn is None else interval(drawn),
        p=None if drawn is None else bootstrap_p(drawn),
        p_delong=_delong(one, other, draws) if metric == "image_auroc" else None,
        p_wilcoxon=wilcoxon_p(_differences(one, other, metric)),
    )


def _same_images(one: Row, other: Row, metric: str, draws: SeedDraws) -> bool:
    """Whether both numbers are made of the same images, all seeds included."""
    made_of = []
    for row in (one, other):
        for record in row.records:
            images = draws[record.digest].images
            made_of.append({name: images[name].keys for name in _used(row, record, metric)})
    return all(each == made_of[0] for each in made_of)


def _differences(one: Row, other: Row, metric: str) -> list[float]:
    """Return the difference in every category, means over seeds."""
    means = [
        {
            name: float(np.mean([record.value(name, metric) for record in row.records]))
            for name in _used(row, row.record, metric)
        }
        for row in (one, other)
    ]
    return [means[0][name] - means[1][name] for name in means[0]]


def _delong(one: Row, other: Row, draws: SeedDraws) -> float | None:
    tests: list[DeLong] = []
    if any(draws[row.record.digest].unit != "image" for row in (one, other)):
        return None
    for name in _used(one, one.record, "image_auroc"):
        test = delong(_placements(one, name, draws), _placements(other, name, draws))
        if test is None:
            return None
        tests.append(test)
    return delong_p(tests)


def _placements(row: Row, category: str, draws: SeedDraws) -> Placements:
    """Return the placements of a category's images, means over seeds."""
    images = [draws[record.digest].images[category] for record in row.records]
    found = [placements(each.scores, each.labels) for each in images]
    return Placements(
        np.mean([each.anomalous for each in found], axis=0), np.mean([each.normal for each in found], axis=0)
    )


def _ranks(rows: Sequence[Row], pairs: Sequence[Comparison], metric: str) -> list[int | None]:
    """Return for every row 1 + the number of rows significantly better; None where that is not known."""
    ranks: list[int | None] = []
    for row in rows:
        own = [p for p in pairs if p.category == row.category and row.label in (p.first, p.second)]
        if row.cell(metric).value is None or any(pair.p is None for pair in own):
            ranks.append(None)
            continue
        ranks.append(1 + sum(pair.significant and _loser(pair) == row.label for pair in own))
    return ranks


def _loser(pair: Comparison) -> str:
    return pair.second if worth(pair.metric, pair.difference) > 0 else pair.first


def _drawn(draws: Collection[Draws]) -> str:
    """Return what was drawn, and what that means."""
    units = sorted({each.unit for each in draws} - {"image"})
    if units:
        return f"the images of one '{units[0]}' are drawn together."
    return (
        "images of one patient or part, and duplicates, count as independent, which makes it too narrow "
        "(--group-by draws them together)."
    )


def _notes(
    draws: Collection[Draws],
    pairs: Sequence[Comparison],
    ranked_by: str,
    replicates: int,
    paired: bool,
) -> list[str]:
    """Return what a reader must know of intervals, p-values and ranks."""
    count = sum(pair.metric == ranked_by and pair.category == pairs[0].category for pair in pairs)
    correction = f", corrected for {count} pairs (Holm)" if count > 1 else ""
    lines = [
        f"[low, high]: 95 % interval over the choice of test images ({replicates} stratified bootstrap "
        f"draws, the same for all methods). It covers no training seed, prompt or image size; {_drawn(draws)}"
    ]
    if count:
        lines.append(
            f"rank: 1 + the number of methods significantly better in {metric_title(ranked_by)} "
            f"(paired bootstrap, p < {SIGNIFICANT:g}{correction})."
        )
    if paired and count:
        beside = "; DeLong's and Wilcoxon's p are not corrected" if count > 1 else ""
        lines.append(f"p: two-sided, paired bootstrap{beside}.")
    if count and 2 * count / (replicates + 1) >= SIGNIFICANT:
        enough = -(-int(4 * count / SIGNIFICANT) // 1000) * 1000
        lines.append(
            f"With {count} pairs and {replicates} draws no corrected p is below {SIGNIFICANT:g}: "
            f"give --replicates {enough}."
        )
    told = dict.fromkeys(note for each in draws for note in each.notes)
    return lines + [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in told]
