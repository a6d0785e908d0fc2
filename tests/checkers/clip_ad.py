"""CLIP-AD (SDP, SDP+) and APRIL-GAN against their authors' code, stage by stage."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods._training_clip_ad import layer_losses
from methods.april_gan import AprilGan
from methods.clip_ad import ClipAd, ClipAdPlus, checkpoint_shapes, layer_maps, linear_features, surgery
from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, save_checkpoint
from zsadbench.clip.prompts import encode, ensemble
from zsadbench.clip.towers import Clip
from zsadbench.inputs import Backbone, Batch, Preprocess
from zsadbench.maps import exact_maps, render
from zsadbench.method.protocol import Evidence
from zsadbench.training.losses import dice, focal
from zsadbench.training.stages import Truth

Arrays = Mapping[str, Any]
TOLERANCE = 1e-4


def check(path: Path) -> None:
    """Compare one golden file."""
    golden = np.load(path)
    meta = json.loads(str(golden["meta"]))
    arrays = {key: golden[key] for key in golden.files if key != "meta"}
    if meta["method"] == "focal+dice":
        return _check_losses(arrays)
    if meta["method"] == "SDP+ training":
        return _check_training(arrays, meta)
    checks = {
        "SDP": _check_sdp,
        "SDP+": _check_sdp,
        "RVS": _check_text,
        "APRIL-GAN zero-shot": _check_april_gan,
    }
    with torch.inference_mode():
        checks[meta["method"]](arrays, meta)


def near(name: str, found: Any, golden: Any) -> None:
    """Compare with the one tolerance of these files."""
    tiny.near(name, found, golden, TOLERANCE)


def clip_of(meta: Arrays) -> Clip:
    """Return the miniature with the activation of ``meta``, or its own."""
    if "quick_gelu" not in meta:
        return tiny.clip(meta["config"])
    return tiny.clip(meta["config"], "quick_gelu" if meta["quick_gelu"] else "gelu")


def shared_fields(meta: Arrays) -> dict[str, Any]:
    """Return the fields that every map file states."""
    clip = clip_of(meta).backbone
    return {
        "backbone": Backbone(clip.name, clip.weights, clip.activation),
        "preprocess": Preprocess(meta["size"], rgb="after"),
        "features": tuple(meta["features_list"]),
    }


def linear_checkpoint(folder: str, method: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Write the files' linear layers, deterministic noise, as a checkpoint of ``method``; return its path."""
    path = Path(folder) / "linear.safetensors"
    save_checkpoint(path, linear_noise(shapes), Provenance(method))
    return str(path)


def linear_noise(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the files' linear layers."""
    stds = {key: 0.05 if key.endswith("bias") else shape[-1] ** -0.5 for key, shape in shapes.items()}
    return {key: tiny.draw(key, shape, stds[key]) for key, shape in shapes.items()}


def batch_of(meta: Arrays) -> Batch:
    """Return the file's images as one batch."""
    return tiny.batch(tiny.images(meta["image_seed"], meta["batch"], meta["size"]), meta["classes"])


def _prepared(kind: type[Any], clip: Clip, meta: Arrays, **fields: Any) -> tuple[Any, Any]:
    """Return a method and its observer, with the linear layers of the files where it has any."""
    words = {name: name for name in meta["text_class_order"]}
    if not hasattr(kind, "checkpoint"):
        method = kind(**fields)
        return method, method.prepare(clip, words)
    with tempfile.TemporaryDirectory() as folder:
        name = "april-gan" if kind is AprilGan else "clip-ad+"
        file = linear_checkpoint(folder, name, checkpoint_shapes(kind(**fields), clip))
        method = kind(**fields, checkpoint=file)
        return method, method.prepare(clip, words)


def _check_sdp(arrays: Arrays, meta: Arrays) -> None:
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
    near("text_features", _texts(observer, meta), arrays["text_features"])
    batch = batch_of(meta)
    trace, anchors, shown = (
        observer.clip.vision.trace(batch),
        observer.anchors.of(batch.categories),
        meta["token_index"],
    )
    streams = [observer.tapped(trace, layer) for layer in method.features]
    near("ori_tokens", torch.stack(streams)[:, :, shown], arrays["ori_tokens"])
    tokens = torch.stack([observer.surgery_tokens(trace, layer) for layer in method.features])
    near("surgery_tokens", tokens[:, :, shown], arrays["surgery_tokens"])
    anomalous = torch.stack([surgery(F.normalize(one, dim=-1) @ anchors.mT) for one in tokens])
    near("sim_layers", torch.stack([-anomalous, anomalous], dim=-1), arrays["sim_layers"])
    near("sim", torch.stack([-anomalous, anomalous], dim=-1).sum(dim=0), arrays["sim"])
    if "linear_out" in arrays:
        _check_linear(arrays, meta, observer, streams)

    evidence = observer.observe(batch)
    near("cls_prob", evidence["score"], arrays["cls_prob"])
    for exact in (False, True):
        with exact_maps(exact):
            _check_sdp_maps(arrays, meta, method, evidence)


def _check_sdp_maps(arrays: Arrays, meta: Arrays, method: ClipAd, evidence: Evidence) -> None:
    size, step = (meta["size"], meta["size"]), meta["map_stride"]
    raw = render(evidence["map"], size)
    near("sdp_up_strided", raw[:, ::step, ::step], arrays["sdp_up_strided"])
    if "layers" in evidence:
        raw = raw + layer_maps(evidence["layers"], size).sum(dim=1)
    near("raw_map_strided", raw[:, ::step, ::step], arrays["raw_map_strided"])
    maps = method.maps(evidence, size)
    near("final_map", maps, arrays["final_map"])
    near("map_max", maps.amax(dim=(1, 2)), arrays["map_max"])
    if "image_score_fused" in arrays:
        extrema = torch.stack([maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2))], dim=1)
        scores = []
        for name in meta["text_class_order"]:
            own = [number for number, category in enumerate(meta["classes"]) if category == name]
            scores.append(
                method.image_scores({key: value[own] for key, value in evidence.items()}, extrema[own])
            )
        near("image_score_fused", torch.cat(scores), arrays["image_score_fused"])


def _check_april_gan(arrays: Arrays, meta: Arrays) -> None:
    method, observer = _prepared(AprilGan, clip_of(meta), meta, **shared_fields(meta))
    near("text_features", _texts(observer, meta), arrays["text_features"])
    batch = batch_of(meta)
    trace = observer.clip.vision.trace(batch)
    streams = [observer.after(trace, layer) for layer in method.features]
    near("tokens", torch.stack(streams)[:, :, meta["token_index"]], arrays["tokens"])
    near("image_features", observer.clip.vision.project(trace.output[:, 0]), arrays["image_features"])
    _check_linear(arrays, meta, observer, streams)

    evidence = observer.observe(batch)
    size, step = (meta["size"], meta["size"]), meta["map_stride"]
    for exact in (False, True):
        with exact_maps(exact):
            layers = layer_maps(evidence["layers"], size).transpose(0, 1)
            near("layer_maps_strided", layers[..., ::step, ::step], arrays["layer_maps_strided"])
            near("final_map", method.maps(evidence, size), arrays["final_map"])
    order = [n for name in meta["text_class_order"] for n, c in enumerate(meta["classes"]) if c == name]
    score = method.image_scores(evidence, torch.zeros(len(batch.keys), 2))
    near("image_score", score[order], arrays["image_score"])


def _texts(observer: Any, meta: Arrays) -> Tensor:
    return torch.stack([observer.anchors.table[name].T for name in meta["text_class_order"]])


def _check_linear(arrays: Arrays, meta: Arrays, observer: Any, streams: list[Tensor]) -> None:
    shown = [number for number in meta["token_index"] if number > 0]
    pairs = zip(streams, observer.linear, strict=True)
    found = torch.stack([linear_features(stream[:, shown], layer) for stream, layer in pairs])
    near("linear_out", found, arrays["linear_out"])


def _check_losses(arrays: Arrays) -> None:
    """Compare losses and their gradients; a batch of one image counts as one image."""
    masks = torch.from_numpy(arrays["mask"]).float()
    rules: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "focal": focal,
        "dice": lambda p, m: dice(p[:, 1], m),
        "total": lambda p, m: focal(p, m) + dice(p[:, 1], m),
    }
    for name, rule in rules.items():
        logits = torch.from_numpy(arrays["logits"]).requires_grad_()
        value = rule(logits.softmax(dim=1), masks)
        (gradient,) = torch.autograd.grad(value, logits)
        near(name, value.detach()[None], arrays[name])
        near(f"{name}_grad", gradient, arrays[f"{name}_grad"])
        near(f"{name}_grad_norm", gradient.norm()[None], arrays[f"{name}_grad_norm"])
    first = torch.from_numpy(arrays["logits"][:1]).softmax(dim=1)
    near("focal_batch1", focal(first, masks[:1])[None], arrays["focal_batch1"])
    near("dice_batch1_proper", dice(first[:, 1], masks[:1])[None], arrays["dice_batch1_proper"])
    rows = dice(first[0, 1], masks[0])  # the authors' squeezed mask makes an image of every row
    near("dice_batch1_squeezed", rows[None], arrays["dice_batch1_squeezed"])


def _check_training(arrays: Arrays, meta: Arrays) -> None:
    """Repeat the authors' steps of the linear layers from the files' start values."""
    size, step, classes = meta["size"], meta["batch_size"], meta["class_of_image"]
    inputs = tiny.images(meta["image_seed"], len(classes), size)
    masks = (tiny.images(meta["mask_seed"], len(classes), size)[:, 0] > 1.0).float()
    clip = clip_of(meta)
    eps, samples = {"visa": (1.5, 25)}.get(meta["dataset_rule"], (0.5, 15))
    method = ClipAdPlus(**shared_fields(meta), selection=meta["rep_vec"], eps=eps, min_samples=samples)
    recipe = dataclasses.replace(method.recipe("mvtec"), lr=meta["lr"])
    stage = recipe.stages(method, clip, {name: name for name in classes})[0]
    shapes = checkpoint_shapes(method, clip)
    begin = linear_noise(shapes)
    for key, value in stage.parameters.items():
        value.data.copy_(begin[key])
    anchors = method.anchors(clip, {name: name for name in classes})
    for number in range(meta["steps"]):
        own = slice(number * step, (number + 1) * step)
        with torch.no_grad():
            features = stage.features(tiny.batch(inputs[own], classes[own]))
        truth = Truth(masks[own], torch.ones(step, dtype=torch.int64), classes[own])
        parts = layer_losses(features["tokens"], stage.parameters, anchors, truth)
        near("parts", parts.detach(), arrays["parts"][number])
        near("loss", stage.step(features, truth)["loss"], arrays["loss"][number])
        norms = [float(value.grad.norm()) for value in stage.parameters.values() if value.grad is not None]
        near("grad_norms", np.reshape(norms, (-1, 2)), arrays["grad_norms"][number])
    for key, value in stage.parameters.items():
        near(f"final_norm_{key}", value.detach().norm()[None], arrays[f"final_norm_{key}"])
        if f"delta_{key}" in arrays:
            near(f"delta_{key}", value.detach() - begin[key], arrays[f"delta_{key}"])


def _check_text(arrays: Arrays, meta: Arrays) -> None:
    """Compare prompts, cluster labels and every selection rule on one class."""
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
        near(mode, anchors.table[words].T, arrays[mode])

    from sklearn.cluster import DBSCAN

    method = ClipAd()
    for state, phrases in (("normal", method.normal), ("abnormal", method.anomalous)):
        prompts = ensemble(phrases, method.templates, words)
        embeddings = F.normalize(encode(clip, prompts), dim=-1)
        near(state, embeddings, arrays[f"prompt_embeddings_{state}"])
        labels = DBSCAN(eps=method.eps, min_samples=method.min_samples).fit_predict(embeddings.numpy())
        assert np.array_equal(labels, arrays[f"dbscan_labels_{state}"]), f"cluster labels of {state} prompts"
    prompts = ensemble(method.normal, method.templates, words)
    ids = clip.tokenize([prompts[0], prompts[-1]])
    wanted = arrays["token_ids_normal_first_last"]
    assert np.array_equal(F.pad(ids, (0, wanted.shape[1] - ids.shape[1])).numpy(), wanted)
