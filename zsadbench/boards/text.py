"""Boards as text: for the terminal, and as csv, Markdown, LaTeX and JSON files that diff cleanly."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import UsageError, suggest
from ..files import write_atomic
from .board import Board, frame_of, pair_lines, paired_frame
from .cells import PUBLISHED_NOTE, lines_of, names_of, numbers_of, pair_headings, pairs_of, pairs_title
from .latex import to_latex
from .words import footer, sources, subtitle, title

_SPECIAL = re.compile(r"([\\|<*`\[\]])")


def to_csv(tables: Sequence[Board]) -> str:
    """Return all boards as one csv: full precision in [0, 1], no times, empty where undefined."""
    return frame_of(tables).to_csv(index=False, lineterminator="\n")


def pairs_to_csv(tables: Sequence[Board]) -> str:
    """Return the comparisons of all boards as one csv, numbers as in :func:`to_csv`."""
    return paired_frame(tables).to_csv(index=False, lineterminator="\n")


def to_json(tables: Sequence[Board]) -> str:
    """Return all boards as a JSON list: title, group, metrics, rows at full precision, footer."""
    content = [
        {
            "title": title(board),
            "subtitle": subtitle(board),
            "group": dataclasses.asdict(board.group),
            "metrics": list(board.metrics),
            "rows": board.lines(),
            **({"comparisons": pair_lines(board)} if board.comparisons else {}),
            "footer": footer(board),
            "sources": sources(board),
        }
        for board in tables
    ]
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(tables: Sequence[Board]) -> str:
    """Return all boards as Markdown: percent with one decimal, the best value of a column in bold."""
    return "\n".join(_markdown(board) for board in tables)


def to_rich(board: Board) -> RenderableType:
    """Return a board for the terminal: title, tables, footer; the best value of a column has a star."""
    best = any(board.is_best(row, metric) for row in board.rows for metric in board.shown)
    notes = (["* The best of its column."] if best else []) + footer(board)
    if sources(board):
        notes.append(f"{PUBLISHED_NOTE} Sources: --format md.")
    parts: list[RenderableType] = [Text(title(board), style="bold"), Text(subtitle(board)), _numbers(board)]
    if board.comparisons:
        parts += [Text(pairs_title(board)), _pairs(board)]
    return Group(*parts, *(Text(line, style="dim") for line in notes), Text())


def _numbers(board: Board) -> Table:
    lines = list(lines_of(board, _star, _no_star, _no_star))
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in names_of(board):
        table.add_column(name, overflow="fold", min_width=16)
    for column, name in enumerate(numbers_of(board)):
        heading = name.replace(" ", "\n", 1)
        cells = [part for line in lines for part in _stacked(line.numbers[column]).split("\n")]
        width = max(map(len, [*heading.split("\n"), *cells]))
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    table.add_column("marks")
    for line in lines:
        names = line.names if line.measured else [f"  {line.names[0]}", *line.names[1:]]
        cells = [*names, *map(_stacked, line.numbers), line.marks]
        table.add_row(*map(Text, cells), style="" if line.measured else "dim")
    return table


def _pairs(board: Board) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    headings = pair_headings(board)
    for place, heading in enumerate(headings):
        number = place >= headings.index("A - B")
        table.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for cells in pairs_of(board):
        table.add_row(*map(Text, cells))
    return table


def print_boards(tables: Sequence[Board]) -> None:
    """Print boards as tables; what goes to a file or pipe, which has no width, is not folded."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=1000)
    for board in tables:
        console.print(to_rich(board))


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
    """Return the name of a board's file: boards by category do not replace those of means."""
    by = "-by-category" if tables[0].by == "category" else ""
    return f"{stem}{by}.{_SUFFIXES.get(form, form)}"


def write_boards(tables: Sequence[Board], folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write the boards into ``folder``, one file for each format, and return the paths.

    Comparisons are part of every format but csv, where they are a file ``comparisons.csv``.

    Raises:
        RecordError: if the folder cannot be written.
    """
    contents = {folder / file_name(tables, name): FORMATS[name](tables) for name in formats}
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
    names, numbers = names_of(board), numbers_of(board)
    rows = []
    for line in lines_of(board, "**{}**".format, str, str):
        named = [_escape(name) for name in line.names]
        named[0] = named[0] if line.measured else f"*{named[0]}*"
        rows.append([*named, *line.numbers, line.marks])
    table = _grid([*names, *numbers, "marks"], len(names), rows)
    published = [PUBLISHED_NOTE, *cited] if (cited := sources(board)) else []
    notes = "\n".join(f"- {_escape(line)}" for line in [*footer(board), *published])
    parts = [f"## {_escape(title(board))}", _escape(subtitle(board)), table]
    if board.comparisons:
        headings = pair_headings(board)
        pairs = [[_escape(cell) for cell in cells] for cells in pairs_of(board)]
        parts += [_escape(pairs_title(board)), _grid(headings, headings.index("A - B"), pairs)]
    return "\n\n".join([*parts, notes]) + "\n"


def _grid(headings: Sequence[str], names: int, rows: Sequence[Sequence[str]]) -> str:
    """Return a table, the first columns (``names`` of them) and marks to the left, numbers to the right."""
    rules = [":--" if i < names or heading == "marks" else "--:" for i, heading in enumerate(headings)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headings, rules, *rows])


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split("\n")))
