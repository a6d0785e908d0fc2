"""Boards as text: for the terminal, and as csv, Markdown, LaTeX and JSON files that diff cleanly."""

from __future__ import annotations

import dataclasses
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..errors import UsageError, suggest
from ..files import write_atomic
from ..text import block, console, csv_cell, markdown, terminal
from .board import Board, frame_of, pair_lines, paired_frame
from .cells import PUBLISHED_NOTE, lines_of, names_of, numbers_of, pair_headings, pairs_of, pairs_title
from .latex import joined_to_latex, to_latex
from .matrix import matrices
from .rows import Row
from .words import footer, sources, subtitle, title

if TYPE_CHECKING:
    import pandas as pd

_ENDLESS = 100_000
_NARROW = 12
"""Width to which the headings of numbers are wrapped."""


def to_csv(tables: Sequence[Board]) -> str:
    """Return all boards as one csv: full precision in [0, 1], no times, empty where undefined."""
    return _csv(frame_of(tables))


def pairs_to_csv(tables: Sequence[Board]) -> str:
    """Return the comparisons of all boards as one csv, numbers as in :func:`to_csv`."""
    return _csv(paired_frame(tables))


def _csv(frame: pd.DataFrame) -> str:
    """Return a frame as csv in which no text is a formula."""
    texts = frame.select_dtypes(["object", "string"])
    safe = texts.map(lambda cell: csv_cell(cell) if isinstance(cell, str) else cell)
    return frame.assign(**safe).to_csv(index=False, lineterminator="\n")


def to_json(tables: Sequence[Board]) -> str:
    """Return all boards as a JSON list: title, group, metrics, rows at full precision, footer."""
    content = [
        {
            "title": title(board),
            "subtitle": subtitle(board),
            "group": dataclasses.asdict(board.group),
            "metrics": list(board.metrics),
            "rows": [_row(line, row) for line, row in zip(board.lines(), board.rows, strict=True)],
            **({"comparisons": pair_lines(board)} if board.comparisons else {}),
            "footer": footer(board),
            "sources": sources(board),
        }
        for board in tables
    ]
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _row(line: dict[str, Any], row: Row) -> dict[str, Any]:
    others = [
        {
            "kind": source.kind,
            "source": source.about,
            "differences": list(source.differences),
            **{metric: entry.value for metric, entry in source.figures.items()},
        }
        for source in row.others
    ]
    return line | ({"published_elsewhere": others} if others else {})


def to_markdown(tables: Sequence[Board]) -> str:
    """Return all boards as Markdown: percent with one decimal, the best value of a column in bold."""
    return "\n".join(_markdown(board) for board in tables)


def to_rich(board: Board) -> RenderableType:
    """Return a board for the terminal: title, tables, footer; the best value of a column has a star."""
    best = any(board.is_best(row, metric) for row in board.rows for metric in board.shown)
    where = "row" if board.by == "category" else "column"
    notes = ([f"* The best of its {where}."] if best else []) + footer(board)
    if sources(board):
        notes.append(f"{PUBLISHED_NOTE} Sources: --format md.")
    if board.other_sources:
        notes += [line for line in sources(board) if line.startswith("[")]
    heading = [Text(terminal(title(board)), style="bold"), Text(terminal(subtitle(board)))]
    parts: list[RenderableType] = [*heading, *_tables(board)]
    if board.comparisons:
        parts += [Text(terminal(pairs_title(board))), _pairs(board)]
    return Group(*parts, *(Text(terminal(line), style="dim") for line in notes), Text())


def _tables(board: Board) -> Iterator[RenderableType]:
    """Yield the numbers of a board: one table, or one of category x method for each metric."""
    if board.by == "category":
        for matrix in matrices(board, _star, _no_star, _no_star):
            yield Text(terminal(matrix.title), style="bold")
            yield _Fitted(matrix.heads, 1, [list(map(_stacked, cells)) for cells in matrix.rows])
        return
    lines = list(lines_of(board, _star, _no_star, _no_star))
    names = len(names_of(board))
    rows = []
    for line in lines:
        named = line.names if line.measured else [f"  {line.names[0]}", *line.names[1:]]
        rows.append([*named, *map(_stacked, line.numbers), line.marks])
    faint = [not line.measured for line in lines]
    yield _Fitted([*names_of(board), *numbers_of(board), "marks"], names, rows, faint)


class _Fitted:
    """A table that is cut into several, each with the columns of names, where the terminal is too narrow."""

    def __init__(
        self, heads: Sequence[str], names: int, rows: Sequence[Sequence[str]], faint: Sequence[bool] = ()
    ) -> None:
        self.heads, self.names, self.rows = heads, names, rows
        self.faint = faint or [False] * len(rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        blocks: list[list[int]] = [[]]
        for column in range(self.names, len(self.heads)):
            wider = self._table([*blocks[-1], column])
            needed = Measurement.get(console, options.update(max_width=_ENDLESS), wider).minimum
            if blocks[-1] and needed > options.max_width:
                blocks.append([])
            blocks[-1].append(column)
        for columns in blocks:
            yield self._table(columns)

    def _table(self, columns: Sequence[int]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        shown = [*range(self.names), *columns]
        for column in shown:
            head = block(self.heads[column])
            if column < self.names:
                longest = max(len(text) for text in [head, *(cells[column] for cells in self.rows)])
                table.add_column(head, overflow="fold", min_width=min(16, longest))
            elif head == "marks":
                table.add_column(head)
            else:
                wrapped = "\n".join(textwrap.wrap(head, _NARROW, break_long_words=False))
                texts = [wrapped, *(cells[column] for cells in self.rows)]
                width = max(len(part) for text in texts for part in text.split("\n"))
                table.add_column(wrapped, justify="right", no_wrap=True, min_width=width)
        for cells, faint in zip(self.rows, self.faint, strict=True):
            table.add_row(*(Text(block(cells[column])) for column in shown), style="dim" if faint else "")
        return table


def _pairs(board: Board) -> RenderableType:
    rows = list(pairs_of(board))
    return _Fitted(pair_headings(board), pair_headings(board).index("A - B"), rows)


def print_boards(tables: Sequence[Board]) -> None:
    """Print boards as tables; what goes to a file or pipe, which has no width, is not folded."""
    shown = console(width=1000)
    for board in tables:
        shown.print(to_rich(board))


FORMATS: dict[str, Callable[[Sequence[Board]], str]] = {
    "csv": to_csv,
    "md": to_markdown,
    "json": to_json,
    "latex": to_latex,
}
_SUFFIXES = {"latex": "tex"}


def known_formats(text: str) -> list[str]:
    """Return the formats of a comma list; ``table`` is the terminal's.

    Raises:
        UsageError: for a format that does not exist.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ("table", *FORMATS):
            raise UsageError(f"unknown format '{name}'.{suggest(name, ('table', *FORMATS))}")
    return list(dict.fromkeys(names)) or ["table"]


def file_name(tables: Sequence[Board], form: str, stem: str = "leaderboard") -> str:
    """Return the name of a board's file: boards of other rows do not replace those of means."""
    first = tables[0]
    by = f"-by-{_plain(first.axis)}" if first.by == "category" else ""
    by += f"-per-{_plain(first.unit)}" if first.unit else ""
    return f"{stem}{by}.{_SUFFIXES.get(form, form)}"


def _plain(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name)


def write_boards(
    tables: Sequence[Board], folder: Path, formats: Iterable[str], *, one_table: bool = False
) -> list[Path]:
    """Write the boards into ``folder``, one file for each format, and return the paths.

    Comparisons are part of every format but csv, where they are a file ``comparisons.csv``; with
    ``one_table`` the LaTeX file holds all datasets in one table.

    Raises:
        RecordError: if the folder cannot be written.
    """
    form = {**FORMATS, "latex": joined_to_latex} if one_table else FORMATS
    contents = {folder / file_name(tables, name): form[name](tables) for name in formats}
    if "csv" in formats and any(board.comparisons for board in tables):
        contents[folder / file_name(tables, "csv", "comparisons")] = pairs_to_csv(tables)
    for path, content in contents.items():
        write_atomic(path, content.encode())
    return list(contents)


def _star(number: str) -> str:
    mean, space, rest = number.partition(" ")
    return f"{mean}*{space}{rest}{space}"


def _no_star(number: str) -> str:
    return _star(number).replace("*", " ", 1)


def _stacked(number: str) -> str:
    """Put spread, interval and count below the number, so that a table fits a narrow terminal."""
    return number.replace(" ±", "\n±").replace(" [", "\n[").replace(" (", "\n(")


def _markdown(board: Board) -> str:
    published = [PUBLISHED_NOTE, *cited] if (cited := sources(board)) else []
    notes = "\n".join(f"- {markdown(line)}" for line in [*footer(board), *published])
    parts = [f"## {markdown(title(board))}", markdown(subtitle(board)), *_grids(board)]
    if board.comparisons:
        headings = pair_headings(board)
        pairs = [[markdown(cell) for cell in cells] for cells in pairs_of(board)]
        parts += [markdown(pairs_title(board)), _grid(headings, headings.index("A - B"), pairs)]
    return "\n\n".join([*parts, notes]) + "\n"


def _grids(board: Board) -> Iterator[str]:
    if board.by == "category":
        for matrix in matrices(board, "**{}**".format, str, str):
            rows = [[markdown(cells[0]), *cells[1:]] for cells in matrix.rows]
            yield f"### {markdown(matrix.title)}\n\n{_grid([*map(markdown, matrix.heads)], 1, rows)}"
        return
    names, numbers = names_of(board), numbers_of(board)
    rows = []
    for line in lines_of(board, "**{}**".format, str, str):
        named = [markdown(name) for name in line.names]
        named[0] = named[0] if line.measured else f"*{named[0]}*"
        rows.append([*named, *line.numbers, markdown(line.marks)])
    yield _grid([*names, *numbers, "marks"], len(names), rows)


def _grid(headings: Sequence[str], names: int, rows: Sequence[Sequence[str]]) -> str:
    """Return a table, the first columns (``names`` of them) and marks to the left, numbers to the right."""
    rules = [":--" if i < names or heading == "marks" else "--:" for i, heading in enumerate(headings)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headings, rules, *rows])
