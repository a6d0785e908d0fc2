"""The demo: a procedural factory of defective objects, and the miniature CLIP trained on its pictures.

Enter: seeds. Leave: a dataset with exact masks, weights, a picture of a run. Not known here: the
command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .data import ensure_demo, write_demo
    from .probe import report
    from .sheet import contact_sheet
    from .train import Recipe, train

__all__ = [
    "Recipe",
    "contact_sheet",
    "ensure_demo",
    "report",
    "train",
    "write_demo",
]
room(__name__)
