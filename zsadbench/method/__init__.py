"""What a method is, how one is made from its card, and what it must hold to.

Enter: ids, cards, settings, users' own classes. Leave: resolved methods. Not known here: datasets on disk,
evidence on disk, records, training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from ..inputs import OPENAI_MEAN, OPENAI_STD, Backbone, Batch, Preprocess, SecondTower, Within
    from .card import REFERENCE, WORDLESS, Layer, MethodCard, method_cards
    from .contract import Check, check
    from .draft import draft_method, draft_prompts
    from .parcel import Parcel, opened, packed
    from .protocol import Drawing, Evidence, Method, Observer, Relating, Tell
    from .registry import Resolved, load_method, parse_spec, recipe_of, resolve, wordings
    from .settings import as_text, convert, describe, flattened, hints, override, places
    from .trial import miniature, prompts_sent, with_checkpoint
    from .user import blamed, is_users, source_digest

__all__ = [
    "OPENAI_MEAN",
    "OPENAI_STD",
    "REFERENCE",
    "WORDLESS",
    "Backbone",
    "Batch",
    "Check",
    "Drawing",
    "Evidence",
    "Layer",
    "Method",
    "MethodCard",
    "Observer",
    "Parcel",
    "Preprocess",
    "Relating",
    "Resolved",
    "SecondTower",
    "Tell",
    "Within",
    "as_text",
    "blamed",
    "check",
    "convert",
    "describe",
    "draft_method",
    "draft_prompts",
    "flattened",
    "hints",
    "is_users",
    "load_method",
    "method_cards",
    "miniature",
    "opened",
    "override",
    "packed",
    "parse_spec",
    "places",
    "prompts_sent",
    "recipe_of",
    "resolve",
    "source_digest",
    "with_checkpoint",
    "wordings",
]
room(__name__)
