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
    from .reproducing import (
        REPRODUCTION_COLUMNS,
        Reproduction,
        board_figures,
        reproduction,
        reproduction_cells,
        write_reproductions,
    )
    from .rows import Cell, Row, percent
    from .text import FORMATS, file_name, known_formats, pairs_to_csv, print_boards, to_csv, write_boards
    from .verdict import Verdict
    from .words import footer, metric_title, sources, subtitle, title

__all__ = [
    "FORMATS",
    "MEAN",
    "REPRODUCTION_COLUMNS",
    "Board",
    "Cell",
    "Reproduction",
    "Row",
    "Verdict",
    "board_figures",
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
    "reproduction",
    "reproduction_cells",
    "sources",
    "subtitle",
    "title",
    "to_csv",
    "write_boards",
    "write_reproductions",
]
room(__name__)
