"""Records become leaderboards, comparisons and a gate: a pure function of the files.

Enter: records and published figures. Leave: tables as data and as text, a verdict. Not known here: images,
the encoder, how evidence is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .beside import MEAN
    from .board import Board
    from .compare import boards, compare, nothing_there
    from .gate import gate
    from .latex import joined_to_latex
    from .pairs import in_order
    from .rows import Cell, Row, percent
    from .text import FORMATS, file_name, known_formats, pairs_to_csv, print_boards, to_csv, write_boards
    from .verdict import Verdict
    from .words import footer, metric_title, sources, subtitle, title

__all__ = [
    "FORMATS",
    "MEAN",
    "Board",
    "Cell",
    "Row",
    "Verdict",
    "boards",
    "compare",
    "file_name",
    "footer",
    "gate",
    "in_order",
    "joined_to_latex",
    "known_formats",
    "metric_title",
    "nothing_there",
    "pairs_to_csv",
    "percent",
    "print_boards",
    "sources",
    "subtitle",
    "title",
    "to_csv",
    "write_boards",
]
room(__name__)
