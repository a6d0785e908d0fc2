"""One pass over the images for many methods: what shall be observed becomes evidence, slice by slice.

Enter: tasks (a method, its wordings, where its evidence goes) and samples. Leave: evidence, and what it cost.
Not known here: datasets' descriptions, protocols, records' folders, the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .devices import images_at_once, pick_device, pick_dtype
    from .encoder import Clips, Encoder
    from .gathered import Gathered, related, too_few
    from .observe import observe
    from .task import Pass, Spent, Task
    from .timing import WARM, latency, one_at_a_time

__all__ = [
    "WARM",
    "Clips",
    "Encoder",
    "Gathered",
    "Pass",
    "Spent",
    "Task",
    "images_at_once",
    "latency",
    "observe",
    "one_at_a_time",
    "pick_device",
    "pick_dtype",
    "related",
    "too_few",
]
room(__name__)
