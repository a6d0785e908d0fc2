"""Checks of the AdaCLIP arrays: every file states in ``meta`` what it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from methods._training_adaclip import HybridRecipe, layer_losses
from methods.adaclip import (
    AdaClip,
    AdaClipObserver,
    anomalous_feature,
    checkpoint_shapes,
    clustered,
    difference,
    dynamic_prompts,
    fused_feature,
    image_embedding,
    look_again,
    projected,
    sentence_features,
    state_anchors,
)
from tests.checkers.common import (
    Golden,
    Meta,
    begin,
    drawn_batch,
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
from zsadbench.maps import render
from zsadbench.metrics import evaluate
from zsadbench.training.losses import dice, focal, two_way
from zsadbench.training.stages import Features, Truth
from zsadbench.training.variations import composed

EXACT, ROUNDED = 2e-5, 5e-4
"""Tolerances without and with prompts in float16, where noise turns one of 4500 numbers the other way."""


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, EXACT) as golden:
        if golden.meta.get("half_prompts", False):
            golden = dataclasses.replace(golden, tolerance=ROUNDED)
        golden.hand_to(golden.word(1), _infer, _variants, _losses, _train, _preprocess, _end2end)


def learned(method: AdaClip, clip: Clip, meta: Meta) -> dict[str, Tensor]:
    """Return the learned parameters as the noise that ``meta`` describes."""
    stds = meta["extras_std"]

    def std(name: str) -> float:
        parts = name.split(".")
        return float(stds[".".join((parts[0], parts[1] if "static" in name else parts[-1]))])

    shapes = checkpoint_shapes(method, clip)
    return {n: tiny.draw(n, shape, std(n), salt=meta["extras_salt"]) for n, shape in shapes.items()}


def method_of(meta: Meta, **fields: Any) -> AdaClip:
    """Return the method that ``meta`` describes."""
    own = {
        "features": tuple(meta["features_list"]),
        "prompt_depth": meta["prompting_depth"],
        "prompt_length": meta["prompting_length"],
        "prompt_branch": meta["prompting_branch"] or "none",
        "prompt_type": meta["prompting_type"] or "S",
        "half_prompts": meta["half_prompts"],
        "fusion": "clusters" if meta["use_hsf"] else "none",
        "clusters": meta["k_clusters"],
        "cluster_seed": meta["kmeans_seed"],
        "fusion_weight": meta["alpha"],
        "scale": meta["logit_scale"],
        "sigma": float(meta["sigma"]),
    }
    backbone = Backbone(meta["config"], "random", meta["activation"], "bicubic")
    return AdaClip(backbone, Preprocess(meta["size"]), **own | fields)


def _clip(meta: Meta) -> Clip:
    return tiny.clip(meta["config"], meta["activation"], "bicubic")


def _observer(method: AdaClip, meta: Meta) -> AdaClipObserver:
    clip = _clip(meta)
    words = {name: name for name in meta["classes"]}
    found: AdaClipObserver = prepared(method, "adaclip", clip, learned(method, clip, meta), words)
    return found


def _infer(golden: Golden) -> None:
    meta = golden.meta
    method, clip = method_of(meta), _clip(meta)
    observer = _observer(method, meta)
    batch = drawn_batch(meta["image_seed"], meta["classes"], meta["size"])
    near = partial(_near_each, golden)
    trace = clip.vision.trace(batch)
    image = image_embedding(clip, trace)
    near("frozen_feature", image)
    for name, tower in (("dynamic_visual", "visual"), ("dynamic_text", "text")):
        near(name, dynamic_prompts(method, observer.learned, tower, image))  # type: ignore[arg-type]

    texts = observer.texts[meta["classes"][0]]
    golden.same("tokens", padded(texts.tokens, clip.text.context))
    features = sentence_features(method, clip, observer.learned, texts, image[:1])
    golden.near("sentence_feature", features[0])
    anchors = observer.anchors(batch.categories, image)
    near("text_feature", anchors)
    golden.near("text_feature", state_anchors(features, texts.normal)[0], golden["text_feature"][0])

    feature, streams = look_again(method, clip, observer.learned, trace.stream(0), image)
    near("class_feature", feature)
    shown = golden["patch_index"]
    near("patch_stream", torch.stack(streams, dim=1)[:, :, shown])
    token, patches = projected(observer.learned, feature, streams)
    near("class_projected", token)
    near("patch_projected", patches[:, :, shown])
    near("patch_logit", method.scale * torch.einsum("blnc,bsc->blns", patches, anchors))
    logit = difference(method, patches, anchors)
    _check_fusion(golden, method, token, patches, logit.mean(dim=1), anchors)

    evidence = observer.observe(batch)
    golden.near("image_score", method.image_scores(evidence, torch.zeros(len(image), 2)))
    size = (meta["size"], meta["size"])
    golden.near_maps("final_map", partial(method.maps, evidence, size))
    golden.near_maps("raw_map", partial(dataclasses.replace(method, sigma=0.0).maps, evidence, size))
    side = round(logit.shape[-1] ** 0.5)
    layers = render(torch.unflatten(logit[0], -1, (side, side)), size, align_corners=True)
    golden.near("training_map_strided", layers.sigmoid()[:, ::4, ::4])
    golden.leave("score_in_sequence")  # one random stream through the run: what is not offered


def _check_fusion(
    golden: Golden, method: AdaClip, token: Tensor, patches: Tensor, logit: Tensor, anchors: Tensor
) -> None:
    """Compare ranking and clusters one by one, and the score for other seeds and without fusion."""
    count = golden["top_index"].shape[1]
    assert count == min(logit.shape[1], 5 * method.clusters)
    order = logit.topk(count, dim=1).indices
    golden.same("top_index", order)
    rows = [patches[n][:, order[n]].transpose(0, 1).flatten(1) for n in range(len(order))]
    golden.same("labels", torch.stack([clustered(method, one) for one in rows]))
    regions = [anomalous_feature(method, patches[n], logit[n]) for n in range(len(logit))]
    _near_each(golden, "hsf_feature", torch.stack(regions))
    fused = fused_feature(method, token, patches, logit)
    _near_each(golden, "fused_feature", fused)
    golden.near("image_prob", two_way(difference(method, fused, anchors)))
    golden.near("score_no_hsf", difference(method, token, anchors).sigmoid())
    first = (token[:1], patches[:1], logit[:1])
    seeds = range(golden.meta["score_seeds"])
    variants = [dataclasses.replace(method, cluster_seed=seed) for seed in seeds]
    scores = [difference(method, fused_feature(one, *first), anchors[:1]).sigmoid() for one in variants]
    golden.near("score_of_seed", torch.cat(scores))


def _near_each(golden: Golden, stage: str, found: Tensor) -> None:
    """Compare image by image, of each image's largest value."""
    assert len(found) == len(golden[stage])
    for number, wanted in enumerate(golden[stage]):
        golden.near(stage, found[number], wanted)


VARIED = {
    "kind": "prompt_type",
    "branch": "prompt_branch",
    "depth": "prompt_depth",
    "length": "prompt_length",
    "k_clusters": "clusters",
    "alpha": "fusion_weight",
}


def _variants(golden: Golden) -> None:
    meta = golden.meta
    for name, settings in meta["variants"].items():
        fields = {VARIED[key]: value for key, value in settings.items() if key in VARIED}
        if not settings.get("use_hsf", True):
            fields["fusion"] = "none"
        if not all(settings.get(key, True) for key in ("kind", "branch")):
            fields |= {"prompt_type": "S", "prompt_branch": "none"}
        _check_variant(golden, name, method_of(meta, **fields))
    _check_variant(golden, "full_precision", method_of(meta, half_prompts=False))
    _check_variant(golden, "reference", method_of(meta))
    _check_variant(golden, "paper_hsf", method_of(meta, fusion="paper"))


def _check_variant(golden: Golden, name: str, method: AdaClip) -> None:
    meta = golden.meta
    exact = not method.half_prompts or "D" not in method.prompt_type or method.prompt_branch == "none"
    tolerance = EXACT if exact else golden.tolerance
    batch = drawn_batch(meta["image_seed"], meta["classes"], meta["size"])
    evidence = _observer(method, meta).observe(batch)
    golden.near(f"score_{name}", evidence["score"], tolerance=tolerance)
    if f"raw_map_{name}" in golden:
        unsmoothed = dataclasses.replace(method, sigma=0.0)
        maps = partial(unsmoothed.maps, evidence, (meta["size"], meta["size"]))
        golden.near_maps(f"raw_map_{name}", lambda: maps()[0], tolerance=tolerance)


LAYER_LOSSES = {"focal": "focal", "dice_anomalous": "dice_abnormal", "dice_normal": "dice_normal"}


def _losses(golden: Golden) -> None:
    tolerance = 1e-6
    logits = golden.tensor("logits").requires_grad_()
    image_logits = golden.tensor("image_logits").requires_grad_()
    masks, labels = golden.tensor("mask").float(), golden.tensor("label").float()
    totals = []
    for number in range(len(logits)):
        maps, mask = logits[number].softmax(dim=1), masks[number][None]
        parts = {
            name: torch.stack(values)
            for name, values in _transposed([layer_losses(p[None], mask, "rows") for p in maps]).items()
        }
        image = focal(image_logits[number][None].softmax(dim=1), labels[number][None])
        for name, key in LAYER_LOSSES.items():
            golden.near(key, parts[name].detach(), golden[key][number], tolerance=tolerance)
        whole = torch.stack([dice(p[None, 1], mask) for p in maps]).detach()
        golden.near(
            "dice_abnormal_whole_image",
            whole,
            golden["dice_abnormal_whole_image"][number],
            tolerance=tolerance,
        )
        segmented = torch.stack([*parts.values()]).sum()
        golden.near("seg", segmented.detach(), golden["seg"][number], tolerance=tolerance)
        golden.near("focal_image", image.detach(), golden["focal_image"][number], tolerance=tolerance)
        totals.append(segmented + image)
    golden.near("total", torch.stack(totals).detach(), tolerance=tolerance)
    gradients = torch.autograd.grad(torch.stack(totals).sum(), (logits, image_logits))
    golden.near("gradient", gradients[0], tolerance=tolerance)
    golden.near("image_gradient", gradients[1], tolerance=tolerance)


def _transposed(rows: list[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _train(golden: Golden) -> None:
    """Repeat the authors' steps, of one image each, from the same start."""
    meta = golden.meta
    rounded = meta["half_prompts"]
    early, late = (5e-3, 1e-2) if rounded else (2e-4, 1e-3)
    method, clip = method_of(meta), _clip(meta)
    recipe = dataclasses.replace(
        HybridRecipe(), lr=meta["lr"], betas=tuple(meta["betas"]), weight_decay=meta["weight_decay"]
    )
    names = meta["parameters"]
    stage = recipe.stages(method, clip, {name: name for name in meta["classes"]})[0]
    start = learned(method, clip, meta)
    assert sorted(stage.parameters) == sorted(names)
    begin(stage, start)
    images = _images(stage.features, golden)
    for step in range(meta["steps"]):
        features, truth = images[step % meta["images"]]
        _check_step(golden, method, clip, stage.parameters, features, truth, step, late)
        golden.near("loss", stage.step(features, truth)["loss"], golden["loss"][step], tolerance=late)
        gradients = {name: stage.parameters[name].grad for name in names}
        assert [name for name in names if gradients[name] is None] == meta["without_gradient"]
        norms = [0.0 if (value := gradients[name]) is None else float(value.norm()) for name in names]
        golden.near("grad_norm", norms, golden["grad_norm"][step], tolerance=5e-3 if rounded else 1e-3)
        if step == 0:
            for key in [key for key in golden.arrays if key.startswith("grad0/")]:
                value = gradients[key.removeprefix("grad0/")]
                assert value is not None
                golden.near(key, value, tolerance=early)
    after = {name: value.detach() for name, value in stage.parameters.items()}
    for key in [key for key in golden.arrays if key.startswith("after/")]:
        found = after[key.removeprefix("after/")]
        golden.near(key, found, tolerance=early)
        golden.near(key, found, tolerance=0.1 * meta["lr"], of="one")
    golden.near("change_norm", [float((after[name] - start[name]).norm()) for name in names], tolerance=late)
    _check_after(golden, method, clip, after, *images[0], late)


def _images(encode: Any, golden: Golden) -> list[tuple[Features, Truth]]:
    """Return every image of the file as a batch of its own."""
    meta = golden.meta
    inputs = tiny.images(meta["image_seed"], meta["images"], meta["size"])
    found = []
    for number, name in enumerate(meta["classes"]):
        own = slice(number, number + 1)
        with torch.no_grad():
            features = encode(tiny.batch(inputs[own], [name]))
        masks = torch.from_numpy(golden["masks"][own]).float()
        found.append((features, Truth(masks, torch.from_numpy(golden["anomaly"][own]), [name])))
    return found


def _seen(
    method: AdaClip, clip: Clip, parameters: Mapping[str, Tensor], features: Features, truth: Truth
) -> dict[str, Tensor]:
    """Return what an image looks like to the method with ``parameters``."""
    observer = _trained(method, clip, parameters, truth)
    with torch.no_grad():
        feature, streams = look_again(method, clip, parameters, features["tokens"], features["image"])
        token, patches = projected(parameters, feature, streams)
        anchors = observer.anchors(truth.categories, features["image"])
        logit = difference(method, patches, anchors)
        fused = fused_feature(method, token, patches, logit.mean(dim=1))
        order = logit.mean(dim=1)[0].topk(min(logit.shape[-1], 5 * method.clusters)).indices
        labels = clustered(method, patches[0][:, order].transpose(0, 1).flatten(1))
    side = round(logit.shape[-1] ** 0.5)
    return {
        "token": token[0],
        "anchors": anchors[0],
        "grid": torch.unflatten(logit[0], -1, (side, side)),
        "probabilities": two_way(difference(method, fused, anchors)),
        "labels": labels,
    }


def _trained(method: AdaClip, clip: Clip, parameters: Mapping[str, Tensor], truth: Truth) -> AdaClipObserver:
    from methods.adaclip import sentences

    texts = {name: sentences(method, clip, name) for name in truth.categories}
    return AdaClipObserver(method, clip, parameters, texts)


def _check_step(
    golden: Golden,
    method: AdaClip,
    clip: Clip,
    parameters: Mapping[str, Tensor],
    features: Features,
    truth: Truth,
    step: int,
    tolerance: float,
) -> None:
    size = (golden.meta["size"], golden.meta["size"])
    seen = _seen(method, clip, parameters, features, truth)
    maps = two_way(render(seen["grid"], size, align_corners=True))
    parts = _transposed([layer_losses(p[None], truth.masks, "rows") for p in maps])
    for name, key in LAYER_LOSSES.items():
        golden.near(key, torch.stack(parts[name]), golden[key][step], tolerance=tolerance)
    image = focal(seen["probabilities"], truth.labels.float())
    golden.near("focal_image", image, golden["focal_image"][step], tolerance=tolerance)
    golden.near("image_prob", seen["probabilities"][0], golden["image_prob"][step], tolerance=tolerance)
    if step == 0:  # later, patches of nearly equal rank may change places
        golden.same("labels", seen["labels"], golden["labels"][0])


def _check_after(
    golden: Golden,
    method: AdaClip,
    clip: Clip,
    parameters: Mapping[str, Tensor],
    features: Features,
    truth: Truth,
    tolerance: float,
) -> None:
    seen = _seen(method, clip, parameters, features, truth)
    golden.near("text_feature_after", seen["anchors"], tolerance=tolerance)
    golden.near("class_projected_after", seen["token"], tolerance=tolerance)
    golden.near("image_score_after", seen["probabilities"][0, 1], tolerance=tolerance)
    evidence = {"logit": seen["grid"].mean(dim=0)[None]}
    unsmoothed, size = dataclasses.replace(method, sigma=0.0), (golden.meta["size"], golden.meta["size"])
    golden.near_maps("raw_map_after", lambda: unsmoothed.maps(evidence, size)[0], tolerance=tolerance)
    golden.leave("labels_after")  # patches of nearly equal rank may change places


def _preprocess(golden: Golden) -> None:
    meta = golden.meta
    spec = Preprocess(meta["size"], mean=tuple(meta["mean"]), std=tuple(meta["std"]))
    palette = Image.fromarray(golden["palette_index"], mode="P")
    palette.putpalette(golden["palette"].flatten().tolist())
    files = {
        "tensor": Image.fromarray(golden["image"]),
        "tensor_gray": Image.fromarray(golden["image"][..., 0]),
        "tensor_palette": palette,
    }
    for key, file in files.items():
        golden.near(key, to_batch_images([preprocess(file, spec)], spec)[0, 0], tolerance=1e-6)
    mask = mask_of(golden["mask"], (meta["size"], meta["size"]), "bilinear50")
    golden.same("mask_binary", mask, golden["mask_binary"][0] > 0)
    golden.same("mask_tensor", mask, golden["mask_tensor"][0] > 0.5)

    anomalous = meta["mosaic_anomaly"]
    tiles = [
        (Image.fromarray(golden[f"mosaic_image_{n}"]), (golden[f"mosaic_mask_{n}"] > 0) & bool(kind))
        for n, kind in enumerate(anomalous)
    ]
    image, mosaic_mask = composed(tiles)
    golden.same("mosaic", np.asarray(image))
    golden.same("mosaic_mask", mosaic_mask, golden["mosaic_mask"] > 0)


METRICS = ("image_auroc", "image_f1max", "image_ap", "pixel_auroc", "pixel_f1max", "pixel_ap")


def _end2end(golden: Golden) -> None:
    meta = golden.meta
    method = method_of(meta)
    observer = _observer(method, meta)
    _, maps, scores, masks = run_pictures(golden, method, observer, meta["class_of_image"])
    golden.near("scores", scores)
    golden.near("final_maps", maps[: len(golden["final_maps"])])

    rows = []
    for category in meta["classes"]:
        own = np.asarray([name == category for name in meta["class_of_image"]])
        rows.append(_row(maps[own], masks[own], golden["labels"][own], scores[own]))
    assert meta["metrics"] == list(METRICS)
    golden.near("metrics", rows, tolerance=2e-3, of="one")
    golden.near("metrics_mean", np.mean(rows, axis=0), tolerance=2e-3, of="one")
    golden.leave("scores_in_sequence")  # one random stream through the run: what is not offered
    golden.leave("metrics_in_sequence")


def _row(maps: NDArray[Any], masks: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any]) -> list[float]:
    """Return the metrics in the order of ``METRICS``; what one class leaves undefined is 0, as theirs."""
    found = evaluate(maps, masks, labels, scores)
    return [found[key] or 0.0 for key in METRICS]
