"""CLIP-AD (SDP, SDP+) and APRIL-GAN against their authors' code, stage by stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods._training_clip_ad import LinearRecipe, layer_losses
from methods.april_gan import AprilGan
from methods.clip_ad import ClipAd, ClipAdPlus, checkpoint_shapes, layer_maps, linear_features, surgery
from tests.checkers.common import Golden, Meta, activation_of, begin, drawn_batch, opened, padded, prepared
from tests.kit import tiny
from zsadbench.clip.prompts import encode, ensemble
from zsadbench.clip.towers import Clip
from zsadbench.inputs import Backbone, Batch, Preprocess
from zsadbench.maps import exact_maps, render
from zsadbench.method.protocol import Evidence
from zsadbench.training.losses import dice, focal
from zsadbench.training.stages import Truth

TOLERANCE = 1e-4


def check(path: Path) -> None:
    """Compare one golden file."""
    learning = {"focal+dice": _check_losses, "SDP+ training": _check_training}
    frozen = {
        "SDP": _check_sdp,
        "SDP+": _check_sdp,
        "RVS": _check_text,
        "APRIL-GAN zero-shot": _check_april_gan,
    }
    with opened(path, TOLERANCE) as golden:
        method = golden.meta["method"]
        if method in learning:
            return learning[method](golden)
        with torch.inference_mode():
            frozen[method](golden)


def clip_of(meta: Meta) -> Clip:
    """Return the miniature with the activation of ``meta``, or its own."""
    if "quick_gelu" not in meta:
        return tiny.clip(meta["config"])
    return tiny.clip(meta["config"], activation_of(meta))


def shared_fields(meta: Meta) -> dict[str, Any]:
    """Return the fields that every map file states."""
    clip = clip_of(meta).backbone
    return {
        "backbone": Backbone(clip.name, clip.weights, clip.activation),
        "preprocess": Preprocess(meta["size"], rgb="after"),
        "features": tuple(meta["features_list"]),
    }


def linear_noise(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the files' linear layers."""
    stds = {key: 0.05 if key.endswith("bias") else shape[-1] ** -0.5 for key, shape in shapes.items()}
    return {key: tiny.draw(key, shape, stds[key]) for key, shape in shapes.items()}


def batch_of(meta: Meta) -> Batch:
    """Return the file's images as one batch."""
    return drawn_batch(meta["image_seed"], meta["classes"], meta["size"])


def _prepared(kind: type[Any], clip: Clip, meta: Meta, **fields: Any) -> tuple[Any, Any]:
    """Return a method and its observer, with the linear layers of the files where it has any."""
    words = {name: name for name in meta["text_class_order"]}
    method = kind(**fields)
    if not hasattr(kind, "checkpoint"):
        return method, method.prepare(clip, words)
    name = "april-gan" if kind is AprilGan else "clip-ad+"
    return method, prepared(method, name, clip, linear_noise(checkpoint_shapes(method, clip)), words)


def _check_sdp(golden: Golden) -> None:
    meta = golden.meta
    eps, samples = meta["eps_min_samples"] or (ClipAd.eps, ClipAd.min_samples)
    method, observer = _prepared(
        ClipAdPlus if meta["method"] == "SDP+" else ClipAd,
        clip_of(meta),
        meta,
        **shared_fields(meta),
        selection=meta["rep_vec"],
        eps=eps,
        min_samples=samples,
        sigma=meta["smoothing_sigma"],
    )
    golden.near("text_features", _texts(observer, meta))
    batch = batch_of(meta)
    trace, anchors, shown = (
        observer.clip.vision.trace(batch),
        observer.anchors.of(batch.categories),
        meta["token_index"],
    )
    streams = [observer.tapped(trace, layer) for layer in method.features]
    golden.near("ori_tokens", torch.stack(streams)[:, :, shown])
    tokens = torch.stack([observer.surgery_tokens(trace, layer) for layer in method.features])
    golden.near("surgery_tokens", tokens[:, :, shown])
    anomalous = torch.stack([surgery(F.normalize(one, dim=-1) @ anchors.mT) for one in tokens])
    golden.near("sim_layers", torch.stack([-anomalous, anomalous], dim=-1))
    golden.near("sim", torch.stack([-anomalous, anomalous], dim=-1).sum(dim=0))
    if "linear_out" in golden:
        _check_linear(golden, observer, streams)

    evidence = observer.observe(batch)
    golden.near("cls_prob", evidence["score"])
    for exact in (False, True):
        with exact_maps(exact):
            _check_sdp_maps(golden, method, evidence)


def _check_sdp_maps(golden: Golden, method: ClipAd, evidence: Evidence) -> None:
    meta = golden.meta
    size, step = (meta["size"], meta["size"]), meta["map_stride"]
    raw = render(evidence["map"], size)
    golden.near("sdp_up_strided", raw[:, ::step, ::step])
    if "layers" in evidence:
        raw = raw + layer_maps(evidence["layers"], size).sum(dim=1)
    golden.near("raw_map_strided", raw[:, ::step, ::step])
    maps = method.maps(evidence, size)
    golden.near("final_map", maps)
    golden.near("map_max", maps.amax(dim=(1, 2)))
    if "image_score_fused" in golden:
        extrema = torch.stack([maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2))], dim=1)
        scores = []
        for name in meta["text_class_order"]:
            own = [number for number, category in enumerate(meta["classes"]) if category == name]
            scores.append(
                method.image_scores({key: value[own] for key, value in evidence.items()}, extrema[own])
            )
        golden.near("image_score_fused", torch.cat(scores))


def _check_april_gan(golden: Golden) -> None:
    meta = golden.meta
    method, observer = _prepared(AprilGan, clip_of(meta), meta, **shared_fields(meta))
    golden.near("text_features", _texts(observer, meta))
    batch = batch_of(meta)
    trace = observer.clip.vision.trace(batch)
    streams = [trace.after(layer) for layer in method.features]
    golden.near("tokens", torch.stack(streams)[:, :, meta["token_index"]])
    golden.near("image_features", observer.clip.vision.project(trace.output[:, 0]))
    _check_linear(golden, observer, streams)

    evidence = observer.observe(batch)
    size, step = (meta["size"], meta["size"]), meta["map_stride"]
    for exact in (False, True):
        with exact_maps(exact):
            layers = layer_maps(evidence["layers"], size).transpose(0, 1)
            golden.near("layer_maps_strided", layers[..., ::step, ::step])
            golden.near("final_map", method.maps(evidence, size))
    order = [n for name in meta["text_class_order"] for n, c in enumerate(meta["classes"]) if c == name]
    score = method.image_scores(evidence, torch.zeros(len(batch.keys), 2))
    golden.near("image_score", score[order])


def _texts(observer: Any, meta: Meta) -> Tensor:
    return torch.stack([observer.anchors.table[name].T for name in meta["text_class_order"]])


def _check_linear(golden: Golden, observer: Any, streams: list[Tensor]) -> None:
    meta = golden.meta
    shown = [number for number in meta["token_index"] if number > 0]
    pairs = zip(streams, observer.linear, strict=True)
    found = torch.stack([linear_features(stream[:, shown], layer) for stream, layer in pairs])
    golden.near("linear_out", found)


def _check_losses(golden: Golden) -> None:
    """Compare losses and their gradients; a batch of one image counts as one image."""
    masks = golden.tensor("mask").float()
    rules: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "focal": focal,
        "dice": lambda p, m: dice(p[:, 1], m),
        "total": lambda p, m: focal(p, m) + dice(p[:, 1], m),
    }
    for name, rule in rules.items():
        logits = golden.tensor("logits").requires_grad_()
        value = rule(logits.softmax(dim=1), masks)
        (gradient,) = torch.autograd.grad(value, logits)
        golden.near(name, value.detach()[None])
        golden.near(f"{name}_grad", gradient)
        golden.near(f"{name}_grad_norm", gradient.norm()[None])
    first = torch.from_numpy(golden["logits"][:1]).softmax(dim=1)
    golden.near("focal_batch1", focal(first, masks[:1])[None])
    golden.near("dice_batch1_proper", dice(first[:, 1], masks[:1])[None])
    rows = dice(first[0, 1], masks[0])  # the authors' squeezed mask makes an image of every row
    golden.near("dice_batch1_squeezed", rows[None])


def _check_training(golden: Golden) -> None:
    """Repeat the authors' steps of the linear layers from the files' start values."""
    meta = golden.meta
    size, step, classes = meta["size"], meta["batch_size"], meta["class_of_image"]
    inputs = tiny.images(meta["image_seed"], len(classes), size)
    masks = (tiny.images(meta["mask_seed"], len(classes), size)[:, 0] > 1.0).float()
    clip = clip_of(meta)
    eps, samples = {"visa": (1.5, 25)}.get(meta["dataset_rule"], (0.5, 15))
    method = ClipAdPlus(**shared_fields(meta), selection=meta["rep_vec"], eps=eps, min_samples=samples)
    recipe = dataclasses.replace(LinearRecipe(), lr=meta["lr"])
    stage = recipe.stages(method, clip, {name: name for name in classes})[0]
    shapes = checkpoint_shapes(method, clip)
    start = linear_noise(shapes)
    begin(stage, start)
    anchors = method.anchors(clip, {name: name for name in classes})
    for number in range(meta["steps"]):
        own = slice(number * step, (number + 1) * step)
        with torch.no_grad():
            features = stage.features(tiny.batch(inputs[own], classes[own]))
        truth = Truth(masks[own], torch.ones(step, dtype=torch.int64), classes[own])
        parts = layer_losses(features["tokens"], stage.parameters, anchors, truth)
        golden.near("parts", parts.detach(), golden["parts"][number])
        golden.near("loss", stage.step(features, truth)["loss"], golden["loss"][number])
        norms = [float(value.grad.norm()) for value in stage.parameters.values() if value.grad is not None]
        golden.near("grad_norms", np.reshape(norms, (-1, 2)), golden["grad_norms"][number])
    for key, value in stage.parameters.items():
        golden.near(f"final_norm_{key}", value.detach().norm()[None])
        if f"delta_{key}" in golden:
            golden.near(f"delta_{key}", value.detach() - start[key])


def _check_text(golden: Golden) -> None:
    """Compare prompts, cluster labels and every selection rule on one class."""
    meta = golden.meta
    clip, words = clip_of(meta), meta["classes"][0]
    modes: dict[str, dict[str, Any]] = {
        "mean": {"selection": "mean"},
        "pca": {"selection": "pca"},
        "kde": {"selection": "kde"},
        "mean_shift": {"selection": "mean_shift"},
        "dbscan_mvtec": {},
        "dbscan_mvtec_fp16": {"half_text": True},
        "dbscan_visa": {"eps": 1.5, "min_samples": 25},
        "dbscan_visa_fp16": {"eps": 1.5, "min_samples": 25, "half_text": True},
    }
    for mode, fields in modes.items():
        anchors = ClipAd(**fields).anchors(clip, {words: words})
        golden.near(mode, anchors.table[words].T, golden[mode])

    from sklearn.cluster import DBSCAN

    method = ClipAd()
    for state, phrases in (("normal", method.normal), ("abnormal", method.anomalous)):
        prompts = ensemble(phrases, method.templates, words)
        embeddings = F.normalize(encode(clip, prompts), dim=-1)
        golden.near(state, embeddings, golden[f"prompt_embeddings_{state}"])
        labels = DBSCAN(eps=method.eps, min_samples=method.min_samples).fit_predict(embeddings.numpy())
        golden.same(f"dbscan_labels_{state}", labels)
    prompts = ensemble(method.normal, method.templates, words)
    ids = clip.tokenize([prompts[0], prompts[-1]])
    key = "token_ids_normal_first_last"
    golden.same(key, padded(ids, golden[key].shape[1]))
