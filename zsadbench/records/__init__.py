"""What lies on disk in a folder of results, and which of it may stand in one column.

Enter: evidence, observations, records, published figures. Leave: the same, checked. Not known here: how a
number is made, the methods' code, boards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .evidence import EvidenceStore, Slice, by_category, plan, select_rows
    from .files import RESCORE, is_metric, read_text
    from .groups import Group, shared_rules
    from .published import KINDS, Published, best_published
    from .records import (
        IMAGES_CSV,
        RECORD,
        ImageRow,
        Record,
        find_records,
        load_records,
        read_observation,
        read_record,
        write_observation,
        write_record,
    )

__all__ = [
    "IMAGES_CSV",
    "KINDS",
    "RECORD",
    "RESCORE",
    "EvidenceStore",
    "Group",
    "ImageRow",
    "Published",
    "Record",
    "Slice",
    "best_published",
    "by_category",
    "find_records",
    "is_metric",
    "load_records",
    "plan",
    "read_observation",
    "read_record",
    "read_text",
    "select_rows",
    "shared_rules",
    "write_observation",
    "write_record",
]
room(__name__)
