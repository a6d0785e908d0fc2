"""One pass over the images for many methods: from what shall run to the records.

Enter: names of methods and datasets, a ``Request``, or the maps of other code. Leave: evidence and records.
Not known here: boards, training, the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .foreign import score_maps, score_maps_record
    from .jobs import Request, find_samples
    from .run import execute, run, score_runs
    from .zeroshot import held_checkpoints, trained_on

__all__ = [
    "Request",
    "execute",
    "find_samples",
    "held_checkpoints",
    "run",
    "score_maps",
    "score_maps_record",
    "score_runs",
    "trained_on",
]
room(__name__)
