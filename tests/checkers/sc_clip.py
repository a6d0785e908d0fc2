"""Checks of the SC-CLIP arrays: every file states in ``meta`` what it was made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from methods._shared import TEMPLATES_22
from methods.sc_clip import (
    ScClip,
    ScClipObserver,
    aggregate,
    attend,
    dense_tokens,
    outlier_factor,
    outliers,
    repaired,
    taps,
    window_boxes,
)
from tests.checkers.common import Golden, drawn_batch, opened
from tests.kit import tiny
from zsadbench.clip.towers import Clip, Trace
from zsadbench.inputs import Backbone, Batch
from zsadbench.maps import render

TOLERANCE = 1e-4
LINKS = 2e-5
MAPS = 5e-4


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, TOLERANCE) as golden:
        _infer(golden)


def _setup(golden: Golden) -> tuple[ScClip, Clip]:
    meta = golden.meta
    backbone = Backbone(
        meta["config"], "random", "quick_gelu" if meta["quick_gelu"] else "gelu", meta["position"]
    )
    assert meta["templates"] == f"clip@ac ({len(TEMPLATES_22)})" and meta["normalise_prompts"]
    names = (
        "middle",
        "early",
        "class_share",
        "beta",
        "gain",
        "neighbours",
        "contamination",
        "window",
        "scale",
    )
    method = ScClip(
        backbone,
        dataclasses.replace(ScClip().preprocess, size=meta["size"]),
        normal=tuple(meta["normal"]),
        anomalous=tuple(meta["anomalous"]),
        fuse=(meta["fuse"][0], meta["fuse"][-1] + 1),
        stride=meta["stride"] / meta["window"],
        **{name: meta[name] for name in names},
    )
    return method, tiny.clip(meta["config"], backbone.activation, backbone.position)


def _infer(golden: Golden) -> None:
    meta = golden.meta
    method, clip = _setup(golden)
    observer = method.prepare(clip, dict(zip(meta["classes"], meta["words"], strict=True)))
    for category in meta["classes"]:
        golden.near(f"text_{category}", observer.anchors.table[category])
    batch = drawn_batch(meta["image_seed"], meta["classes"], meta["size"])
    trace, grid, count = _windows(method, clip, batch)

    def near(stage: str, found: Tensor, tolerance: float | None = None) -> None:
        golden.near(stage, torch.unflatten(found, 0, (-1, count)), tolerance=tolerance)

    rows, kept, last = meta["rows"], meta["tokens_kept"], len(clip.vision.blocks) - 2
    streams = {"penultimate": last, "middle": method.middle, "early": method.early}
    for stage, block in streams.items():
        near(stage, trace.stream(block + 1)[:, :kept])
    deep, middle, early = (trace.stream(block + 1) for block in streams.values())
    near("lof", outlier_factor(deep[:, 1:], method.neighbours), LINKS)
    bad = outliers(method, deep[:, 1:])
    found = torch.stack([one.nonzero()[:, 0] for one in bad])
    golden.same("outliers", torch.unflatten(found, 0, (-1, count)))
    assert found.shape[1] == meta["outliers_per_window"]
    whole = repaired(deep[:, 1:], bad, grid)
    mended = repaired(middle[:, 1:], bad, grid)
    for stage, tokens in (("repaired_penultimate", whole), ("repaired_middle", mended)):
        near(stage, torch.stack([one[places] for one, places in zip(tokens, found, strict=True)]))

    middle, early = F.normalize(mended, dim=-1), F.normalize(early[:, 1:], dim=-1)
    link, similar = middle @ middle.mT, early @ early.mT
    near("link", link[:, rows], LINKS)
    near("link_mean", link.mean(dim=(1, 2)), LINKS)
    late = torch.where(similar < method.beta, 0.0, similar)
    near("early_link", late[:, rows], LINKS)
    aggregated = aggregate(torch.where(link < method.beta, 0.0, link), whole)
    attended = attend(method, clip, aggregated, link)
    near("aggregated", aggregated[:, rows])
    near("attended", attended[:, rows])
    near("deep", aggregate(late, attended + method.class_share * deep[:, :1])[:, rows])
    fused = torch.stack([trace.stream(block + 1) for block in meta["fuse"]]).sum(dim=0)
    second = attend(method, clip, fused[:, 1:], link)
    near("fused_attended", second[:, rows])
    near("fused", aggregate(late, second + method.class_share * fused[:, :1])[:, rows])
    tokens = dense_tokens(method, clip, trace, grid)
    near("tokens", tokens)
    if "tokens_norm" in golden:
        near("tokens_norm", dense_tokens(dataclasses.replace(method, outliers="norm"), clip, trace, grid))
    _results(golden, method, observer, batch, torch.unflatten(tokens, 0, (-1, count)))


def _windows(method: ScClip, clip: Clip, batch: Batch) -> tuple[Trace, tuple[int, int], int]:
    images = batch.images[:, 0]
    boxes = window_boxes((images.shape[-2], images.shape[-1]), method.window, method.stride)
    cut = torch.stack([images[..., top:below, left:right] for top, left, below, right in boxes], dim=1)
    trace = Trace(clip.vision, dataclasses.replace(batch, images=cut), taps(method, clip))
    return trace, clip.vision.grid(cut), len(boxes)


def _results(golden: Golden, method: ScClip, observer: ScClipObserver, batch: Batch, tokens: Tensor) -> None:
    """Compare what a run keeps and shows: differences, maps and scores."""
    meta, vision = golden.meta, observer.clip.vision
    evidence = {**observer.observe(batch), "frame": batch.frame}
    golden.near("difference", evidence["difference"], tolerance=MAPS, of="span")
    size = tuple(meta["frame"])
    golden.near_maps("map", lambda: method.maps(evidence, size), tolerance=MAPS, of="span")
    grid = evidence["difference"].shape[-2:]
    cosines = F.normalize(tokens, dim=-1) @ observer.anchors.of(batch.categories)[:, None].mT
    grids = torch.unflatten(cosines.permute(0, 3, 1, 2), -1, grid)
    pasted = [
        torch.stack([method.pasted(one, evidence["window"][i], batch.frame[i]) for one in both])
        for i, both in enumerate(grids)
    ]
    golden.near("cosines", torch.stack([render(both, size) for both in pasted]))
    images = batch.images[:, 0]
    if meta["window"] < meta["size"]:
        side = (meta["window"], meta["window"])
        images = F.interpolate(images, side, mode="bilinear", antialias=True, align_corners=False)
    golden.near("class_feature", F.normalize(vision.encode(vision.embed(images)), dim=-1))
    score = method.image_scores(evidence, torch.zeros(len(batch.keys), 2))
    golden.near("image_score", score, tolerance=5e-6, of="one")
