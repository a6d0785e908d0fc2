"""Which records may stand in one column: the rules of a protocol and the groups they form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .files import UNKNOWN

_SIZES = {"frame": "network input size", "native": "the masks' own size", "unknown": "unknown size"}
METHOD_RULED = ("reference", "legacy200")
"""Protocols under which the evaluation size and the mask rule come from the method."""


@dataclass(frozen=True, order=True)
class Group:
    """What two records must share before their numbers may stand in one column.

    ``rules`` are the evaluation rules as text.  Under the protocols ``reference`` and ``legacy200`` they
    are empty: there the size and mask rule belong to the method, as part of what is reproduced.
    ``masks_digest`` is ``unknown`` for records of schema 1, which may stand beside each other alone.
    """

    dataset: str
    protocol: str
    protocol_version: int
    rules: str
    mask_positive: str
    metric_version: int
    dataset_digest: str
    contents_digest: str
    masks_digest: str = UNKNOWN

    def differences(self, other: Group) -> list[str]:
        """Return in words what ``self`` has and ``other`` has not."""
        return [
            f"{item.name.replace('_', ' ')} {_brief(mine)} instead of {_brief(theirs)}"
            for item in fields(self)
            if (mine := getattr(self, item.name)) != (theirs := getattr(other, item.name))
        ]

    def __str__(self) -> str:
        return f"{self.dataset} under {self.protocol} v{self.protocol_version}"


def shared_rules(protocol_id: str, rules: str) -> str:
    """Return ``rules`` where all methods share them, nothing where each method brings its own."""
    return "" if protocol_id in METHOD_RULED else rules


def rules_of(protocol: Mapping[str, Any]) -> str:
    """Return the rules of a protocol that decide its numbers, as text of one fixed order."""
    size = protocol.get("size", "unknown")
    parts = [_SIZES.get(size, f"{size} px")]
    parts += [f"masks {protocol['mask_resize']}"] if protocol.get("mask_resize") else []
    parts += [f"image scores {protocol['image_score']}"] if protocol.get("image_score") else []
    if limits := protocol.get("aupro_limits"):
        parts.append("AUPRO to " + ", ".join(f"{limit:g}" for limit in limits))
    parts += [f"{protocol['connectivity']}-connected"] if protocol.get("connectivity") else []
    parts += ["AUPRO from 200 thresholds"] if protocol.get("legacy") else []
    return ", ".join(parts)


def _brief(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text or "none"
