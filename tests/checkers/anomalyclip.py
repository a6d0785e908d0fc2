"""Checks of the AnomalyCLIP arrays: every file states in ``meta`` what it was made from."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from methods._shared import anomaly_probability
from methods.anomalyclip import (
    AnomalyClip,
    AnomalyClipObserver,
    checkpoint_shapes,
    encode_prompts,
    prompt_tokens,
)
from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, save_checkpoint
from zsadbench.clip.towers import Clip
from zsadbench.images.loader import preprocess, to_batch_images
from zsadbench.images.masks import mask_at
from zsadbench.inputs import Backbone, Preprocess
from zsadbench.maps import exact_maps
from zsadbench.method.protocol import Evidence
from zsadbench.metrics import evaluate, legacy_aupro200
from zsadbench.samples import Sample
from zsadbench.training.losses import segmentation
from zsadbench.training.stages import Truth

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
Arrays = Mapping[str, NDArray[Any]]


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    rules = {
        "infer": _infer,
        "end2end": _end2end,
        "metrics": _metrics,
        "preprocess": _preprocess,
        "losses": _losses,
        "train": _train,
    }
    rules[path.stem.split("_")[1]](arrays, meta)


def close(name: str, found: ArrayLike, wanted: ArrayLike, tolerance: float = TOLERANCE) -> None:
    """Assert that the largest difference is at most ``tolerance`` of the largest wanted magnitude."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, f"{name}: shape {found.shape}, wanted {wanted.shape}"
    error = np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12)
    assert error <= tolerance, f"{name}: relative difference {error:.2e} above {tolerance:.0e}"


def learned(method: AnomalyClip, clip: Clip, meta: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the learned parameters as the noise that ``meta`` describes."""
    spread, shapes = meta.get("extras_std", {}), checkpoint_shapes(method, clip)
    return {
        name: tiny.draw(name, shape, spread.get(name.split(".")[0], STD), salt=meta["extras_salt"])
        for name, shape in shapes.items()
    }


def prepared(
    method: AnomalyClip, clip: Clip, tensors: Mapping[str, Tensor], category: str
) -> AnomalyClipObserver:
    """Return an observer with ``tensors`` as its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.safetensors"
        save_checkpoint(path, tensors, Provenance("anomalyclip"))
        return dataclasses.replace(method, checkpoint=str(path)).prepare(clip, {category: category})


def _setup(meta: Mapping[str, Any], **fields: Any) -> tuple[AnomalyClip, Clip, dict[str, Tensor]]:
    clip = tiny.clip(meta["config"], "quick_gelu", "bilinear")
    preprocessing = dataclasses.replace(AnomalyClip().preprocess, size=meta["size"])
    method = AnomalyClip(
        Backbone(meta["config"], "random", "quick_gelu", "bilinear"),
        preprocessing,
        sigma=meta["sigma"],
        **fields,
    )
    return method, clip, learned(method, clip, meta)


def _infer(arrays: Arrays, meta: Mapping[str, Any]) -> None:
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
    observer = prepared(method, clip, tensors, "any")
    batch = tiny.batch(tiny.images(meta["image_seed"], meta["batch"], meta["size"]), ["any"] * meta["batch"])
    anchors, scale = observer.anchors.of(batch.categories), 1 / meta["temperature"]

    tokens = prompt_tokens(method, clip)
    assert np.array_equal(F.pad(tokens, (0, clip.text.context - tokens.shape[1])).numpy(), arrays["tokens"])
    close("text_feature_raw", encode_prompts(method, clip, tensors), arrays["text_feature_raw"])
    close("text_feature", anchors[0], arrays["text_feature"])

    trace = clip.vision.trace(batch)
    feature = observer.class_feature(trace)
    close("image_feature_raw", feature, arrays["image_feature_raw"])
    probability = anomaly_probability(feature, anchors, scale)
    close("image_prob", torch.stack([1 - probability, probability], dim=1), arrays["image_prob"])
    local = observer.local_tokens(trace)
    found = torch.stack([local[layer] for layer in LAYERS], dim=1)
    close("patch_feature_raw_ms", found, arrays["patch_feature_raw_ms"])
    patches = torch.stack([anomaly_probability(local[n], anchors, scale)[:, 1:] for n in LAYERS], dim=1)
    close("patch_prob_ms", torch.stack([1 - patches, patches], dim=-1), arrays["patch_prob_ms"])

    size = (meta["size"], meta["size"])
    for layers, key in (((24,), "final_map_l24"), (LAYERS, "final_map_ms")):
        evidence = dataclasses.replace(observer, layers=layers).observe(batch)
        score = method.image_scores(evidence, torch.zeros(len(batch.keys), 2))
        close("image_score", score, arrays["image_score"])
        _close_maps(key, method, evidence, arrays[key], size)
    for number, layer in enumerate(LAYERS):
        evidence = dataclasses.replace(observer, layers=(layer,)).observe(batch)
        unsmoothed = dataclasses.replace(method, sigma=0.0)
        _close_maps("layer_map_ms", unsmoothed, evidence, arrays["layer_map_ms"][:, number], size)


def _close_maps(
    name: str, method: AnomalyClip, evidence: Evidence, wanted: ArrayLike, size: tuple[int, int]
) -> None:
    for exact in (False, True):
        with exact_maps(exact):
            close(f"{name} (exact: {exact})", method.maps(evidence, size), wanted)


def _losses(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    masks = torch.from_numpy(arrays["mask"]).float()
    parts = segmentation(torch.from_numpy(arrays["prob"]), masks)
    for name, key in LOSSES.items():
        close(key, parts[name], arrays[key])
    image = F.cross_entropy(torch.from_numpy(arrays["global_logits"]), torch.from_numpy(arrays["label"]))
    close("cross_entropy", image, arrays["cross_entropy"])
    local = meta["lam"] * sum(map(float, parts.values()))
    close("local", local, arrays["local"])
    close("total", local + float(image), arrays["total"])


def _train(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    """Repeat the authors' steps on their two batches."""
    method, clip, tensors = _setup(
        {"sigma": 4.0, **meta}, features=tuple(meta["features_list"]), temperature=meta["temperature"]
    )
    recipe = dataclasses.replace(
        method.recipe("visa"), lr=meta["lr"], betas=tuple(meta["betas"]), local_weight=float(meta["lam"])
    )
    stage = recipe.stages(method, clip, {})[0]
    for name, value in stage.parameters.items():
        value.data.copy_(tensors[name])
    batches = []
    for seed, masks, labels in zip(meta["image_seeds"], arrays["masks"], arrays["labels"], strict=True):
        names = ["any"] * meta["batch"]
        with torch.no_grad():
            features = stage.features(tiny.batch(tiny.images(seed, meta["batch"], meta["size"]), names))
        batches.append((features, Truth(torch.from_numpy(masks).float(), torch.from_numpy(labels), names)))
    found: dict[str, list[float]] = {name: [] for name in ("local", "image", *LOSSES)}
    norms = []
    for step in range(meta["steps"]):
        losses = stage.step(*batches[step % len(batches)])
        for name, values in found.items():
            values.append(losses[name])
        gradients = [value.grad for value in stage.parameters.values() if value.grad is not None]
        norms.append([float(gradient.norm()) for gradient in gradients])
        if step == 0:
            close("grad0_ctx_pos", gradients[0][0, 0], arrays["grad0_ctx_pos"])
            close("grad0_ctx_neg", gradients[1][0, 0], arrays["grad0_ctx_neg"])
            close("grad0_compound", torch.stack(gradients[2:]), arrays["grad0_compound"], 1e-3)
    for name, values in found.items():
        key = TRAINED[name]
        close(key, values, arrays[key])
    close("grad_norm", norms, arrays["grad_norm"])
    after = [value.detach() for value in stage.parameters.values()]
    close("ctx_pos_after", after[0][0, 0], arrays["ctx_pos_after"])
    close("ctx_neg_after", after[1][0, 0], arrays["ctx_neg_after"])
    # Adam may turn the sign of a gradient near zero into a whole step.
    assert np.abs(torch.stack(after[2:]).numpy() - arrays["compound_after"]).max() <= 2 * meta["lr"]
    with torch.no_grad():
        texts = F.normalize(encode_prompts(method, clip, stage.parameters), dim=-1)
    close("text_feature_after", texts, arrays["text_feature_after"])


def _end2end(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    method, clip, tensors = _setup(meta, features=tuple(meta["features_list"]))
    observer = prepared(method, clip, tensors, "any")
    files = [preprocess(Image.fromarray(image), method.preprocess) for image in arrays["images"]]
    batch = tiny.batch(to_batch_images(files, method.preprocess), ["any"] * len(files))
    evidence = observer.observe(batch)
    size = (meta["size"], meta["size"])
    with exact_maps():
        maps = method.maps(evidence, size).numpy()
    scores = method.image_scores(evidence, torch.zeros(len(files), 2)).numpy()
    close("scores", scores, arrays["scores"])
    close("final_maps", maps[: len(arrays["final_maps"])], arrays["final_maps"])

    masks = np.stack([_mask(mask, size) for mask in arrays["masks"]])
    rows = []
    for category in meta["classes"]:
        chosen = np.asarray([name == category for name in meta["class_of_image"]])
        rows.append(_row(maps[chosen], masks[chosen], arrays["labels"][chosen], scores[chosen]))
    assert meta["metrics"] == list(METRICS)
    assert np.abs(np.asarray(rows) - arrays["metrics"]).max() <= 2e-3
    assert np.abs(np.mean(rows, axis=0) - arrays["metrics_mean"]).max() <= 2e-3


def _metrics(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    found = _row(arrays["maps"], arrays["masks"] > 0, arrays["labels"], arrays["scores"])
    for key, value in zip(METRICS, found, strict=True):
        close(key, value, arrays[key])


def _row(maps: NDArray[Any], masks: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any]) -> list[float]:
    """Return image AUROC, image AP, pixel AUROC and the AUPRO of 200 steps, in the order of ``METRICS``."""
    exact = evaluate(maps, masks, labels, scores)
    found = [*(exact[key] for key in METRICS[:3]), legacy_aupro200(maps, masks)]
    return [value for value in found if value is not None]


def _preprocess(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    spec = Preprocess(meta["size"], rgb="after", mean=tuple(meta["mean"]), std=tuple(meta["std"]))
    for pixels, key in ((arrays["image"], "tensor"), (arrays["image"][..., 0], "tensor_gray")):
        prepared = preprocess(Image.fromarray(pixels), spec)
        close(key, to_batch_images([prepared], spec)[0, 0], arrays[key])
    mask = _mask(arrays["mask"], (meta["size"], meta["size"]))
    assert np.array_equal(mask, arrays["mask_binary"][0] > 0)
    assert np.array_equal(mask, arrays["mask_tensor"][0] > 0.5)


def _mask(pixels: NDArray[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        Image.fromarray(pixels).save(path)
        return mask_at(Sample("image", "any", True, path, path), size, "bilinear50")
