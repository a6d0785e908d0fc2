"""A description and a folder become a list of samples, with everything that is wrong listed at once.

Enter: a dataset's id, ``.toml`` or folder. Leave: a ``Dataset`` of samples and its problems. Not known here:
CLIP, methods, records. (The one way up: the demo set is rendered by ``demo`` when it is first asked for.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .described import Description
    from .descriptions import shipped_description
    from .exchange import write_meta_json
    from .folders import draft, identifier
    from .load import (
        describe,
        list_images,
        load_dataset,
        load_validation,
        problem_report,
        subset,
        survey_dataset,
    )
    from .tree import amount

__all__ = [
    "Description",
    "amount",
    "describe",
    "draft",
    "identifier",
    "list_images",
    "load_dataset",
    "load_validation",
    "problem_report",
    "shipped_description",
    "subset",
    "survey_dataset",
    "write_meta_json",
]
room(__name__)
