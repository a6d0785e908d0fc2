"""The command line: verbs over the library, each a thin function.

Enter: words. Leave: text, files, an exit code. Modules of this room import neither torch nor pandas until a
verb that needs them runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .app import app
    from .entry import main

__all__ = [
    "app",
    "main",
]
room(__name__)
