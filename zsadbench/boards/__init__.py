"""Records become leaderboards, comparisons and a gate: a pure function of the files.

Enter: records and published figures. Leave: tables as data and as text, a verdict. Not known here: images,
the encoder, how evidence is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .board import Board
    from .compare import boards, compare, nothing_there
    from .gate import gate
    from .pairs import in_order
    from .rows import MEAN, Cell, Row, percent
    from .text import FORMATS, file_name, known_formats, pairs_to_csv, print_boards, to_csv, write_boards
    from .words import footer, sources, subtitle, title

__all__ = [
    "FORMATS",
    "MEAN",
    "Board",
    "Cell",
    "Row",
    "boards",
    "compare",
    "file_name",
    "footer",
    "gate",
    "in_order",
    "known_formats",
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
