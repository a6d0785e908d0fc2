"""Checks of the VCP-CLIP arrays: every file states in ``meta`` what it was made from."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from methods._training_vcp_clip import ContextRecipe
from methods.clip_ad import layer_maps, linear_features
from methods.vcp_clip import (
    VcpClip,
    asked,
    both_logits,
    category_vectors,
    check_fit,
    checkpoint_shapes,
    encode_texts,
    patch_tokens,
    prompt_tokens,
    top_mean,
)
from tests.checkers.common import (
    Golden,
    Meta,
    begin,
    drawn_batch,
    fixed_batches,
    opened,
    prepared,
    run_pictures,
)
from tests.kit import tiny
from zsadbench.clip.towers import Clip
from zsadbench.inputs import Backbone
from zsadbench.metrics import evaluate, legacy_aupro200

TOLERANCE = 2e-5
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, TOLERANCE) as golden:
        golden.hand_to(golden.word(1), _infer, _train, _end2end)


def learned(method: VcpClip, clip: Clip, meta: Meta) -> dict[str, Tensor]:
    """Return the learned parameters as the noise that ``meta`` describes."""
    drawn = {}
    for name, shape in checkpoint_shapes(method, clip).items():
        kind = f"fc.{name.rpartition('.')[2]}" if name.startswith("fc.") else name
        about = meta["extras_std"][kind]
        mean, std = about if isinstance(about, list) else (0.0, about)
        drawn[name] = tiny.draw(name, shape, std, mean, salt=meta["extras_salt"])
    return drawn


def _setup(meta: Meta, **fields: Any) -> tuple[VcpClip, Clip, dict[str, Tensor]]:
    activation: Literal["gelu", "quick_gelu"] = meta["activation"]
    clip = tiny.clip(meta["config"], activation, meta["position"])
    backbone = Backbone(meta["config"], "random", activation, meta["position"])
    given = {
        "category_vectors": meta["prompt_len"],
        "deep_length": meta["deep_prompt_len"],
        "features": tuple(meta["features"]),
        "heads": meta["post_heads"],
        "alpha": meta.get("alpha", VcpClip.alpha),
        "sigma": float(meta.get("sigma", VcpClip.sigma)),
        "top_share": meta.get("top_pixels", 2000) / meta["size"] ** 2,
    }
    method = VcpClip(
        backbone, dataclasses.replace(VcpClip().preprocess, size=meta["size"]), **(given | fields)
    )
    check_fit(method, clip)
    assert meta["deep_layers"] == len(clip.text.blocks) - 1
    return method, clip, learned(method, clip, meta)


def _infer(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    names = ["any"] * meta["batch"]
    batch = drawn_batch(meta["image_seed"], names, meta["size"])
    observer = prepared(method, "vcp-clip", clip, tensors, {"any": "any"})
    _tokens(golden, method, clip)

    trace = clip.vision.trace(batch)
    image, patches = clip.vision.project(trace.output[:, 0]), patch_tokens(method, clip, trace)
    golden.near("image_feature_raw", image)
    stacked = torch.stack(patches, dim=1)
    golden.near("patch_tokens", stacked[: len(golden["patch_tokens"])])
    golden.near("class_vectors", category_vectors(method, tensors, image))
    texts = F.normalize(encode_texts(method, clip, tensors, image), dim=-1)
    golden.near("text", texts)
    golden.near(
        "linear_out0", linear_features(patches[0][:1], (tensors["fc.0.weight"], tensors["fc.0.bias"]))
    )
    pre, post = both_logits(method, tensors, patches, texts)
    golden.near("pre_logit", pre)
    answers = [asked(method, tensors, F.normalize(own, dim=-1), texts) for own in patches]
    golden.near("post_text", torch.stack(answers, dim=1))
    golden.near("post_logit", post)

    evidence, size = observer.observe(batch), (meta["size"], meta["size"])
    for name in ("pre", "post"):
        maps = layer_maps(evidence[name], size).mean(dim=1)
        if f"{name}_map" in golden:
            golden.near(f"{name}_map", maps[:1])
        golden.near(f"{name}_top", top_mean(maps, method.top_share))
    golden.near_maps("final_map", lambda: method.maps(evidence, size))
    extrema = torch.zeros(len(names), 2)
    golden.near("image_score", method.image_scores(evidence, extrema))

    plain = dataclasses.replace(method, global_context=False)
    same = F.normalize(encode_texts(plain, clip, tensors, image), dim=-1)
    golden.near("noglobal_text", same[0])
    found = prepared(plain, "vcp-clip", clip, tensors, {"any": "any"}).observe(batch)
    golden.near("noglobal_score", plain.image_scores(found, extrema))
    shallow = dataclasses.replace(method, deep=False)
    golden.near("shallow_text", F.normalize(encode_texts(shallow, clip, tensors, image), dim=-1))


def _tokens(golden: Golden, method: VcpClip, clip: Clip) -> None:
    """Compare the words; the code has one token of its own where the category vectors will stand."""
    found, wanted = prompt_tokens(method, clip), golden["tokens"]
    words = found.shape[1] - method.category_vectors - 1
    golden.same("tokens", found[:, :words], wanted[:, :words])
    assert (wanted[:, words] > wanted[:, words + 1]).all()
    golden.same("tokens", found[:, -1], wanted[:, words + 1])


def _train(golden: Golden) -> None:
    """Repeat the authors' steps on their two batches, and the first one with dropout."""
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    recipe = dataclasses.replace(
        ContextRecipe(),
        lr=meta["lr"],
        temperature_lr=meta["lr_temperatures"],
        betas=tuple(meta["betas"]),
        dropout=meta["dropout"],
    )
    stage = recipe.stages(method, clip, {})[0]
    begin(stage, tensors)
    batches = fixed_batches(golden, stage)

    features, truth = batches[0]
    packed = np.unpackbits(golden["dropout_keep"])[: int(np.prod(meta["dropout_keep_shape"]))]
    kept = torch.from_numpy(packed.reshape(meta["dropout_keep_shape"])).float() / 0.9
    keep = kept.permute(2, 1, 0, 3, 4).flatten(1, 2)  # to (block, image * state, n, W)
    with torch.no_grad():
        dropped = recipe.losses(method, clip, stage.parameters, features, truth, keep)
        texts = F.normalize(encode_texts(method, clip, stage.parameters, features["image"]), dim=-1)
    golden.near("dropout_step0", [float(dropped[name]) for name in ("pre", "post", "loss")])
    golden.near("step0_text", texts)

    found, norms = [], []
    for step in range(meta["steps"]):
        found.append(stage.step(*batches[step % len(batches)]))
        gradients = {name: value.grad for name, value in stage.parameters.items() if value.grad is not None}
        norms.append([float(gradients[name].norm()) for name in meta["grad_norm_of"]])
        if step == 0:
            for name, gradient in gradients.items():
                if f"grad0/{name}" in golden:
                    golden.near(f"grad0/{name}", gradient, tolerance=1e-4)
    for ours, theirs in {"loss": "total_loss", "pre": "pre_loss", "post": "post_loss"}.items():
        golden.near(theirs, [one[ours] for one in found])
    for kind in ("pre", "post"):
        for loss in ("focal", "dice"):
            rows = [[one[f"{kind}_{loss}_{n}"] for n in range(len(method.features))] for one in found]
            golden.near(f"{kind}_{loss}_loss", rows)
    golden.near("grad_norm", norms, tolerance=1e-4)
    after = {name: value.detach() for name, value in stage.parameters.items()}
    for name, value in after.items():
        rate = meta["lr_temperatures"] if name.startswith("prompt_temp") else meta["lr"]
        if f"after/{name}" in golden:
            golden.near(f"after/{name}", value, tolerance=0.5 * rate, of="one")
        if f"after/{name}_rows" in golden:
            wanted = golden[f"after/{name}_rows"]
            golden.near(f"after/{name}_rows", value[: len(wanted)], tolerance=0.5 * rate, of="one")


def _end2end(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    observer = prepared(method, "vcp-clip", clip, tensors, {"any": "any"})
    _, maps, scores, masks = run_pictures(golden, method, observer)
    golden.near("scores", scores)
    golden.near("final_maps", maps[: len(golden["final_maps"])])
    binary = np.unpackbits(golden["mask_binary"])[: masks.size].reshape(meta["mask_shape"])
    golden.same("mask_binary", masks, binary > 0)

    rows, normed = [], np.zeros_like(scores)
    for category in meta["classes"]:
        chosen = np.asarray([name == category for name in meta["class_of_image"]])
        own, span = scores[chosen], np.ptp(scores[chosen])
        normed[chosen] = (own - own.min()) / span
        low, high = maps[chosen].min(), maps[chosen].max()
        for place, image in enumerate(meta["norm_maps_of"]):
            if chosen[image]:
                golden.near("norm_maps", (maps[image] - low) / (high - low), golden["norm_maps"][place])
        rows.append(_row(maps[chosen], masks[chosen], golden["labels"][chosen], own, meta["metrics"]))
    golden.near("norm_scores", normed, tolerance=1e-4)
    found = np.asarray(rows, float)
    for column, name in enumerate(meta["metrics"]):
        near = partial(golden.near, tolerance=2e-3 if name == "pixel_aupro" else TOLERANCE, of="one")
        near(f"metrics of {name}", found[:, column], golden["metrics"][:, column])
        near(f"metrics_mean of {name}", found[:, column].mean(), golden["metrics_mean"][column])


def _row(
    maps: Floats, masks: NDArray[np.bool_], labels: Ints, scores: Floats, names: list[str]
) -> list[float]:
    """Return the metrics of a category as the authors take them.

    Their IoU is that of the pixels above the threshold of the greatest F1, without those on it; their
    threshold is one of scaled maps.
    """
    exact = dict(evaluate(maps, masks, labels, scores))
    threshold = exact["pixel_f1max_threshold"] or 0.0
    above = maps > np.float32(threshold)
    low, high = float(maps.min()), float(maps.max())
    exact["pixel_iou"] = (above & masks).sum() / (above | masks).sum()
    exact["pixel_aupro"] = legacy_aupro200(maps, masks)
    exact["threshold"] = (threshold - low) / (high - low)
    return [float(exact[name] or 0.0) for name in names]
