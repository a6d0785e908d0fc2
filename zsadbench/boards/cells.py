"""Boards as cells of text: what the terminal, Markdown and LaTeX all print."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..records import KINDS, Published
from .board import Board
from .pairs import Comparison
from .rows import COSTS, Row, bounds, cost_printed, percent
from .words import SYMBOLS, metric_title

PUBLISHED_NOTE = (
    "Published: made with the same backbone, weights, size, parameters and images; one figure per metric, "
    f"the most trusted kind first ({', '.join(KINDS)}); AUPRO from 200 thresholds only under legacy200, "
    "with ? where its rule is not stated."
)
Style = Callable[[str], str]


class Line(NamedTuple):
    """One line of a board: names, numbers, marks, and whether it is measured (or published)."""

    names: list[str]
    numbers: list[str]
    marks: str
    measured: bool


def names_of(board: Board) -> list[str]:
    """Return the headings of the columns that name a row."""
    return ["method", board.axis] if board.by == "category" else ["method"]


def numbers_of(board: Board) -> list[str]:
    """Return the headings of the columns of numbers."""
    titles = [*(metric_title(metric) for metric in board.shown), *(COSTS[name] for name in board.costs)]
    return ["rank", *titles] if board.ranked_by else titles


def lines_of(board: Board, best: Style, second: Style, other: Style) -> Iterator[Line]:
    """Yield the lines of a board; ``best``, ``second`` and ``other`` dress the numbers of metrics."""
    for row in board.rows:
        numbers = [styled(board, row, metric, best, second, other) for metric in board.shown]
        category = [row.category] if board.by == "category" else []
        rank = [str(row.rank or "n/a")] if board.ranked_by else []
        empty, unknown = [""] * len(rank), [""] * len(board.costs)
        took = [cost_printed(row.cost(name)) for name in board.costs]
        yield Line([row.label, *category], rank + numbers + took, marks_of(row), True)
        for kind in KINDS:
            beside = {metric: entry for metric, entry in row.published.items() if entry.kind == kind}
            if beside:
                numbers = [other(printed(beside.get(metric))) for metric in board.shown]
                yield Line([f"published: {kind}", *category], [*empty, *numbers, *unknown], "", False)
        for source in row.others:
            name = f"published: {source.kind} [{board.other_sources[source.kind, source.about]}]"
            numbers = [other(printed(source.figures.get(metric))) for metric in board.shown]
            differs = ", ".join(source.differences)
            yield Line([name, *category], [*empty, *numbers, *unknown], differs, False)


def styled(board: Board, row: Row | None, metric: str, best: Style, second: Style, other: Style) -> str:
    """Return a row's number as text, dressed as it deserves; empty without a row."""
    if row is None:
        return ""
    style = best if board.is_best(row, metric) else second if board.is_second(row, metric) else other
    return style(str(row.cell(metric)))


def pair_headings(board: Board) -> list[str]:
    """Return the headings of a board's table of comparisons; p-values only where some pair has one."""
    shown = [title for title, has in _p_values(board).items() if has]
    category = [board.axis] if board.by == "category" else []
    return ["A", "B", *category, "metric", "A - B", "95 % interval", *shown]


def pairs_of(board: Board) -> Iterator[list[str]]:
    """Yield the cells of a board's comparisons; a significant p-value has a star."""
    shown = [title for title, has in _p_values(board).items() if has]
    for pair in board.comparisons:
        category = [pair.category] if board.by == "category" else []
        low_high = bounds(pair.interval) if pair.interval else "n/a"
        values = {"p": pair.p, "p (Holm)": pair.p_holm}
        values |= {"p (DeLong)": pair.p_delong, "p (Wilcoxon)": pair.p_wilcoxon}
        cells = {title: _probability(values[title]) for title in shown}
        judged = "p" if pair.p_holm is None else "p (Holm)"
        cells[judged] = cells.get(judged, "") + ("*" if pair.significant else "")
        title = metric_title(pair.metric)
        yield [
            *(pair.first, pair.second, *category, title),
            *(f"{round(100 * pair.difference, 1) + 0.0:+.1f}", low_high, *(cells[title] for title in shown)),
        ]


def pairs_title(board: Board) -> str:
    """Return the heading of a board's comparisons."""
    return f"Pairs on the same images of {board.group.dataset}, in percent points (* significant)"


def _p_values(board: Board) -> dict[str, bool]:
    def some(get: Callable[[Comparison], float | None]) -> bool:
        return any(get(pair) is not None for pair in board.comparisons)

    return {
        "p": True,
        "p (Holm)": some(lambda pair: pair.p_holm),
        "p (DeLong)": some(lambda pair: pair.p_delong),
        "p (Wilcoxon)": some(lambda pair: pair.p_wilcoxon),
    }


def _probability(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def printed(entry: Published | None) -> str:
    """Return a published figure as text; empty without one."""
    return f"{percent(entry.value)}{'?' if entry.rule_unknown else ''}" if entry else ""


def marks_of(row: Row) -> str:
    """Return the marks of a row as they stand in a column."""
    return ", ".join(SYMBOLS.get(mark, mark) for mark in row.marks)
