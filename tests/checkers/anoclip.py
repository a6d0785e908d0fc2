"""AnoCLIP against its authors' code, stage by stage.

Files with test-time adaptation belong to AnoCLIP+; the stages both have in common are checked here too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.anoclip import augmentations, box_mean
from tests.kit import tiny
from zsadbench.clip.prompts import encode
from zsadbench.clip.towers import Clip
from zsadbench.inputs import Batch
from zsadbench.maps import exact_maps
from zsadbench.method.registry import Resolved, resolve, wordings

Arrays = Mapping[str, Any]
FEATURES, SPAN, SCORE = 1e-4, 5e-4, 2e-6


def check(path: Path) -> None:
    """Compare one golden file, plain or tiled; hand one with an adapter on."""
    golden = np.load(path)
    meta = json.loads(str(golden["meta"]))
    if meta["adapter"]:
        from tests.checkers import anoclip_plus as goldens_anoclip_plus

        goldens_anoclip_plus.check(path)
        return
    arrays = {key: golden[key] for key in golden.files if key != "meta"}
    with torch.inference_mode():
        evidence = check_encoding(arrays, meta)
        _check_maps(arrays, meta, evidence)


def method_of(meta: Arrays, spec: str = "anoclip") -> Resolved:
    """Return the method, or its tiled variant, on the miniature and size of ``meta``."""
    variant = "@tiled" if meta["width"] else ""
    return resolve(
        f"{spec}{variant}", backbone=meta["config"], weights="random", settings={"size": meta["size"]}
    )


def clip_of(meta: Arrays) -> Clip:
    """Return the miniature with the activation of ``meta``."""
    return tiny.clip(meta["config"], "quick_gelu" if meta["quick_gelu"] else "gelu")


def words_of(meta: Arrays, resolved: Resolved) -> dict[str, str]:
    """Return the prompt words of the file's classes."""
    return wordings(resolved, {name: name for name in meta["classes"]})


def batch_of(meta: Arrays) -> Batch:
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


def check_encoding(arrays: Arrays, meta: Arrays) -> dict[str, Tensor]:
    """Compare everything up to tokens and view probabilities; return the plain method's evidence."""
    resolved, clip, batch = method_of(meta), clip_of(meta), batch_of(meta)
    observer: Any = resolved.method.prepare(clip, words_of(meta, resolved))
    _check_texts(arrays, meta, resolved, observer)
    _check_streams(arrays, meta, clip, batch, observer)
    if "aug_pixels" in arrays:
        images = batch.images[:, 0]
        views = torch.stack([images, *augmentations(images)], dim=1)
        rows, columns = zip(*meta["aug_pixel_coords"], strict=True)
        tiny.near("aug_pixels", views[..., rows, columns], arrays["aug_pixels"], FEATURES)
    evidence: dict[str, Tensor] = observer.observe(batch)
    tiny.near("class_probs", evidence["views"], arrays["class_probs"], SPAN, of="span")
    score = resolved.method.image_scores(evidence, torch.zeros(len(batch.categories), 2))
    tiny.near("image_score", score, arrays["image_score"], SCORE, of="one")
    return {**evidence, "frame": batch.frame}


def _check_texts(arrays: Arrays, meta: Arrays, resolved: Resolved, observer: Any) -> None:
    for category, words in words_of(meta, resolved).items():
        anchors = observer.anchors.table[category]
        tiny.near(f"text_{category}", anchors.T, arrays[f"text_{category}"], FEATURES)
        prompts = observer.method.prompts(category, words)
        rows = [F.normalize(encode(observer.clip, p), dim=-1)[meta["prompt_rows"]] for p in prompts]
        key = f"text_prompts_{category}"
        tiny.near(key, torch.stack(rows, dim=-1), arrays[key], FEATURES)


def _check_streams(arrays: Arrays, meta: Arrays, clip: Clip, batch: Batch, observer: Any) -> None:
    """Compare both streams after every block, and the features read from them."""
    vision = clip.vision
    depth, tiles = len(vision.blocks), batch.images.shape[1]
    first, kept = max(0, depth - observer.method.dual_blocks), meta["tokens_kept_in_blocks"]

    def near(key: str, found: Tensor) -> None:
        tiny.near(key, torch.unflatten(found, 0, (-1, tiles)), arrays[key], FEATURES)

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


def _check_maps(arrays: Arrays, meta: Arrays, evidence: Mapping[str, Tensor]) -> None:
    tiny.near("prob_low", evidence["map"], arrays["prob_low"], SPAN, of="span")
    tiny.near("prob_smooth", box_mean(evidence["map"]), arrays["prob_smooth"], SPAN, of="span")
    method = method_of(meta).method
    for exact in (False, True):
        with exact_maps(exact):
            maps = method.maps(evidence, (meta["size"], meta["width"] or meta["size"]))
        tiny.near("map", maps, arrays["map"], SPAN, of="span")
