"""Checks of the FAPrompt arrays: every file states in ``meta`` what it was made from."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods._training_faprompt import PriorRecipe
from methods.faprompt import (
    FaPrompt,
    checkpoint_shapes,
    features,
    first_pass,
    image_score,
    prior,
    probability,
    second_pass,
    sentences,
    texts_of,
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
from zsadbench.metrics import evaluate, legacy_aupro200

TOLERANCE = 2e-5
LOSSES = {
    "loss": "total_loss",
    "local": "local_loss",
    "image": "image_loss",
    "score": "image_focal_loss",
    "diversity": "diversity_loss",
    "prior": "prior_loss",
    **{f"focal{n}": f"focal{n}_loss" for n in (1, 2)},
    **{f"dice_anomalous{n}": f"dice_abnormal{n}_loss" for n in (1, 2)},
    **{f"dice_normal{n}": f"dice_normal{n}_loss" for n in (1, 2)},
}
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro")


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, TOLERANCE) as golden:
        golden.hand_to(golden.word(1), _infer, _train, _end2end)


def learned(method: FaPrompt, clip: Clip, meta: Meta) -> dict[str, Tensor]:
    """Return the learned parameters as the noise that ``meta`` describes."""
    drawn = {}
    for name, shape in checkpoint_shapes(method, clip).items():
        kind = "compound_prompts_text" if name.startswith("compound") else name
        drawn[name] = tiny.draw(name, shape, meta["extras_std"][kind], salt=meta["extras_salt"])
    return drawn


def _setup(meta: Meta, **fields: Any) -> tuple[FaPrompt, Clip, dict[str, Tensor]]:
    clip = tiny.clip(meta["config"], "quick_gelu", "bilinear")
    given = {
        "shared": meta["n_normal"],
        "own": meta["n_abnormal"],
        "prompts": meta["n_prompts"],
        "patches": meta["n_patches"],
        "deep_prompts": meta["depth"] - 1,
        "deep_length": meta["t_n_ctx"],
        "value_from": meta["value_from"],
        "temperature": meta["temperature"],
        "sigma": float(meta.get("sigma", FaPrompt.sigma)),
    }
    backbone = Backbone(meta["config"], "random", "quick_gelu", "bilinear")
    method = FaPrompt(
        backbone, dataclasses.replace(FaPrompt().preprocess, size=meta["size"]), **(given | fields)
    )
    return method, clip, learned(method, clip, meta)


def _infer(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    names = ["any"] * meta["batch"]
    batch = drawn_batch(meta["image_seed"], names, meta["size"])
    observer = prepared(method, "faprompt", clip, tensors, {"any": "any"})
    golden.same("tokens", padded(sentences(method, clip)[:2], clip.text.context))

    image, patches = features(observer.plain, clip.vision.trace(batch))
    golden.near("image_feature_raw", image)
    golden.near("patch_feature_raw", patches)
    normal, anomalous = first_pass(method, clip, tensors)
    golden.near("text1_normal_raw", normal)
    golden.near("text1_abnormal_raw", anomalous)
    golden.near("text1", texts_of(normal, anomalous))
    texts = observer.texts.expand(len(names), -1, -1)
    p1 = probability(method, patches, texts)
    golden.near("patch_prob1", torch.stack([1 - p1, p1], dim=-1))
    golden.near("map_max1", p1.amax(dim=1))
    bias = prior(method, tensors, patches, texts)
    golden.near("bias", bias)
    second = second_pass(method, clip, tensors, bias)
    golden.near("text2_abnormal_raw", second)
    texts2 = torch.stack([texts[:, 0], F.normalize(second.mean(dim=1), dim=-1)], dim=1)
    golden.near("text2", texts2)
    p2, whole = (probability(method, found, texts2) for found in (patches, image))
    golden.near("image_prob", torch.stack([1 - whole, whole], dim=-1))
    golden.near("patch_prob2", torch.stack([1 - p2, p2], dim=-1))
    golden.near("map_max2", p2.amax(dim=1))

    evidence, size = observer.observe(batch), (meta["size"], meta["size"])
    extrema = torch.zeros(len(names), 2)
    golden.near("image_score", method.image_scores(evidence, extrema))
    golden.near_maps("final_map", lambda: method.maps(evidence, size))
    if "map_before_smoothing" in golden:
        golden.near("map_before_smoothing", upsample(evidence["map"], size))

    top = dataclasses.replace(method, selection="top")
    direction = (texts[:, 1] - texts[:, 0])[..., None]
    order = (F.normalize(patches, dim=-1) @ direction)[..., 0].topk(method.patches, dim=1).indices
    golden.same("top_indices", order)
    bias = prior(top, tensors, patches, texts)
    golden.near("top_bias", bias)
    mean = F.normalize(second_pass(top, clip, tensors, bias).mean(dim=1), dim=-1)
    golden.near("top_text2", torch.stack([texts[:, 0], mean], dim=1))
    evidence = prepared(top, "faprompt", clip, tensors, {"any": "any"}).observe(batch)
    golden.near("top_image_score", top.image_scores(evidence, extrema))
    golden.near_maps("top_final_map", lambda: top.maps(evidence, size)[:1])


def _train(golden: Golden) -> None:
    """Repeat the authors' steps on their two batches, and the first two with the most anomalous patches."""
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    weights = meta["weights"]
    assert {weights[name] for name in ("local1", "image", "image_focal", "prior")} == {1.0}
    recipe = dataclasses.replace(
        PriorRecipe(),
        lr=meta["lr"],
        betas=tuple(meta["betas"]),
        second_weight=weights["local2"],
        diversity_weight=weights["diversity"],
    )
    found, stage = _steps(golden, recipe, dataclasses.replace(method, selection="top"), tensors, 2)
    golden.near("top_total_loss", [one["loss"] for one in found], tolerance=1e-4)
    found, stage = _steps(golden, recipe, method, tensors, meta["steps"])
    for ours, theirs in LOSSES.items():
        golden.near(theirs, [one[ours] for one in found], tolerance=1e-4)
    after = {name: value.detach() for name, value in stage.parameters.items()}
    compound = torch.stack([after[f"compound_prompts_text.{i}"] for i in range(method.deep_prompts)])
    golden.near("ctx_pos_after", after["ctx_pos"][0, 0])
    golden.near("ctx_neg_after", after["ctx_neg"][0])
    # Adam may turn the sign of a gradient near zero into a whole step.
    golden.near("compound_after", compound, tolerance=2e-3, of="one")
    golden.near("linear2_weight_after", after["patch_meta_net.linear2.weight"], tolerance=2e-4)
    rows = len(golden["linear1_weight_after_rows"])
    golden.near("linear1_weight_after_rows", after["patch_meta_net.linear1.weight"][:rows], tolerance=2e-4)
    with torch.no_grad():
        golden.near("text1_after", texts_of(*first_pass(method, clip, after)), tolerance=2e-4)


def _steps(
    golden: Golden, recipe: PriorRecipe, method: FaPrompt, tensors: dict[str, Tensor], count: int
) -> tuple[list[dict[str, float]], Any]:
    """Take ``count`` steps from ``tensors``; those of the reference are compared on the way."""
    meta, clip = golden.meta, tiny.clip(golden.meta["config"], "quick_gelu", "bilinear")
    stage = recipe.stages(method, clip, {})[0]
    begin(stage, tensors)
    batches = fixed_batches(golden, stage)
    if method.selection == "first":
        _first(golden, method, clip, stage.parameters, batches[0][0])
    found, norms = [], []
    for step in range(count):
        found.append(stage.step(*batches[step % len(batches)]))
        gradients = {name: value.grad for name, value in stage.parameters.items() if value.grad is not None}
        norms.append([float(gradients[name].norm()) for name in meta["grad_norm_of"]])
        if step == 0 and method.selection == "first":
            deep = [gradients[f"compound_prompts_text.{i}"] for i in range(method.deep_prompts)]
            golden.near("grad0_ctx_pos", gradients["ctx_pos"][0, 0], tolerance=1e-4)
            golden.near("grad0_ctx_neg", gradients["ctx_neg"][0], tolerance=1e-4)
            golden.near("grad0_compound", torch.stack(deep), tolerance=1e-3)
            golden.near("grad0_linear2_weight", gradients["patch_meta_net.linear2.weight"], tolerance=1e-4)
            golden.near("grad0_linear1_bias", gradients["patch_meta_net.linear1.bias"], tolerance=1e-4)
    if method.selection == "first":
        golden.near("grad_norm", norms, tolerance=1e-4)
    return found, stage


def _first(golden: Golden, method: FaPrompt, clip: Clip, tensors: Any, inputs: Any) -> None:
    """Compare score and second texts before the first step."""
    image, patches = inputs["image"], inputs["patches"]
    with torch.no_grad():
        texts = texts_of(*first_pass(method, clip, tensors)).expand(len(image), -1, -1)
        second = second_pass(method, clip, tensors, prior(method, tensors, patches, texts)).mean(dim=1)
        texts2 = torch.stack([texts[:, 0], F.normalize(second, dim=-1)], dim=1)
        p1, p2 = (probability(method, patches, one) for one in (texts, texts2))
        score = image_score(method, probability(method, image, texts2), p1, p2)
    golden.near("step0_text2", texts2)
    golden.near("step0_score", score)


def _end2end(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    observer = prepared(method, "faprompt", clip, tensors, {"any": "any"})
    _, maps, scores, masks = run_pictures(golden, method, observer)
    golden.near("scores", scores)
    golden.near("final_maps", maps[: len(golden["final_maps"])])
    binary = np.unpackbits(golden["mask_binary"])[: masks.size].reshape(meta["mask_shape"])
    golden.same("mask_binary", masks, binary > 0)
    assert meta["metrics"] == list(METRICS)
    rows = []
    for category in meta["classes"]:
        chosen = np.asarray([name == category for name in meta["class_of_image"]])
        exact = dict(evaluate(maps[chosen], masks[chosen], golden["labels"][chosen], scores[chosen]))
        exact["pixel_aupro"] = legacy_aupro200(maps[chosen], masks[chosen])
        rows.append([exact[name] for name in METRICS])
    found = np.asarray(rows, float)
    for column, name in enumerate(METRICS):
        near = partial(golden.near, tolerance=2e-3 if name == "pixel_aupro" else TOLERANCE, of="one")
        near(f"metrics of {name}", found[:, column], golden["metrics"][:, column])
        near(f"metrics_mean of {name}", found[:, column].mean(), golden["metrics_mean"][column])
