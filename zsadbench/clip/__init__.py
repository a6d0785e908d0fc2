"""The two CLIP towers as steps, their weights, text anchors, and what was learned on top.

Enter: a ``Backbone``, prompts, weight files and checkpoints, never executed. Leave: a loaded ``Clip``. Not
known here: datasets, methods, records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .archives import LARGEST_PICKLE, examine, reason, room_for, sound
    from .checkpoints import (
        AuthorTable,
        Provenance,
        checkpoint_file,
        compare_shapes,
        describe,
        joined,
        load_checkpoint,
        pull_checkpoint,
        read_provenance,
        save_checkpoint,
    )
    from .downloads import fetch, hub_address, is_address, local_file, missing, tags
    from .normalisation import normalisation
    from .prompts import PROMPT_LISTS, anchor, encode, ensemble, has_one_slot, read_prompts
    from .second import SECOND_MINIATURE, Second, SecondWeights, find_seconds
    from .tokens import PrunedTokenizer
    from .towers import Block, Clip, Correlation, Text, Trace, Vision, load_clip
    from .weights import (
        Weights,
        architecture_digest,
        architectures,
        find_weights,
        layers_and_patch,
        native_size,
        shipped_weights,
        verify,
        vision_width,
    )

__all__ = [
    "LARGEST_PICKLE",
    "PROMPT_LISTS",
    "SECOND_MINIATURE",
    "AuthorTable",
    "Block",
    "Clip",
    "Correlation",
    "Provenance",
    "PrunedTokenizer",
    "Second",
    "SecondWeights",
    "Text",
    "Trace",
    "Vision",
    "Weights",
    "anchor",
    "architecture_digest",
    "architectures",
    "checkpoint_file",
    "compare_shapes",
    "describe",
    "encode",
    "ensemble",
    "examine",
    "fetch",
    "find_seconds",
    "find_weights",
    "has_one_slot",
    "hub_address",
    "is_address",
    "joined",
    "layers_and_patch",
    "load_checkpoint",
    "load_clip",
    "local_file",
    "missing",
    "native_size",
    "normalisation",
    "pull_checkpoint",
    "read_prompts",
    "read_provenance",
    "reason",
    "room_for",
    "save_checkpoint",
    "shipped_weights",
    "sound",
    "tags",
    "verify",
    "vision_width",
]
room(__name__)
