"""Boards by category as tables of category x method, one for each metric."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .beside import MEAN
from .board import Board
from .cells import Style, marks_of, printed, styled
from .rows import Row
from .words import SYMBOLS, metric_title


@dataclass(frozen=True)
class Matrix:
    """One metric: a row per category, a column per method and one per kind of published figures."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    summed: bool = False
    """Whether the last row is the mean of those before it."""


def matrices(board: Board, best: Style, second: Style, other: Style) -> Iterator[Matrix]:
    """Yield the matrices of a board by category; the styles dress the numbers.

    Columns stand in the order of their mean in the metric that sorts the board; the last row is the mean.
    """
    methods = _methods(board)
    means = replace(board, by="method", rows=tuple(methods))
    heads = [_head(row) for row in methods]
    for metric in board.shown:
        kinds = [(row.label, kind) for row in methods for kind in _kinds(board, row.label, metric)]
        rows = []
        for category, by_label in _by_category(board).items():
            cells = [styled(board, by_label.get(row.label), metric, best, second, other) for row in methods]
            for label, kind in kinds:
                entry = by_label[label].published.get(metric) if label in by_label else None
                cells.append(other(printed(entry if entry and entry.kind == kind else None)))
            rows.append([category, *cells])
        if summed := len(rows) > 1:
            cells = [styled(means, row, metric, best, second, other) for row in methods]
            rows.append([MEAN, *cells, *[""] * len(kinds)])
        published = [f"{label} published: {kind}" for label, kind in kinds]
        yield Matrix(metric_title(metric), [board.axis, *heads, *published], rows, summed)
    if board.ranked_by:
        ranks = [
            [category, *(_rank(by_label.get(row.label)) for row in methods)]
            for category, by_label in _by_category(board).items()
        ]
        yield Matrix(f"Rank in {metric_title(board.ranked_by)}", [board.axis, *heads], ranks)


def _methods(board: Board) -> list[Row]:
    """Return every method as its mean over categories, the best first."""
    rows = {row.label: replace(row, category=MEAN, intervals={}, published={}) for row in board.rows}
    key = board.sorted_by or board.shown[0]
    return sorted(rows.values(), key=lambda row: (row.standing(key), row.label))


def _head(row: Row) -> str:
    marks = marks_of(row)
    return row.label + (
        f"{'' if marks.startswith(tuple(SYMBOLS.values())) else ','} {marks}" if marks else ""
    )


def _by_category(board: Board) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in board.rows:
        found.setdefault(row.category, {})[row.label] = row
    return found


def _kinds(board: Board, label: str, metric: str) -> list[str]:
    entries = (row.published.get(metric) for row in board.rows if row.label == label)
    return list(dict.fromkeys(entry.kind for entry in entries if entry))


def _rank(row: Row | None) -> str:
    return str(row.rank or "n/a") if row else ""
