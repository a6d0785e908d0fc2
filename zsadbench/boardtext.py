"""Boards as text: for the terminal, and as csv, Markdown and JSON files that diff cleanly."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .board import SYMBOLS, Board, frame_of
from .boardrows import Row, percent
from .errors import UsageError, suggest
from .files import write_atomic
from .metrics import METRICS
from .published import KINDS, Published

Line = tuple[list[str], list[str], bool]
"""Leading cells, number cells, and whether the line is measured (or published)."""

_PUBLISHED_NOTE = (
    f"Published: one figure per metric, the most trusted kind first ({', '.join(KINDS)}); "
    "AUPRO from 200 thresholds only under legacy200, with ? where its rule is not stated."
)
_SPECIAL = re.compile(r"([\\|<*`\[\]])")


def to_csv(tables: Sequence[Board]) -> str:
    """Return all boards as one csv: full precision in [0, 1], no times, empty where undefined."""
    return frame_of(tables).to_csv(index=False, lineterminator="\n")


def to_json(tables: Sequence[Board]) -> str:
    """Return all boards as a JSON list: title, group, metrics, rows at full precision, footer."""
    content = [
        {
            "title": board.title,
            "subtitle": board.subtitle,
            "group": dataclasses.asdict(board.group),
            "metrics": list(board.metrics),
            "rows": board.lines(),
            "footer": board.footer,
            "sources": board.sources,
        }
        for board in tables
    ]
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(tables: Sequence[Board]) -> str:
    """Return all boards as Markdown: percent with one decimal, the best value of a column in bold."""
    return "\n".join(_markdown(board) for board in tables)


def to_rich(board: Board) -> RenderableType:
    """Return a board for the terminal: title, table, footer; the best value of a column has a star."""
    lines = list(_lines(board, _star, _no_star))
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in _leading(board):
        table.add_column(name, overflow="fold", min_width=16)
    for column, metric in enumerate(board.shown):
        heading = METRICS.get(metric, metric).replace(" ", "\n", 1)
        cells = [part for _, numbers, _ in lines for part in _stacked(numbers[column]).split("\n")]
        width = max(map(len, [*heading.split("\n"), *cells]))
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    table.add_column("marks")
    for leading, numbers, measured in lines:
        cells = [*leading[:-1], *map(_stacked, numbers), leading[-1]]
        table.add_row(*map(Text, cells), style="" if measured else "dim")
    best = any(board.is_best(row, metric) for row in board.rows for metric in board.shown)
    notes = (["* The best of its column."] if best else []) + board.footer
    if board.sources:
        notes.append(f"{_PUBLISHED_NOTE} Sources: --format md.")
    heads = Text(board.title, style="bold"), Text(board.subtitle)
    return Group(*heads, table, *(Text(line, style="dim") for line in notes), Text())


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
}


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


def file_name(tables: Sequence[Board], suffix: str) -> str:
    """Return the name of a board's file: boards by category do not replace those of means."""
    return f"leaderboard-by-category.{suffix}" if tables[0].by == "category" else f"leaderboard.{suffix}"


def write_boards(tables: Sequence[Board], folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write the boards into ``folder``, one file for each format, and return the paths.

    Raises:
        RecordError: if the folder cannot be written.
    """
    paths = []
    for name in formats:
        path = folder / file_name(tables, name)
        write_atomic(path, FORMATS[name](tables).encode())
        paths.append(path)
    return paths


def _leading(board: Board) -> list[str]:
    return ["method", "category"] if board.by == "category" else ["method"]


def _lines(board: Board, best: Callable[[str], str], other: Callable[[str], str]) -> Iterator[Line]:
    """Yield the lines of a board; the last leading cell holds the marks."""
    for row in board.rows:
        numbers = [
            (best if board.is_best(row, metric) else other)(str(row.cell(metric))) for metric in board.shown
        ]
        category = [row.category] if board.by == "category" else []
        yield [row.label, *category, _marks(row)], numbers, True
        for kind in KINDS:
            beside = {metric: entry for metric, entry in row.published.items() if entry.kind == kind}
            if beside:
                numbers = [other(_printed(beside.get(metric))) for metric in board.shown]
                yield [f"  published: {kind}", *category, ""], numbers, False


def _printed(entry: Published | None) -> str:
    return f"{percent(entry.value)}{'?' if entry.rule_unknown else ''}" if entry else ""


def _star(number: str) -> str:
    mean, space, rest = number.partition(" ")
    return f"{mean}*{space}{rest}{space}"


def _no_star(number: str) -> str:
    return _star(number).replace("*", " ", 1)


def _stacked(number: str) -> str:
    """Put spread and count below the number, so that a table fits a narrow terminal."""
    return number.replace(" ±", "\n±").replace(" (", "\n(")


def _marks(row: Row) -> str:
    return ", ".join(SYMBOLS.get(mark, mark) for mark in row.marks)


def _markdown(board: Board) -> str:
    heads = [*_leading(board), *(METRICS.get(metric, metric) for metric in board.shown), "marks"]
    rules = [":--"] * len(_leading(board)) + ["--:"] * len(board.shown) + [":--"]
    lines = [heads, rules]
    for leading, numbers, measured in _lines(board, "**{}**".format, str):
        names = [_escape(cell) for cell in leading]
        names[0] = names[0] if measured else f"*{names[0].strip()}*"
        lines.append([*names[:-1], *numbers, names[-1]])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    published = [_PUBLISHED_NOTE, *board.sources] if board.sources else []
    notes = "\n".join(f"- {_escape(line)}" for line in [*board.footer, *published])
    return f"## {_escape(board.title)}\n\n{_escape(board.subtitle)}\n\n{table}\n\n{notes}\n"


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(text.split("\n")))
