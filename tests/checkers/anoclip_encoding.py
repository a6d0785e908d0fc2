"""The stages that AnoCLIP and AnoCLIP+ have in common, from the prompts to the plain method's evidence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.anoclip import augmentations, box_mean
from tests.checkers.common import Golden, Meta, activation_of
from tests.kit import tiny
from zsadbench.clip.prompts import encode
from zsadbench.clip.towers import Clip
from zsadbench.inputs import Batch
from zsadbench.method.protocol import Evidence, Method
from zsadbench.method.registry import Resolved, resolve, wordings

FEATURES, SPAN, SCORE = 1e-4, 5e-4, 2e-6
"""Tolerances of features (of the largest value), probabilities (of their span) and scores (absolute)."""


def method_of(meta: Meta, spec: str = "anoclip") -> Resolved:
    """Return the method, or its tiled variant, on the miniature and size of ``meta``."""
    variant = "@tiled" if meta["width"] else ""
    return resolve(
        f"{spec}{variant}", backbone=meta["config"], weights="random", settings={"size": meta["size"]}
    )


def clip_of(meta: Meta) -> Clip:
    """Return the miniature with the activation of ``meta``."""
    return tiny.clip(meta["config"], activation_of(meta))


def words_of(meta: Meta, resolved: Resolved) -> dict[str, str]:
    """Return the prompt words of the file's classes."""
    return wordings(resolved, {name: name for name in meta["classes"]})


def batch_of(meta: Meta) -> Batch:
    """Return the file's images as one batch, wide ones cut into the two tiles at their ends."""
    inputs = tiny.images(meta["image_seed"], meta["batch"], meta["size"])
    if not meta["width"]:
        return tiny.batch(inputs, meta["classes"])
    gap = meta["width"] - meta["size"]
    wide = torch.cat([inputs[0::2], inputs[1::2, ..., :gap]], dim=-1)
    tiles = torch.stack([wide[..., : meta["size"]], wide[..., gap:]], dim=1)
    batch = tiny.batch(tiles, meta["classes"])
    frame = torch.tensor([[meta["size"], meta["width"]]]).expand(len(tiles), 2)
    return Batch(tiles, batch.boxes, frame, batch.keys, batch.categories)


def check_encoding(golden: Golden) -> dict[str, Tensor]:
    """Compare everything up to tokens and view probabilities; return the plain method's evidence."""
    meta = golden.meta
    resolved, clip, batch = method_of(meta), clip_of(meta), batch_of(meta)
    observer: Any = resolved.method.prepare(clip, words_of(meta, resolved))
    _check_texts(golden, resolved, observer)
    _check_streams(golden, clip, batch, observer)
    if "aug_pixels" in golden:
        images = batch.images[:, 0]
        views = torch.stack([images, *augmentations(images)], dim=1)
        rows, columns = zip(*meta["aug_pixel_coords"], strict=True)
        golden.near("aug_pixels", views[..., rows, columns])
    evidence: dict[str, Tensor] = observer.observe(batch)
    golden.near("class_probs", evidence["views"], tolerance=SPAN, of="span")
    score = resolved.method.image_scores(evidence, torch.zeros(len(batch.categories), 2))
    golden.near("image_score", score, tolerance=SCORE, of="one")
    return {**evidence, "frame": batch.frame}


def _check_texts(golden: Golden, resolved: Resolved, observer: Any) -> None:
    for category, words in words_of(golden.meta, resolved).items():
        anchors = observer.anchors.table[category]
        golden.near(f"text_{category}", anchors.T)
        prompts = observer.method.prompts(category, words)
        rows = [F.normalize(encode(observer.clip, p), dim=-1)[golden.meta["prompt_rows"]] for p in prompts]
        golden.near(f"text_prompts_{category}", torch.stack(rows, dim=-1))


def _check_streams(golden: Golden, clip: Clip, batch: Batch, observer: Any) -> None:
    """Compare both streams after every block, and the features read from them."""
    vision = clip.vision
    depth, tiles = len(vision.blocks), batch.images.shape[1]
    first, kept = max(0, depth - observer.method.dual_blocks), golden.meta["tokens_kept_in_blocks"]

    def near(key: str, found: Tensor) -> None:
        golden.near(key, torch.unflatten(found, 0, (-1, tiles)))

    vision.tap(stream=range(depth), values=range(first, depth))
    trace = vision.trace(batch)
    ordinary = [*(trace.stream(block) for block in range(1, depth)), trace.output]
    added = torch.stack([trace.values(block) for block in range(first, depth)], dim=1)
    local = trace.stream(first)[:, None] + added.cumsum(dim=1)
    near("block0_input", trace.stream(0)[:, :kept])
    near("ori_blocks", torch.stack(ordinary, dim=1)[:, :, :kept])
    near("vv_blocks", local[:, :, :kept])
    feature, tokens = observer.dual_path(batch)
    near("class_feature", F.normalize(feature, dim=-1))
    near("tokens", tokens)


def check_maps(golden: Golden, method: Method, evidence: Evidence, tolerance: float) -> None:
    """Compare the map before and after smoothing, and at full size."""
    size = (golden.meta["size"], golden.meta["width"] or golden.meta["size"])
    golden.near("prob_low", evidence["map"], tolerance=tolerance, of="span")
    golden.near("prob_smooth", box_mean(evidence["map"]), tolerance=tolerance, of="span")
    golden.near_maps("map", lambda: method.maps(evidence, size), tolerance=tolerance, of="span")
