"""Checks of the AA-CLIP arrays: every file states in ``meta`` what it was made from."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from methods._shared import Anchors, as_grid
from methods._training_aa_clip import (
    class_feature,
    class_scores,
    enlarged,
    frozen_levels,
    level_losses,
    orthogonality,
)
from methods.aa_clip import (
    SCALE,
    AaClip,
    AaClipObserver,
    blur,
    checkpoint_shapes,
    difference,
    encode_prompts,
    text_anchors,
)
from tests.kit import tiny
from zsadbench.clip.checkpoints import Provenance, save_checkpoint
from zsadbench.clip.prompts import ensemble
from zsadbench.clip.towers import Clip
from zsadbench.images.loader import preprocess, to_batch_images
from zsadbench.images.masks import mask_at
from zsadbench.inputs import Backbone, Batch, Preprocess
from zsadbench.maps import exact_maps, upsample
from zsadbench.method.registry import resolve
from zsadbench.metrics import evaluate
from zsadbench.samples import Sample
from zsadbench.training.losses import segmentation, total
from zsadbench.training.stages import Stage, Truth

TOLERANCE = 1e-4
LOSSES = {"focal": "focal", "dice_normal": "dice0", "dice_anomalous": "dice1"}
GRADIENTS = {
    "grad_layer0": "image_adapter.layer_adapters.0.fc.0.weight",
    "grad_seg3": "image_adapter.seg_proj.3.fc.weight",
    "grad_det": "image_adapter.det_proj.fc.weight",
}
DOMAINS = ("industrial", "medical")
Arrays = Mapping[str, NDArray[Any]]


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    rules = {
        "infer": _infer,
        "tokens": _tokens,
        "eval": _eval,
        "preprocess": _preprocess,
        "losses": _losses,
        "stage1": _stage1,
        "stage2": _stage2,
    }
    rules[path.stem.split("_")[0]](arrays, meta)


def close(name: str, found: ArrayLike, wanted: ArrayLike, tolerance: float = TOLERANCE) -> None:
    """Assert that the largest difference is at most ``tolerance`` of the largest wanted magnitude."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, f"{name}: shape {found.shape}, wanted {wanted.shape}"
    error = np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12)
    assert error <= tolerance, f"{name}: relative difference {error:.2e} above {tolerance:.0e}"


def learned(method: AaClip, clip: Clip, salt: str) -> dict[str, Tensor]:
    """Return the learned parameters as deterministic noise that keeps lengths."""
    shapes = checkpoint_shapes(method, clip)
    return {name: tiny.draw(name, shape, shape[1] ** -0.5, salt=salt) for name, shape in shapes.items()}


def prepared(
    method: AaClip, clip: Clip, tensors: Mapping[str, Tensor], wordings: Mapping[str, str]
) -> AaClipObserver:
    """Return an observer with ``tensors`` as its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapters.safetensors"
        save_checkpoint(path, tensors, Provenance("aa-clip"))
        return dataclasses.replace(method, checkpoint=str(path)).prepare(clip, wordings)


def in_domain(method: AaClip, domain: str) -> AaClip:
    """Return ``method`` with what the card sets for ``domain``."""
    found: Any = resolve("aa-clip", domain=domain).method
    return dataclasses.replace(
        method, blur_taps=found.blur_taps, blur_sigma=found.blur_sigma, map_share=found.map_share
    )


def _setup(meta: Mapping[str, Any]) -> tuple[AaClip, Clip, dict[str, Tensor]]:
    hyper, activation = meta["hyper"], meta["activation"]
    assert hyper["image_adapt_weight"] == hyper["text_adapt_weight"]
    clip = tiny.clip(meta["config"], activation)
    method = AaClip(
        Backbone(meta["config"], "random", activation),
        dataclasses.replace(AaClip().preprocess, size=meta["image_size"]),
        levels=tuple(hyper["levels"]),
        image_adapters=hyper["image_adapt_until"],
        text_adapters=hyper["text_adapt_until"],
        mix=hyper["image_adapt_weight"],
        relu=hyper["relu"],
    )
    return method, clip, learned(method, clip, meta.get("adapter_salt", "golden"))


def _infer(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    method, clip, tensors = _setup(meta)
    words = {"any": meta["real_name"]}
    observer = prepared(method, clip, tensors, words)
    _texts(arrays, meta, observer, tensors)
    plain = dataclasses.replace(method, text_adapters=0)
    image_side = {name: value for name, value in tensors.items() if name.startswith("image")}
    without = prepared(plain, clip, image_side, words)
    close("text_anchors_noadapt", without.anchors.table["any"].T, arrays["text_anchors_noadapt"])

    images = tiny.images(meta["image_seed"], meta["batch"], meta["image_size"])
    batch = tiny.batch(images, ["any"] * meta["batch"])
    anchors = observer.anchors.of(batch.categories)
    levels = observer.level_tokens(batch.images[:, 0])
    features = torch.stack([observer.patch_features(x, level) for level, x in enumerate(levels)], dim=1)
    close("patch_features", features[: len(arrays["patch_features"])], arrays["patch_features"])
    close("det_feature", observer.detection_feature(levels[-1]), arrays["det_feature"])

    size = (meta["image_size"], meta["image_size"])
    cosines = [as_grid(difference(features[:, level], anchors)) for level in range(len(levels))]
    grids = [(1 + SCALE * cosine) / 2 for cosine in cosines]
    close("lowres_map", torch.stack(grids, dim=1), arrays["lowres_map"])
    probability = torch.sigmoid(upsample(SCALE * cosines[-1], size, align_corners=True))
    first = arrays["train_softmax_abnormal_l24"]
    close("train_softmax_abnormal_l24", probability[: len(first)], first)

    evidence = observer.observe(batch)
    for domain in DOMAINS:
        chosen = in_domain(method, domain)
        blurred = [blur(grid, chosen.blur_taps, chosen.blur_sigma) for grid in grids]
        close(f"blurred_{domain}", torch.stack(blurred, dim=1), arrays[f"blurred_{domain}"])
        for exact in (False, True):
            with exact_maps(exact):
                close(f"final_map_{domain}", chosen.maps(evidence, size), arrays[f"final_map_{domain}"])
    inductive = dataclasses.replace(method, image_score="inductive")
    close("cls_score", inductive.image_scores(evidence, torch.zeros(meta["batch"], 2)), arrays["cls_score"])


def _texts(
    arrays: Arrays, meta: Mapping[str, Any], observer: AaClipObserver, tensors: Mapping[str, Tensor]
) -> None:
    method, clip = observer.method, observer.clip
    states = (method.normal, method.anomalous)
    prompts = [ensemble(state, method.templates, meta["real_name"]) for state in states]
    assert [len(part) for part in prompts] == [meta["n_normal"], meta["n_abnormal"]]
    assert [*prompts[0], *prompts[1]] == meta["prompts"]
    tokens = clip.tokenize(meta["prompts"])
    assert np.array_equal(F.pad(tokens, (0, clip.text.context - tokens.shape[1])).numpy(), arrays["tokens"])
    raw = encode_prompts(method, clip, tensors, meta["prompts"])
    close("prompt_features_raw", raw, arrays["prompt_features_raw"])
    close("prompt_features", F.normalize(raw, dim=-1), arrays["prompt_features"])
    close("text_anchors", observer.anchors.table["any"].T, arrays["text_anchors"])


def _tokens(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    method, clip, tensors = _setup(meta)
    observer = prepared(method, clip, tensors, {})
    levels = observer.level_tokens(tiny.images(meta["image_seed"], meta["batch"], meta["image_size"]))
    close("level_tokens", torch.stack([tokens[0] for tokens in levels]), arrays["level_tokens"])
    side = meta["image_size"] // clip.vision.patch
    close("positional_embedding", clip.vision.positions((side, side)), arrays["positional_embedding"])


def _losses(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    """Check losses and maps on random input; the test maps take the anchors of the first image for all."""
    masks = torch.from_numpy(arrays["mask"])[:, 0].float()
    parts = segmentation(torch.from_numpy(arrays["logits"]).softmax(dim=1), masks)
    for name, key in LOSSES.items():
        close(name, parts[name], arrays[{"dice0": "dice_normal", "dice1": "dice_abnormal"}.get(key, key)])
    close("seg", total(parts), arrays["seg"])
    features, anchors = (torch.from_numpy(arrays[key]) for key in ("features", "anchors"))
    first = anchors[:1].mT.expand(len(features), -1, -1)
    evidence = {"map": as_grid(difference(features, first))}
    for domain in DOMAINS:
        wanted = arrays[f"test_map_{domain}"][:, 0]
        method = in_domain(AaClip(levels=(24,)), domain)
        close(f"test_map_{domain}", method.maps(evidence, wanted.shape[1:]), wanted)
    texts = anchors.mT
    close("orth", orthogonality(texts), arrays["orth"])
    scores = class_scores(torch.from_numpy(arrays["det"])[:, 0], texts)
    close("cls_logits", scores, arrays["cls_logits"])
    close("cls_loss", F.cross_entropy(scores, torch.from_numpy(arrays["labels"])), arrays["cls_loss"])
    close("train_prob", enlarged(features, texts, masks.shape[-2:]), arrays["train_prob"])


def _begun(arrays: Arrays, meta: Mapping[str, Any], **changes: Any) -> tuple[AaClip, Clip, Stage, Truth]:
    """Return the stage of a file with the file's adapters, and its batch's truth."""
    method, clip, tensors = _setup(meta)
    known = resolve("aa-clip", dataset="aaclip_jsonl").card.words
    words = {name: known[name] for name in meta["class_names"]}
    recipe = dataclasses.replace(method.recipe("mvtec"), betas=tuple(meta["betas"]), **changes)
    stages = {stage.name: stage for stage in recipe.stages(method, clip, words)}
    for stage in stages.values():
        for key, value in stage.parameters.items():
            value.data.copy_(tensors[key])
    masks, labels = torch.from_numpy(arrays["masks"])[:, 0].float(), torch.tensor(meta["labels"])
    truth = Truth(masks, labels, meta["class_names"])
    return method, clip, stages["images" if "milestones" in meta else "texts"], truth


def _batch(meta: Mapping[str, Any]) -> Batch:
    inputs = tiny.images(meta["image_seed"], meta["batch"], meta["image_size"])
    return tiny.batch(inputs, meta["class_names"])


def _stage1(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    """Repeat the authors' steps of the text side."""
    hyper, depth = meta["hyper"], 24
    method, clip, stage, truth = _begun(
        arrays,
        meta,
        text_lr=meta["lr"],
        orthogonality=hyper["text_norm_weight"],
        value_from=depth + 2 - hyper["surgery_until_layer"],
    )
    batch = _batch(meta)
    images, first = batch.images[:, 0], depth + 1 - hyper["surgery_until_layer"]
    with torch.no_grad():
        levels = torch.stack(frozen_levels(clip, images, method.levels, first, "batch"), dim=1)
        alone = frozen_levels(clip, images[:1], method.levels, first, "batch")
        features = stage.features(batch)
    close("vv_patch_features", levels, arrays["vv_patch_features"])
    close("vv_patch_features_alone0_l24", alone[-1], arrays["vv_patch_features_alone0_l24"])
    close("cls_feature", class_feature(clip, images), arrays["cls_feature"])

    known = resolve("aa-clip", dataset="aaclip_jsonl").card.words
    words = {name: known[name] for name in meta["anchor_order"]}

    def anchors() -> Anchors:
        with torch.no_grad():
            return text_anchors(method, clip, stage.parameters, words)

    begin = anchors()
    close("anchors_step0", torch.stack([*begin.table.values()]).mT, arrays["anchors_step0"])
    shown = enlarged(features["levels"][:, -1], begin.of(truth.categories), truth.masks.shape[-2:])
    close("softmax_abnormal_l24_step0", shown[:, 1], arrays["softmax_abnormal_l24_step0"])
    found: dict[str, list[float]] = {name: [] for name in ("loss", "orthogonal", *LOSSES)}
    per_level = []
    for step in range(meta["steps"]):
        own = anchors().of(truth.categories)
        orthogonal = hyper["text_norm_weight"] * float(orthogonality(own))
        rows = features["levels"].unbind(dim=1)
        per_level.append([float(total(level_losses(one, own, truth.masks))) + orthogonal for one in rows])
        losses = stage.step(features, truth)
        for name, values in found.items():
            values.append(losses[name])
        if step == 0:
            for number in (0, 3):
                gradient = stage.parameters[f"text_adapter.{number}.fc.0.weight"].grad
                assert gradient is not None
                close(f"grad_text{number}", gradient, arrays[f"grad_text{number}_step0"])
    for name, values in found.items():
        key = LOSSES.get(name, {"orthogonal": "orth"}.get(name, name))
        close(key, values, arrays[key])
    close("loss_per_level", per_level, arrays["loss_per_level"])
    close("anchors_final", torch.stack([*anchors().table.values()]).mT, arrays["anchors_final"])


def _stage2(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    """Repeat the authors' steps of the image side."""
    method, clip, stage, truth = _begun(
        arrays, meta, lr=meta["lr"], milestones=tuple(meta["milestones"]), decay=meta["gamma"]
    )
    texts = torch.from_numpy(arrays["anchors"]).mT
    features = stage.features(_batch(meta))
    table = dict(zip(meta["class_names"], texts, strict=True))
    observer = AaClipObserver(method, clip, Anchors(table), stage.parameters)
    with torch.no_grad():
        tokens = observer.level_tokens(features["images"])[-1]
        scores = class_scores(observer.detection_feature(tokens), texts)
    close("cls_logits_step0", scores, arrays["cls_logits_step0"])
    found = []
    for step in range(meta["steps"]):
        found.append(stage.step(features, truth))
        assert stage.optimiser.param_groups[0]["lr"] == pytest.approx(float(arrays["lr"][step]))
        if step == 0:
            for key, name in GRADIENTS.items():
                gradient = stage.parameters[name].grad
                assert gradient is not None
                close(key, gradient, arrays[key])
    close("loss", [one["loss"] for one in found], arrays["loss"])
    close("cls_loss", [one["class"] for one in found], arrays["cls_loss"])
    levels = [[one[f"level {level}"] for level in method.levels] for one in found]
    close("seg_loss_per_level", levels, arrays["seg_loss_per_level"])
    with torch.no_grad():
        first = [meta["class_names"][0]] * meta["batch"]
        evidence = observer.observe(dataclasses.replace(_batch(meta), categories=first))
    method, size = in_domain(method, "industrial"), (meta["image_size"], meta["image_size"])
    close("final_map_after", method.maps(evidence, size), arrays["final_map_after"])
    close("cls_score_after", (evidence["score"] + 1) / 2, arrays["cls_score_after"])


def _eval(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    assert meta["order"] == ["pixel AUC", "pixel AP", "image AUC", "image AP"]
    everything = np.ones(len(arrays["image_label"]), bool)
    for domain in DOMAINS:
        scores, row = _evaluated(in_domain(AaClip(), domain), arrays, everything)
        close(f"final_image_score_{domain}", scores, arrays[f"final_image_score_{domain}"])
        close(f"result_{domain}", row, arrays[f"result_{domain}"])
    _, row = _evaluated(in_domain(AaClip(), "medical"), arrays, arrays["image_label"] == 1)
    close("result_all_abnormal_medical", row, arrays["result_all_abnormal_medical"])


def _evaluated(method: AaClip, arrays: Arrays, rows: NDArray[np.bool_]) -> tuple[NDArray[Any], list[float]]:
    """Return the image scores and the four metrics of some rows, in percent of two decimals.

    The authors report 0 for both image metrics where all images are anomalous.
    """
    maps, class_score = arrays["pixel_preds"][rows], torch.from_numpy(arrays["image_preds"][rows])
    flat = torch.from_numpy(maps).flatten(1)
    extrema = torch.stack([flat.amin(dim=1), flat.amax(dim=1)], dim=1)
    scores = method.image_scores({"score": 2 * class_score - 1}, extrema).numpy()
    found = evaluate(maps, arrays["pixel_label"][rows, 0], arrays["image_label"][rows], scores)
    values = [found[key] for key in ("pixel_auroc", "pixel_ap", "image_auroc", "image_ap")]
    if arrays["image_label"][rows].all():
        assert values[2] is None
        values[2:] = [0.0, 0.0]
    return scores, [100 * round(value, 4) for value in values if value is not None]


def _preprocess(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    spec = Preprocess(meta["img_size"])
    prepared = preprocess(Image.fromarray(arrays["image_uint8"]), spec)
    close("image", to_batch_images([prepared], spec)[0, 0], arrays["image"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        Image.fromarray(arrays["mask_uint8"]).save(path)
        mask = mask_at(Sample("image", "any", True, path, path), (spec.size, spec.size), "nearest")
    assert np.array_equal(mask, arrays["mask"][0] != 0)
