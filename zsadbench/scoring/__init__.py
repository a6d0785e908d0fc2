"""Stored evidence becomes maps, scores and metric rows under a protocol; no CLIP, no images.

Enter: an observation with its evidence, the masks, a protocol. Leave: a record. Not known here: the encoder,
boards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .category import (
        CategoryScores,
        EvidenceMaps,
        Fixed,
        Map,
        MapReader,
        Maps,
        Sharing,
        Unit,
        on_cores,
        score_category,
    )
    from .code import NOBODY, UserMethods, restore
    from .command import OBSERVED, OPTIONS, evaluated, observed
    from .facets import View, by_group, merged, require_same
    from .normals import VALIDATION, contents_of, needs_normals, no_thresholds
    from .observation import (
        Portion,
        Scoring,
        frame,
        map_settings,
        rules_for,
        score,
        score_run,
        scored,
        scoring_of,
        stored_scoring,
    )
    from .protocol import EvaluationProtocol, protocol
    from .stored import StoredMaps, validation_of, without
    from .submission import Exported, export_submission

__all__ = [
    "NOBODY",
    "OBSERVED",
    "OPTIONS",
    "VALIDATION",
    "CategoryScores",
    "EvaluationProtocol",
    "EvidenceMaps",
    "Exported",
    "Fixed",
    "Map",
    "MapReader",
    "Maps",
    "Portion",
    "Scoring",
    "Sharing",
    "StoredMaps",
    "Unit",
    "UserMethods",
    "View",
    "by_group",
    "contents_of",
    "evaluated",
    "export_submission",
    "frame",
    "map_settings",
    "merged",
    "needs_normals",
    "no_thresholds",
    "observed",
    "on_cores",
    "protocol",
    "require_same",
    "restore",
    "rules_for",
    "score",
    "score_category",
    "score_run",
    "scored",
    "scoring_of",
    "stored_scoring",
    "validation_of",
    "without",
]
room(__name__)
