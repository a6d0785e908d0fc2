"""Checks of the AnomalyCLIP arrays: every file states in ``meta`` what it was made from."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from methods._prompts import LearnedPrompts, checkpoint_shapes, encode_prompts, prompt_tokens
from methods._shared import anomaly_probability
from methods._training_anomalyclip import PromptRecipe
from methods.anomalyclip import AnomalyClip
from tests.checkers.common import (
    Golden,
    Meta,
    begin,
    drawn_batch,
    fixed_batches,
    mask_of,
    opened,
    padded,
    prepared,
    run_pictures,
)
from tests.kit import tiny
from zsadbench.clip.towers import Clip
from zsadbench.images.batches import to_batch_images
from zsadbench.images.loader import preprocess
from zsadbench.inputs import Backbone, Preprocess
from zsadbench.metrics import evaluate, legacy_aupro200
from zsadbench.training.losses import segmentation

TOLERANCE = 2e-5
STD = 0.5
LAYERS, DEPTH = (6, 12, 18, 24), 24
LOSSES = {"focal": "focal", "dice_anomalous": "dice_abnormal", "dice_normal": "dice_normal"}
TRAINED = {
    "local": "local_loss",
    "image": "image_loss",
    "focal": "focal_loss",
    "dice_anomalous": "dice_abn_loss",
    "dice_normal": "dice_norm_loss",
}
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro")


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, TOLERANCE) as golden:
        golden.hand_to(golden.word(1), _infer, _end2end, _metrics, _preprocess, _losses, _train)


def learned(method: LearnedPrompts, clip: Clip, meta: Meta) -> dict[str, Tensor]:
    """Return the learned parameters as the noise that ``meta`` describes."""
    spread, shapes = meta.get("extras_std", {}), checkpoint_shapes(method, clip)
    return {
        name: tiny.draw(name, shape, spread.get(name.split(".")[0], STD), salt=meta["extras_salt"])
        for name, shape in shapes.items()
    }


def _setup(meta: Meta, **fields: Any) -> tuple[AnomalyClip, Clip, dict[str, Tensor]]:
    clip = tiny.clip(meta["config"], "quick_gelu", "bilinear")
    preprocessing = dataclasses.replace(AnomalyClip().preprocess, size=meta["size"])
    method = AnomalyClip(
        Backbone(meta["config"], "random", "quick_gelu", "bilinear"),
        preprocessing,
        sigma=meta["sigma"],
        **fields,
    )
    return method, clip, learned(method, clip, meta)


def _infer(golden: Golden) -> None:
    meta = golden.meta
    words = [prompt.removeprefix("X " * meta["n_ctx"]).removesuffix(".") for prompt in meta["prompts"]]
    method, clip, tensors = _setup(
        meta,
        normal_words=words[0],
        anomalous_words=words[1],
        context=meta["n_ctx"],
        deep_prompts=meta["depth"] - 1,
        deep_length=meta["t_n_ctx"],
        features=LAYERS,
        value_from=DEPTH + 2 - meta["dpam_layer"],
        temperature=meta["temperature"],
    )
    observer = prepared(method, "anomalyclip", clip, tensors, {"any": "any"})
    batch = drawn_batch(meta["image_seed"], ["any"] * meta["batch"], meta["size"])
    anchors, scale = observer.anchors.of(batch.categories), 1 / meta["temperature"]

    golden.same("tokens", padded(prompt_tokens(method, clip), clip.text.context))
    golden.near("text_feature_raw", encode_prompts(method, clip, tensors))
    golden.near("text_feature", anchors[0])

    trace = clip.vision.trace(batch)
    feature = observer.class_feature(trace)
    golden.near("image_feature_raw", feature)
    probability = anomaly_probability(feature, anchors, scale)
    golden.near("image_prob", torch.stack([1 - probability, probability], dim=1))
    local = observer.local_tokens(trace)
    found = torch.stack([local[layer] for layer in LAYERS], dim=1)
    golden.near("patch_feature_raw_ms", found)
    patches = torch.stack([anomaly_probability(local[n], anchors, scale)[:, 1:] for n in LAYERS], dim=1)
    golden.near("patch_prob_ms", torch.stack([1 - patches, patches], dim=-1))

    size = (meta["size"], meta["size"])
    for layers, key in (((24,), "final_map_l24"), (LAYERS, "final_map_ms")):
        evidence = dataclasses.replace(observer, layers=layers).observe(batch)
        score = method.image_scores(evidence, torch.zeros(len(batch.keys), 2))
        golden.near("image_score", score)
        golden.near_maps(key, partial(method.maps, evidence, size))
    for number, layer in enumerate(LAYERS):
        evidence = dataclasses.replace(observer, layers=(layer,)).observe(batch)
        unsmoothed = dataclasses.replace(method, sigma=0.0)
        golden.near_maps(
            "layer_map_ms", partial(unsmoothed.maps, evidence, size), golden["layer_map_ms"][:, number]
        )


def _losses(golden: Golden) -> None:
    meta = golden.meta
    masks = golden.tensor("mask").float()
    parts = segmentation(golden.tensor("prob"), masks)
    for name, key in LOSSES.items():
        golden.near(key, parts[name])
    image = F.cross_entropy(golden.tensor("global_logits"), golden.tensor("label"))
    golden.near("cross_entropy", image)
    local = meta["lam"] * sum(map(float, parts.values()))
    golden.near("local", local)
    golden.near("total", local + float(image))


def _train(golden: Golden) -> None:
    """Repeat the authors' steps on their two batches."""
    meta = golden.meta
    method, clip, tensors = _setup(
        {"sigma": 4.0, **meta}, features=tuple(meta["features_list"]), temperature=meta["temperature"]
    )
    recipe = dataclasses.replace(
        PromptRecipe(), lr=meta["lr"], betas=tuple(meta["betas"]), local_weight=float(meta["lam"])
    )
    stage = recipe.stages(method, clip, {})[0]
    begin(stage, tensors)
    batches = fixed_batches(golden, stage)
    found, norms = [], []
    for step in range(meta["steps"]):
        found.append(stage.step(*batches[step % len(batches)]))
        gradients = [value.grad for value in stage.parameters.values() if value.grad is not None]
        norms.append([float(gradient.norm()) for gradient in gradients])
        if step == 0:
            golden.near("grad0_ctx_pos", gradients[0][0, 0])
            golden.near("grad0_ctx_neg", gradients[1][0, 0])
            golden.near("grad0_compound", torch.stack(gradients[2:]), tolerance=1e-3)
    for name, key in TRAINED.items():
        golden.near(key, [one[name] for one in found])
    golden.near("grad_norm", norms)
    after = [value.detach() for value in stage.parameters.values()]
    golden.near("ctx_pos_after", after[0][0, 0])
    golden.near("ctx_neg_after", after[1][0, 0])
    # Adam may turn the sign of a gradient near zero into a whole step.
    golden.near("compound_after", torch.stack(after[2:]), tolerance=2 * meta["lr"], of="one")
    with torch.no_grad():
        texts = F.normalize(encode_prompts(method, clip, stage.parameters), dim=-1)
    golden.near("text_feature_after", texts)


def _end2end(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = _setup(meta, features=tuple(meta["features_list"]))
    observer = prepared(method, "anomalyclip", clip, tensors, {"any": "any"})
    _, maps, scores, masks = run_pictures(golden, method, observer)
    golden.near("scores", scores)
    golden.near("final_maps", maps[: len(golden["final_maps"])])

    rows = []
    for category in meta["classes"]:
        chosen = np.asarray([name == category for name in meta["class_of_image"]])
        rows.append(_row(maps[chosen], masks[chosen], golden["labels"][chosen], scores[chosen]))
    assert meta["metrics"] == list(METRICS)
    golden.near("metrics", rows, tolerance=2e-3, of="one")
    golden.near("metrics_mean", np.mean(rows, axis=0), tolerance=2e-3, of="one")


def _metrics(golden: Golden) -> None:
    found = _row(golden["maps"], golden["masks"] > 0, golden["labels"], golden["scores"])
    for key, value in zip(METRICS, found, strict=True):
        golden.near(key, value)


def _row(maps: NDArray[Any], masks: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any]) -> list[float]:
    """Return image AUROC, image AP, pixel AUROC and the AUPRO of 200 steps, in the order of ``METRICS``."""
    exact = evaluate(maps, masks, labels, scores)
    found = [*(exact[key] for key in METRICS[:3]), legacy_aupro200(maps, masks)]
    return [value for value in found if value is not None]


def _preprocess(golden: Golden) -> None:
    meta = golden.meta
    spec = Preprocess(meta["size"], rgb="after", mean=tuple(meta["mean"]), std=tuple(meta["std"]))
    for pixels, key in ((golden["image"], "tensor"), (golden["image"][..., 0], "tensor_gray")):
        image = preprocess(Image.fromarray(pixels), spec)
        golden.near(key, to_batch_images([image], spec)[0, 0])
    mask = mask_of(golden["mask"], (meta["size"], meta["size"]), "bilinear50")
    golden.same("mask_binary", mask, golden["mask_binary"][0] > 0)
    golden.same("mask_tensor", mask, golden["mask_tensor"][0] > 0.5)
