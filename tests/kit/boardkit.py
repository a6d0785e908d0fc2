"""Makes records for tests: small and without images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zsadbench.files import digest_of
from zsadbench.records.records import Record, write_record

METRICS = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro")


def observation(
    method: str = "clip",
    *,
    variant: str = "reference",
    dataset: str = "mtd",
    seed: int | None = None,
    weights: str = "openai",
    parameters: Mapping[str, Any] | None = None,
    flags: Mapping[str, bool] | None = None,
    about: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return the content of an observation.json; ``about`` changes its dataset."""
    settings = dict(parameters or {}) | ({} if seed is None else {"seed": seed})
    known = {
        "method": {"id": method, "variant": variant, "version": 1, "parameters": settings, **(flags or {})},
        "backbone": {"name": "ViT-B-16", "weights": weights, "sha256": digest_of(weights)},
        "checkpoint": None,
        "dataset": {
            "id": dataset,
            "title": dataset.upper(),
            "digest": digest_of(["samples", dataset]),
            "contents": digest_of(["contents", dataset]),
            "samples": 8,
            "mask_positive": ">0",
            "selection": {"limit": None, "categories": None},
            **(about or {}),
        },
        "wordings": {},
        "failed": [],
        "seed": seed,
        "marks": [],
        "environment": {"zsadbench": "0.1.0", "dtype": "fp32"},
        "complete": True,
        "created": "2026-01-02T03:04:05+00:00",
        **more,
    }
    return {"schema": 1, "observation": digest_of({**known, "created": "", "failed": []}), **known}


def protocol(name: str = "reference", **rules: Any) -> dict[str, Any]:
    """Return the protocol of a record."""
    known = {
        "id": name,
        "version": 1,
        "size": "frame",
        "mask_resize": "bilinear50",
        "image_score": "reference",
        "aupro_limits": [0.3, 0.05],
        "connectivity": 8,
        "legacy": name == "legacy200",
        "exact_maps": False,
        "map_parameters": {},
    }
    if name == "common-1":
        known |= {"size": 518, "image_score": "inductive"}
    return known | rules


def row(category: str = "tile", value: float | None = 0.5, **values: Any) -> dict[str, Any]:
    """Return one row of a record: every metric ``value``, but for ``values``."""
    known: dict[str, Any] = {"category": category, "normal": 4, "anomalous": 4, "failed": 0}
    known |= dict.fromkeys(METRICS, value) | values
    reasons = {name: "the dataset has no masks" for name in METRICS if known[name] is None}
    return {**known, "reasons": reasons}


def save(
    folder: Path,
    seen: Mapping[str, Any],
    *rows: Mapping[str, Any],
    rules: Mapping[str, Any] | None = None,
    created: str = "2026-01-02T03:04:05+00:00",
    metric_version: int = 1,
) -> Record:
    """Write a record as a run does and return it."""
    rules = rules or protocol()
    content = {
        "observation": seen,
        "protocol": rules,
        "metric_version": metric_version,
        "categories": list(rows) or [row()],
        "created": created,
    }
    method = f"{seen['method']['id']}@{seen['method']['variant']}"
    run_dir = folder / seen["dataset"]["id"] / method / seen["observation"][:12]
    image = {
        "key": "tile/0.png",
        "category": "tile",
        "anomalous": 1,
        "image_score": 0.75,
        "map_min": 0.125,
        "map_max": None,
    }
    return write_record(run_dir, rules["id"], content, [image])
