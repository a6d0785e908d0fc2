"""Boards as LaTeX tables for a paper; they need the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .board import Board
from .cells import PUBLISHED_NOTE, Style, lines_of, names_of, numbers_of, pair_headings, pairs_of, pairs_title
from .words import footer, sources, subtitle, title

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "#": r"\#",
    "$": r"\$",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "±": r"$\pm$",
}
_DASH = re.compile(r"-(?=-)")
_MINUS = re.compile(r"(?<!\w)-(?=\d)")


def to_latex(tables: Sequence[Board]) -> str:
    """Return all boards as LaTeX tables: percent, best of a column bold, second underlined.

    Names, titles and notes are escaped; a board with comparisons has a second table for them.
    """
    return "\n".join(["% Needs \\usepackage{booktabs}.", *map(_latex, tables)])


def _latex(board: Board) -> str:
    names, numbers = names_of(board), numbers_of(board)
    rows: list[list[str]] = []
    for line in lines_of(board, _styled(r"\textbf"), _styled(r"\underline"), escape):
        named = [escape(name) for name in line.names]
        if not line.measured:
            named[0] = rf"\quad \emph{{{named[0]}}}"
        ranked = len(numbers) - len(board.shown)
        cells = [*map(escape, line.numbers[:ranked]), *line.numbers[ranked:]]
        rows.append([*named, *cells, escape(line.marks)])
    heads = [*names, *numbers, "marks"]
    columns = "l" * len(names) + "r" * len(numbers) + "l"
    notes = [*footer(board), *([PUBLISHED_NOTE, *cited] if (cited := sources(board)) else [])]
    table = _table(f"{title(board)}. {subtitle(board)}.", columns, heads, rows, notes)
    if not board.comparisons:
        return table
    heads, rows = pair_headings(board), [[escape(cell) for cell in cells] for cells in pairs_of(board)]
    plain = heads.index("A - B")
    columns = "l" * plain + "r" * (len(heads) - plain)
    return f"{table}\n{_table(pairs_title(board), columns, heads, rows, [])}"


def _table(
    caption: str, columns: str, heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _row([escape(head) for head in heads]),
        r"\midrule",
        *map(_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\smallskip\footnotesize"] if notes else []),
        *(escape(note) + r"\par" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    # After \\ a bracket would be read as a length and a star as part of the command.
    return ("{}" if cells[0].startswith(("[", "*")) else "") + " & ".join(cells) + r" \\"


def _styled(command: str) -> Style:
    """Return what dresses the mean of a number and leaves spread, interval and count as they are."""

    def style(number: str) -> str:
        mean, space, rest = number.partition(" ")
        return rf"{command}{{{escape(mean)}}}{space}{escape(rest)}"

    return style


def escape(text: str) -> str:
    """Return text in which LaTeX reads no command: one line, special signs escaped."""
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    escaped = "".join(_ESCAPES.get(sign, sign) for sign in printable)
    return _MINUS.sub("$-$", _DASH.sub("-{}", escaped))
