"""Checks of the AF-CLIP arrays: every file states in ``meta`` what it was made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods._training_af_clip import AdaptorRecipe, alignment, focal, mutated_focal, on_patches
from methods.af_clip import (
    AfClip,
    adapted,
    attention,
    checkpoint_shapes,
    difference,
    encode_texts,
    text_tokens,
    token_sets,
)
from tests.checkers.common import (
    Golden,
    Meta,
    begin,
    drawn_batch,
    fixed_batches,
    opened,
    padded,
    prepared,
    run_pictures,
)
from tests.kit import tiny
from zsadbench.clip.towers import Clip
from zsadbench.inputs import Backbone
from zsadbench.maps import upsample
from zsadbench.metrics import evaluate

TOLERANCE = 2e-5
PROBABILITY = 5e-5
TRAINING = 5e-4
METRICS = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max")
PARTS = ("loss", "focal_label", "focal_mask", "l1", "align")


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, TOLERANCE) as golden:
        golden.hand_to(golden.word(1), _infer, _losses, _train, _end2end)


def learned(method: AfClip, clip: Clip, meta: Meta) -> dict[str, Tensor]:
    """Return the learned parameters as the noise that ``meta`` describes."""
    drawn = {}
    for name, shape in checkpoint_shapes(method, clip).items():
        about = meta["extras"][name]
        assert list(shape) == about["shape"], name
        drawn[name] = tiny.draw(name, shape, about["std"], about["mean"], salt=meta["extras_salt"])
    return drawn


def _setup(meta: Meta) -> tuple[AfClip, Clip, dict[str, Tensor]]:
    activation = "quick_gelu" if meta["quick_gelu"] else "gelu"
    clip = tiny.clip(meta["config"], activation, "bilinear")
    fields: dict[str, Any] = {
        "features": tuple(meta["feature_layers"]),
        "prompt_length": meta["prompt_len"],
        "neighbourhoods": tuple(meta.get("neighbourhoods", AfClip.neighbourhoods)),
        "temperature": meta.get("temperature", AfClip.temperature),
        "sigma": float(meta.get("smoothing_sigma", AfClip.sigma)),
    }
    backbone = Backbone(meta["config"], "random", activation, "bilinear")  # type: ignore[arg-type]
    preprocessing = dataclasses.replace(AfClip().preprocess, size=meta["size"])
    method = AfClip(backbone, preprocessing, **fields)
    return method, clip, learned(method, clip, meta)


def _infer(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    batch = drawn_batch(meta["image_seed"], meta["classes"], meta["size"])
    observer = prepared(method, "af-clip", clip, tensors, dict.fromkeys(meta["classes"], "any"))

    texts = observer.anchors.of(batch.categories)[0]

    golden.same("tokens", padded(text_tokens(method, clip), clip.text.context))
    golden.near("text_feature_raw", encode_texts(method, clip, tensors))
    golden.near("text_feature", texts)

    trace, grid = clip.vision.trace(batch), clip.vision.grid(batch.images)
    sets, chosen = token_sets(method, clip, trace, grid), meta["token_index"]
    golden.near("taps", sets[:: len(method.neighbourhoods)][:, :, chosen])
    golden.near("aggregated", sets[:, :, chosen])
    replaced = attention(method, tensors, sets.flatten(0, 1)).unflatten(0, sets.shape[:2])  # type: ignore[no-untyped-call]
    golden.near("adapted", replaced[:, :, chosen])
    features = adapted(method, clip, tensors, sets)
    golden.near("projected", features[:, :, chosen])
    cosines = (F.normalize(features, dim=-1) @ texts.T).sum(dim=0)
    golden.near("logits", cosines / method.temperature)

    evidence = observer.observe(batch)
    size = (meta["size"], meta["size"])
    score = method.image_scores(evidence, torch.zeros(len(batch.keys), 2))
    golden.near("image_score", score, tolerance=PROBABILITY)
    golden.near("patch_prob", evidence["map"], tolerance=PROBABILITY)
    golden.near("up_strided", upsample(evidence["map"], size)[:, ::4, ::4], tolerance=PROBABILITY)
    stride = meta["map_stride"]
    golden.near_maps(
        "final_map", lambda: method.maps(evidence, size)[:, ::stride, ::stride], tolerance=PROBABILITY
    )


def _losses(golden: Golden) -> None:
    meta = golden.meta
    p, image, features = (golden.tensor(key).requires_grad_() for key in ("pred", "image_prob", "features"))
    targets, labels = golden.tensor("mask"), golden.tensor("label")
    sets = alignment(features[:, :, 1:], targets.flatten(1))
    golden.near("align_sets", sets.detach())
    parts = {
        "focal_label": focal(image, labels.float()),
        "focal_mask": mutated_focal(p, targets),
        "l1": (p - targets).abs().mean(),
        "align": sets.clamp(min=0).mean(),
    }
    for name, value in parts.items():
        golden.near(name, value.detach())
    masks = meta["lambda1"] * (parts["focal_mask"] + parts["l1"])
    total = parts["focal_label"] + masks + meta["lambda2"] * parts["align"]
    golden.near("total", total.detach())
    for key, found in zip(
        ("pred_grad", "image_prob_grad", "features_grad"),
        torch.autograd.grad(total, (p, image, features)),
        strict=True,
    ):
        golden.near(key, found)
    clean = meta["lambda1"] * (focal(p, targets) + (p - targets).abs().mean())
    golden.near("alt_pred_grad_clean", torch.autograd.grad(clean, p)[0])


def _train(golden: Golden) -> None:
    """Repeat the authors' steps on their two batches."""
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    recipe = dataclasses.replace(
        AdaptorRecipe(),
        lr=meta["lr"],
        betas=tuple(meta["betas"]),
        patch_weight=float(meta["lambda1"]),
        align_weight=float(meta["lambda2"]),
    )
    stage = recipe.stages(method, clip, {})[0]
    begin(stage, tensors)
    assert list(stage.parameters) == meta["parameters"]
    batches = fixed_batches(golden, stage)
    for number, (_, truth) in enumerate(batches):
        reduced = on_patches(truth.masks, golden["reduced"].shape[-2:])
        golden.same("reduced", reduced[:, 0], golden["reduced"][number])
    found, norms = [], []
    for step in range(meta["steps"]):
        found.append(stage.step(*batches[step % len(batches)]))
        gradients = {name: value.grad for name, value in stage.parameters.items() if value.grad is not None}
        norms.append([float(gradient.norm()) for gradient in gradients.values()])
        if step == 0:
            _rows(golden, "grad0_", gradients)
    for name in PARTS:
        golden.near(name, [one[name] for one in found], tolerance=TRAINING)
    golden.near("grad_norm", norms, tolerance=TRAINING)
    after = {name: value.detach() for name, value in stage.parameters.items()}
    for name in after:
        if f"delta_{name}" in golden:
            golden.near(f"delta_{name}", after[name] - tensors[name], tolerance=2e-3)
    golden.near("final_norm", [float(value.norm()) for value in after.values()], tolerance=TRAINING)
    with torch.no_grad():
        texts = F.normalize(encode_texts(method, clip, after), dim=-1)
        sets = batches[0][0]["tokens"].transpose(0, 1)
        p = torch.sigmoid(difference(method, adapted(method, clip, after, sets), texts))
    golden.near("text_feature_after", texts, tolerance=TRAINING)
    golden.near("image_score_after", p[:, 0], tolerance=TRAINING)
    golden.near(
        "patch_prob_after", p[:, 1:], golden["patch_prob_after"].reshape(len(p), -1), tolerance=TRAINING
    )


def _rows(golden: Golden, prefix: str, gradients: dict[str, Tensor]) -> None:
    """Compare gradients that are stored whole, and those of which every so many rows are."""
    for name, gradient in gradients.items():
        short = name.rpartition("attn.")[2].removesuffix(".weight").removesuffix(".0")
        if prefix + name in golden:
            golden.near(prefix + name, gradient, tolerance=TRAINING)
        elif f"{prefix}{short}_rows" in golden:
            wanted = golden[f"{prefix}{short}_rows"]
            golden.near(
                f"{prefix}{short}", gradient[:: len(gradient) // len(wanted)], wanted, tolerance=TRAINING
            )


def _end2end(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    observer = prepared(method, "af-clip", clip, tensors, {"any": "any"})
    inputs, maps, scores, masks = run_pictures(golden, method, observer)
    golden.near("inputs_first", inputs[0, 0])
    golden.near("scores", scores, tolerance=PROBABILITY)
    golden.near("final_maps", maps[:, ::2, ::2], tolerance=PROBABILITY)
    golden.same("masks_at_size", masks, golden["masks_at_size"] > 0)
    rows = []
    for category in meta["categories"]:
        chosen = np.asarray([name == category for name in meta["category_of"]])
        exact = evaluate(maps[chosen], masks[chosen], golden["labels"][chosen], scores[chosen])
        rows.append([exact[name] for name in METRICS])
    golden.near("metrics", np.asarray(rows, float), golden["metrics"][:, :6], tolerance=2e-3, of="one")
