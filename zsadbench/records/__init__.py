"""What lies on disk in a folder of results, and which of it may stand in one column.

Enter: evidence, observations, records, published figures. Leave: the same, checked. Not known here: how a
number is made, the methods' code, boards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .contents import Contents
    from .evidence import (
        EvidenceStore,
        Kept,
        Slice,
        by_category,
        encoded,
        joined_digest,
        plan,
        select_rows,
        shapes_of,
        undefined,
    )
    from .files import (
        EDITED,
        RESCORE,
        UNKNOWN,
        NewerSchema,
        RecordWarning,
        check_run,
        is_metric,
        metric_order,
        read_text,
    )
    from .grouping import Grouping
    from .groups import Group, shared_rules
    from .observations import OBSERVATION, near_runs, read_observation, write_observation
    from .published import KINDS, Published, published_figures
    from .records import (
        NEEDS_OTHERS,
        RECORD,
        Record,
        find_records,
        load_records,
        read_record,
        write_record,
    )
    from .tables import IMAGES_CSV, MASK_COLUMN, ImageRow, group_columns, read_masks

__all__ = [
    "EDITED",
    "IMAGES_CSV",
    "KINDS",
    "MASK_COLUMN",
    "NEEDS_OTHERS",
    "OBSERVATION",
    "RECORD",
    "RESCORE",
    "UNKNOWN",
    "Contents",
    "EvidenceStore",
    "Group",
    "Grouping",
    "ImageRow",
    "Kept",
    "NewerSchema",
    "Published",
    "Record",
    "RecordWarning",
    "Slice",
    "by_category",
    "check_run",
    "encoded",
    "find_records",
    "group_columns",
    "is_metric",
    "joined_digest",
    "load_records",
    "metric_order",
    "near_runs",
    "plan",
    "published_figures",
    "read_masks",
    "read_observation",
    "read_record",
    "read_text",
    "select_rows",
    "shapes_of",
    "shared_rules",
    "undefined",
    "write_observation",
    "write_record",
]
room(__name__)
