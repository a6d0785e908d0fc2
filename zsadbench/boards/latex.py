"""Boards as LaTeX tables for a paper; they need the packages booktabs and graphicx."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..errors import RecordError, UsageError
from ..metrics import DERIVED
from .board import Board
from .cells import (
    PUBLISHED_NOTE,
    Style,
    lines_of,
    marks_of,
    names_of,
    numbers_of,
    pair_headings,
    pairs_of,
    pairs_title,
    styled,
)
from .matrix import matrices
from .rows import COSTS
from .words import footer, metric_title, sources, subtitle, title

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
    "§": r"\S{}",
    "¶": r"\P{}",
    "±": r"$\pm$",
}
_DASH = re.compile(r"-(?=-)")
_MINUS = re.compile(r"(?<!\w)-(?=\d)")


_PREAMBLE = r"% Needs \usepackage{booktabs,graphicx}."
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Makes what follows as wide as the text at most."""


def to_latex(tables: Sequence[Board]) -> str:
    """Return all boards as LaTeX tables: percent, best of a column bold, second underlined.

    Names, titles and notes are escaped; a board with comparisons has a second table for them.
    """
    labels = _labels(tables)
    texts = [_latex(board, label) for board, label in zip(tables, labels, strict=True)]
    return "\n".join([_PREAMBLE, *texts])


def joined_to_latex(tables: Sequence[Board]) -> str:
    """Return one LaTeX table over several datasets: a row per method, a group of columns per dataset.

    Published figures, intervals, comparisons and what runs took are left to the tables of their own.

    Raises:
        RecordError: if a dataset has several boards, or the boards differ in protocol or metric version.
        UsageError: for boards by category.
    """
    _require_one_kind(tables)
    rows = {row.label: [row.label] for board in tables for row in board.rows}
    marks = {label: _marks_of(label, tables) for label in rows}
    groups, heads = [("", 1)], ["method"]
    for board in tables:
        groups.append((board.group.dataset, len(board.shown)))
        heads += map(metric_title, board.shown)
        own = {row.label: replace(row, intervals={}) for row in board.rows}
        for label, cells in rows.items():
            cells += [
                styled(board, own.get(label), metric, _BEST, _SECOND, _OTHER) or "--"
                for metric in board.shown
            ]
    lines = [[escape(label), *cells[1:], escape(marks[label])] for label, cells in rows.items()]
    columns = "l" + "r" * (len(heads) - 1)
    if any(marks.values()):
        columns += "l"
        heads.append("marks")
        groups.append(("", 1))
    notes = list(
        dict.fromkeys(line for board in tables for line in footer(replace(board, notes=(), costs=())))
    )
    names = ", ".join(title(board) for board in tables)
    table = _Table(
        caption=f"{names}. {subtitle(tables[0])}.",
        label=f"tab:{_slug(tables[0].records[0].protocol_label)}",
        columns=columns,
        groups=groups,
        heads=heads,
        rows=[line[: len(heads)] for line in lines],
        notes=notes,
        wide=True,
    )
    return f"{_PREAMBLE}\n{table.text()}"


def _require_one_kind(tables: Sequence[Board]) -> None:
    if any(board.by == "category" for board in tables):
        raise UsageError("one table over several datasets holds means; leave --by category out")
    first = tables[0].group
    for board in tables[1:]:
        group = board.group
        same = (group.protocol, group.protocol_version, group.rules, group.metric_version)
        if same != (first.protocol, first.protocol_version, first.rules, first.metric_version):
            raise RecordError(
                f"one table needs one protocol: {group} beside {first}; leave one out or score all runs "
                "under one protocol with `zsad score`."
            )
    names = [board.group.dataset for board in tables]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise RecordError(
            f"one table needs one board per dataset, '{twice}' has several (other images, masks or versions)"
            "; give the folders of those that belong together."
        )


def _marks_of(label: str, tables: Sequence[Board]) -> str:
    found = [marks_of(row) for board in tables for row in board.rows if row.label == label]
    return ", ".join(dict.fromkeys(mark for marks in found for mark in marks.split(", ") if mark))


def _labels(tables: Sequence[Board]) -> list[str]:
    """Return a label for each table, no two alike."""
    names = [_slug(f"{board.group.dataset} {board.records[0].protocol_label}") for board in tables]
    seen: list[str] = []
    for name in names:
        count = sum(other == name or other.startswith(f"{name}-no-") for other in seen)
        seen.append(f"{name}-no-{count + 1}" if count else name)
    return [f"tab:{name}" for name in seen]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _latex(board: Board, label: str) -> str:
    notes = [*footer(board), *([PUBLISHED_NOTE, *cited] if (cited := sources(board)) else [])]
    caption = f"{title(board)}. {subtitle(board)}."
    tables = list(
        _by_category(board, caption, label) if board.by == "category" else _means(board, caption, label)
    )
    tables[-1] = replace(tables[-1], notes=notes)
    if board.comparisons:
        heads, rows = pair_headings(board), [[escape(cell) for cell in cells] for cells in pairs_of(board)]
        plain = heads.index("A - B")
        columns = "l" * plain + "r" * (len(heads) - plain)
        tables.append(_Table(pairs_title(board), f"{label}-pairs", columns, [], heads, rows))
    return "\n".join(table.text() for table in tables)


def _means(board: Board, caption: str, label: str) -> Iterator[_Table]:
    rows: list[list[str]] = []
    marked = False
    for line in lines_of(board, _BEST, _SECOND, _OTHER):
        named = [escape(name) for name in line.names]
        if not line.measured:
            named[0] = rf"\quad \emph{{{named[0]}}}"
        ranked = len(line.numbers) - len(board.shown) - len(board.costs)
        cells = [*map(escape, line.numbers[:ranked]), *line.numbers[ranked:]]
        rows.append([*named, *cells, escape(line.marks)])
        marked |= bool(line.marks)
    ranks = ["rank"] if board.ranked_by else []
    groups, short = _grouped([*names_of(board), *ranks], board.shown)
    more = [*(COSTS[name] for name in board.costs), *(["marks"] if marked else [])]
    if more:
        groups, short = [*groups, ("", len(more))], [*short, *more]
    names, numbers = len(names_of(board)), len(numbers_of(board))
    columns = "l" * names + "r" * numbers + ("l" if marked else "")
    yield _Table(caption, label, columns, groups, short, [row[: len(short)] for row in rows])


def _by_category(board: Board, caption: str, label: str) -> Iterator[_Table]:
    for matrix in matrices(board, _BEST, _SECOND, _OTHER):
        rows = [[escape(cells[0]), *cells[1:]] for cells in matrix.rows]
        columns = "l" + "r" * (len(matrix.heads) - 1)
        own = f"{label}-{_slug(matrix.title)}"
        named = f"{matrix.title}. {caption}"
        yield _Table(named, own, columns, [], matrix.heads, rows, summed=matrix.summed)


def _grouped(plain: Sequence[str], metrics: Sequence[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """Return headings over groups of columns, image and pixel, and the shorter ones below them."""
    groups: list[tuple[str, int]] = [("", len(plain))]
    heads = list(plain)
    for metric in metrics:
        group = "" if metric in DERIVED else metric.partition("_")[0].capitalize()
        name = metric_title(metric).removeprefix(f"{group} ")
        heads.append(name)
        last, count = groups[-1]
        groups = [*groups[:-1], (last, count + 1)] if last == group else [*groups, (group, 1)]
    return groups, heads


@dataclass(frozen=True)
class _Table:
    """One table of a document; its text needs no further work."""

    caption: str
    label: str
    columns: str
    groups: Sequence[tuple[str, int]]
    """Headings above columns, with how many columns each spans; empty for none."""
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    wide: bool = False
    summed: bool = False
    """Whether the last row is the mean of those before it."""

    def text(self) -> str:
        """Return the table with its notes below it, as wide as the text at most."""
        place = "table*" if self.wide else "table"
        lines = [
            rf"\begin{{{place}}}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{escape(self.caption)}}}",
            rf"\label{{{self.label}}}",
            _FITTED,
            rf"\begin{{tabular}}{{{self.columns}}}",
            r"\toprule",
            *self._above(),
            _row([escape(head) for head in self.heads]),
            r"\midrule",
            *self._rows(),
            r"\bottomrule",
            r"\end{tabular}}",
            *self._below(),
            rf"\end{{{place}}}",
        ]
        return "\n".join(lines) + "\n"

    def _rows(self) -> list[str]:
        rows = list(map(_row, self.rows))
        return [*rows[:-1], r"\midrule", rows[-1]] if self.summed else rows

    def _above(self) -> list[str]:
        if not any(name for name, _ in self.groups):
            return []
        cells, rules, start = [], [], 1
        for name, count in self.groups:
            cells.append(rf"\multicolumn{{{count}}}{{c}}{{{escape(name)}}}" if name else " & " * (count - 1))
            rules += [rf"\cmidrule(lr){{{start}-{start + count - 1}}}"] if name else []
            start += count
        return [" & ".join(cells) + r" \\", " ".join(rules)]

    def _below(self) -> list[str]:
        if not self.notes:
            return []
        return [
            r"\par\smallskip",
            r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
            *(escape(note) + r"\par" for note in self.notes),
            r"\end{minipage}",
        ]


def _row(cells: Sequence[str]) -> str:
    # After \\ a bracket would be read as a length and a star as part of the command.
    return ("{}" if cells[0].startswith(("[", "*")) else "") + " & ".join(cells) + r" \\"


def _styled(command: str) -> Style:
    """Return what dresses the mean of a number, with spread, interval and count in small print below."""

    def style(number: str) -> str:
        mean, _, rest = number.partition(" ")
        dressed = rf"{command}{{{escape(mean)}}}" if command else escape(mean)
        return rf"\shortstack{{{dressed}\\ \scriptsize {escape(rest)}}}" if rest else dressed

    return style


_BEST, _SECOND, _OTHER = _styled(r"\textbf"), _styled(r"\underline"), _styled("")


def escape(text: str) -> str:
    """Return text in which LaTeX reads no command: one line, special signs escaped."""
    printable = "".join(sign if sign.isprintable() else " " for sign in text)
    escaped = "".join(_ESCAPES.get(sign, sign) for sign in printable)
    return _MINUS.sub("$-$", _DASH.sub("-{}", escaped))
