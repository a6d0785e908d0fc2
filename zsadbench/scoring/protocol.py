"""Protocols: how evidence becomes numbers.

A protocol may change the evaluation size, the mask rule, the smoothing or the image-score rule, and the
same evidence is scored again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..errors import UsageError, suggest
from ..files import digest_of
from ..images import MaskRule
from ..metrics import METRICS, MORE_IMAGE_METRICS, NEEDS_NORMALS, aupro_id, spro_limit, takes_percent

MASK_RULES: dict[str, MaskRule] = {rule: rule for rule in get_args(MaskRule)}


@dataclass(frozen=True)
class EvaluationProtocol:
    """How evidence becomes numbers.

    ``size`` in pixels, ``"frame"`` for the network's input or ``"native"`` for the mask's own size;
    ``inductive`` image scores look at one image alone; ``legacy`` takes AUPRO from 200 thresholds;
    ``exact_maps`` renders step by step; ``map_parameters`` are fields of the method set at scoring;
    ``metrics`` are taken beside those that every record holds, and change none of these.
    """

    id: str
    version: int
    size: int | Literal["frame", "native"]
    mask_resize: str
    inductive: bool = False
    legacy: bool = False
    limits: tuple[float, ...] = (0.3, 0.05)
    connectivity: int = 8
    exact_maps: bool = False
    map_parameters: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> EvaluationProtocol:
        """Return the protocol that :meth:`describe` described."""
        return cls(
            id=said["id"],
            version=said["version"],
            size=said["size"],
            mask_resize=said["mask_resize"],
            inductive=said["image_score"] == "inductive",
            legacy=bool(said["legacy"]),
            limits=tuple(said["aupro_limits"]),
            connectivity=said["connectivity"],
            exact_maps=bool(said["exact_maps"]),
            map_parameters=said["map_parameters"],
            metrics=tuple(filter(on_request, said.get("metrics", ()))),
        )

    @property
    def spro_limits(self) -> tuple[float, ...]:
        """The limits of the areas under saturated overlap that are asked for."""
        return tuple(limit for metric in self.metrics if (limit := spro_limit(metric)) is not None)

    @property
    def folder(self) -> str:
        """Name of the record's folder; a custom protocol is told apart by a digest of its rules."""
        custom = self.id == "custom" or self.exact_maps
        rules = dataclasses.replace(self, metrics=())
        return f"{self.id}-{digest_of(rules.describe())[:8]}" if custom else self.id

    def describe(self) -> dict[str, Any]:
        """Return the protocol as a record holds it."""
        return {
            "id": self.id,
            "version": self.version,
            "size": self.size,
            "mask_resize": self.mask_resize,
            "image_score": "inductive" if self.inductive else "reference",
            "aupro_limits": list(self.limits),
            "connectivity": self.connectivity,
            "legacy": self.legacy,
            "exact_maps": self.exact_maps,
            "map_parameters": dict(self.map_parameters),
            **({"metrics": list(self.metrics)} if self.metrics else {}),
        }


PROTOCOLS = ("reference", "common-1", "legacy200")


def protocol(
    name: str,
    *,
    reference_size: int | Literal["frame", "native"] = "frame",
    reference_masks: str = "bilinear50",
    size: int | None = None,
    mask_resize: str | None = None,
    limits: Sequence[float] | None = None,
    exact: bool = False,
    map_parameters: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = (),
) -> EvaluationProtocol:
    """Return protocol ``name`` for a method with the given reference rules; any override makes it ``custom``.

    ``metrics`` are more metrics to take, no override.

    Raises:
        UsageError: for an unknown protocol, mask rule or metric, or a limit outside (0, 1].
    """
    if name == "common-1":
        base = EvaluationProtocol("common-1", 1, 518, "bilinear50", inductive=True)
    elif name in ("reference", "legacy200"):
        base = EvaluationProtocol(name, 1, reference_size, reference_masks, legacy=name == "legacy200")
    else:
        raise UsageError(f"unknown protocol '{name}'.{suggest(name, PROTOCOLS)}")
    if mask_resize is not None and mask_resize not in MASK_RULES:
        raise UsageError(f"unknown mask rule '{mask_resize}'.{suggest(mask_resize, MASK_RULES)}")
    changes: dict[str, Any] = {}
    if size is not None:
        if size < 1:
            raise UsageError(f"an evaluation size of {size} pixels is not possible; give 1 or more")
        changes["size"] = size
    if mask_resize is not None:
        changes["mask_resize"] = mask_resize
    if limits:
        if not all(0 < limit <= 1 for limit in limits):
            raise UsageError(f"AUPRO limits lie in (0, 1]; got {', '.join(f'{v:g}' for v in limits)}")
        changes["limits"] = tuple(dict.fromkeys((0.3, *limits)))
    if exact:
        changes["exact_maps"] = True
    if map_parameters:
        changes["map_parameters"] = dict(map_parameters)
    if mask_resize == "native" and size is None:
        changes["size"] = "native"  # maps are brought to the mask's own size
    changed = {key: value for key, value in changes.items() if getattr(base, key) != value}
    if changed:
        changed |= {"id": "custom"} if changed.keys() != {"exact_maps"} else {}
    return dataclasses.replace(base, **changed, metrics=_asked(metrics))


def on_request(metric: str) -> bool:
    """Tell whether records hold a metric only where it is asked for."""
    other = takes_percent(metric) and metric not in MORE_IMAGE_METRICS
    return other or metric in NEEDS_NORMALS or spro_limit(metric) is not None


def _asked(metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics to take beside those that every record holds."""
    for metric in metrics:
        if metric not in (*METRICS, *MORE_IMAGE_METRICS) and not on_request(metric):
            raise UsageError(f"--metric {metric}: no such metric.{suggest(metric, METRICS)}")
    limits = ((metric, spro_limit(metric)) for metric in sorted(metrics))
    ids = (metric if limit is None else aupro_id(limit, "pixel_spro") for metric, limit in limits)
    return tuple(dict.fromkeys(filter(on_request, ids)))
