"""Checks of the AA-CLIP arrays: every file states in ``meta`` what it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from methods._shared import Anchors, as_grid
from methods._training_aa_clip import (
    AdapterRecipe,
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
from tests.checkers.common import (
    Golden,
    Meta,
    begin,
    drawn_batch,
    gradient,
    mask_of,
    opened,
    padded,
    prepared,
)
from tests.kit import tiny
from zsadbench.clip.prompts import ensemble
from zsadbench.clip.towers import Clip
from zsadbench.images.batches import to_batch_images
from zsadbench.images.loader import preprocess
from zsadbench.inputs import Backbone, Batch, Preprocess
from zsadbench.maps import upsample
from zsadbench.method.registry import resolve
from zsadbench.metrics import evaluate
from zsadbench.training.losses import segmentation, total
from zsadbench.training.stages import Stage, Truth

TOLERANCE = 1e-4
LOSSES = {"focal": "focal", "dice_normal": "dice_normal", "dice_anomalous": "dice_abnormal"}
TRAINED = {
    "loss": "loss",
    "orthogonal": "orth",
    "focal": "focal",
    "dice_normal": "dice0",
    "dice_anomalous": "dice1",
}
GRADIENTS = {
    "grad_layer0": "image_adapter.layer_adapters.0.fc.0.weight",
    "grad_seg3": "image_adapter.seg_proj.3.fc.weight",
    "grad_det": "image_adapter.det_proj.fc.weight",
}
DOMAINS = ("industrial", "medical")


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, TOLERANCE) as golden:
        golden.hand_to(golden.word(0), _infer, _tokens, _eval, _preprocess, _losses, _stage1, _stage2)


def learned(method: AaClip, clip: Clip, salt: str) -> dict[str, Tensor]:
    """Return the learned parameters as deterministic noise that keeps lengths."""
    shapes = checkpoint_shapes(method, clip)
    return {name: tiny.draw(name, shape, shape[1] ** -0.5, salt=salt) for name, shape in shapes.items()}


def in_domain(method: AaClip, domain: str) -> AaClip:
    """Return ``method`` with what the card sets for ``domain``."""
    found: Any = resolve("aa-clip", domain=domain).method
    return dataclasses.replace(
        method, blur_taps=found.blur_taps, blur_sigma=found.blur_sigma, map_share=found.map_share
    )


def _setup(meta: Meta) -> tuple[AaClip, Clip, dict[str, Tensor]]:
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


def _infer(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    words = {"any": meta["real_name"]}
    observer = prepared(method, "aa-clip", clip, tensors, words)
    _texts(golden, observer, tensors)
    plain = dataclasses.replace(method, text_adapters=0)
    image_side = {name: value for name, value in tensors.items() if name.startswith("image")}
    without = prepared(plain, "aa-clip", clip, image_side, words)
    golden.near("text_anchors_noadapt", without.anchors.table["any"].T)

    batch = drawn_batch(meta["image_seed"], ["any"] * meta["batch"], meta["image_size"])
    anchors = observer.anchors.of(batch.categories)
    levels = observer.level_tokens(batch.images[:, 0])
    features = torch.stack([observer.patch_features(x, level) for level, x in enumerate(levels)], dim=1)
    golden.near("patch_features", features[: len(golden["patch_features"])])
    golden.near("det_feature", observer.detection_feature(levels[-1]))

    size = (meta["image_size"], meta["image_size"])
    cosines = [as_grid(difference(features[:, level], anchors)) for level in range(len(levels))]
    grids = [(1 + SCALE * cosine) / 2 for cosine in cosines]
    golden.near("lowres_map", torch.stack(grids, dim=1))
    probability = torch.sigmoid(upsample(SCALE * cosines[-1], size, align_corners=True))
    golden.near("train_softmax_abnormal_l24", probability[: len(golden["train_softmax_abnormal_l24"])])

    evidence = observer.observe(batch)
    for domain in DOMAINS:
        chosen = in_domain(method, domain)
        blurred = [blur(grid, chosen.blur_taps, chosen.blur_sigma) for grid in grids]
        golden.near(f"blurred_{domain}", torch.stack(blurred, dim=1))
        golden.near_maps(f"final_map_{domain}", partial(chosen.maps, evidence, size))
    inductive = dataclasses.replace(method, image_score="inductive")
    golden.near("cls_score", inductive.image_scores(evidence, torch.zeros(meta["batch"], 2)))


def _texts(golden: Golden, observer: AaClipObserver, tensors: Mapping[str, Tensor]) -> None:
    meta = golden.meta
    method, clip = observer.method, observer.clip
    states = (method.normal, method.anomalous)
    prompts = [ensemble(state, method.templates, meta["real_name"]) for state in states]
    assert [len(part) for part in prompts] == [meta["n_normal"], meta["n_abnormal"]]
    assert [*prompts[0], *prompts[1]] == meta["prompts"]
    golden.same("tokens", padded(clip.tokenize(meta["prompts"]), clip.text.context))
    raw = encode_prompts(method, clip, tensors, meta["prompts"])
    golden.near("prompt_features_raw", raw)
    golden.near("prompt_features", F.normalize(raw, dim=-1))
    golden.near("text_anchors", observer.anchors.table["any"].T)


def _tokens(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    observer = prepared(method, "aa-clip", clip, tensors, {})
    levels = observer.level_tokens(tiny.images(meta["image_seed"], meta["batch"], meta["image_size"]))
    golden.near("level_tokens", torch.stack([tokens[0] for tokens in levels]))
    side = meta["image_size"] // clip.vision.patch
    golden.near("positional_embedding", clip.vision.positions((side, side)))


def _losses(golden: Golden) -> None:
    """Check losses and maps on random input; the test maps take the anchors of the first image for all."""
    masks = golden.tensor("mask")[:, 0].float()
    parts = segmentation(golden.tensor("logits").softmax(dim=1), masks)
    for name, key in LOSSES.items():
        golden.near(key, parts[name])
    golden.near("seg", total(parts))
    features, anchors = golden.tensor("features"), golden.tensor("anchors")
    first = anchors[:1].mT.expand(len(features), -1, -1)
    evidence = {"map": as_grid(difference(features, first))}
    for domain in DOMAINS:
        wanted = golden[f"test_map_{domain}"][:, 0]
        method = in_domain(AaClip(levels=(24,)), domain)
        golden.near(f"test_map_{domain}", method.maps(evidence, wanted.shape[1:]), wanted)
    texts = anchors.mT
    golden.near("orth", orthogonality(texts))
    scores = class_scores(golden.tensor("det")[:, 0], texts)
    golden.near("cls_logits", scores)
    golden.near("cls_loss", F.cross_entropy(scores, golden.tensor("labels")))
    golden.near("train_prob", enlarged(features, texts, masks.shape[-2:]))


def _begun(golden: Golden, **changes: Any) -> tuple[AaClip, Clip, Stage, Truth]:
    """Return the stage of a file with the file's adapters, and its batch's truth."""
    meta = golden.meta
    method, clip, tensors = _setup(meta)
    known = resolve("aa-clip", dataset="aaclip_jsonl").card.words
    words = {name: known[name] for name in meta["class_names"]}
    recipe = dataclasses.replace(AdapterRecipe(), betas=tuple(meta["betas"]), **changes)
    stages = {stage.name: stage for stage in recipe.stages(method, clip, words)}
    for stage in stages.values():
        begin(stage, tensors)
    masks, labels = golden.tensor("masks")[:, 0].float(), torch.tensor(meta["labels"])
    truth = Truth(masks, labels, meta["class_names"])
    return method, clip, stages["images" if "milestones" in meta else "texts"], truth


def _batch(meta: Meta) -> Batch:
    return drawn_batch(meta["image_seed"], meta["class_names"], meta["image_size"])


def _stage1(golden: Golden) -> None:
    """Repeat the authors' steps of the text side."""
    meta = golden.meta
    hyper, depth = meta["hyper"], 24
    method, clip, stage, truth = _begun(
        golden,
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
    golden.near("vv_patch_features", levels)
    golden.near("vv_patch_features_alone0_l24", alone[-1])
    golden.near("cls_feature", class_feature(clip, images))

    known = resolve("aa-clip", dataset="aaclip_jsonl").card.words
    words = {name: known[name] for name in meta["anchor_order"]}

    def anchors() -> Anchors:
        with torch.no_grad():
            return text_anchors(method, clip, stage.parameters, words)

    before = anchors()
    golden.near("anchors_step0", torch.stack([*before.table.values()]).mT)
    shown = enlarged(features["levels"][:, -1], before.of(truth.categories), truth.masks.shape[-2:])
    golden.near("softmax_abnormal_l24_step0", shown[:, 1])
    found, per_level = [], []
    for step in range(meta["steps"]):
        own = anchors().of(truth.categories)
        orthogonal = hyper["text_norm_weight"] * float(orthogonality(own))
        rows = features["levels"].unbind(dim=1)
        per_level.append([float(total(level_losses(one, own, truth.masks))) + orthogonal for one in rows])
        found.append(stage.step(features, truth))
        if step == 0:
            for number in (0, 3):
                name = f"text_adapter.{number}.fc.0.weight"
                golden.near(f"grad_text{number}_step0", gradient(stage, name))
    for name, key in TRAINED.items():
        golden.near(key, [one[name] for one in found])
    golden.near("loss_per_level", per_level)
    golden.near("anchors_final", torch.stack([*anchors().table.values()]).mT)


def _stage2(golden: Golden) -> None:
    """Repeat the authors' steps of the image side."""
    meta = golden.meta
    method, clip, stage, truth = _begun(
        golden, lr=meta["lr"], milestones=tuple(meta["milestones"]), decay=meta["gamma"]
    )
    texts = golden.tensor("anchors").mT
    features = stage.features(_batch(meta))
    table = dict(zip(meta["class_names"], texts, strict=True))
    observer = AaClipObserver(method, clip, Anchors(table), stage.parameters)
    with torch.no_grad():
        tokens = observer.level_tokens(features["images"])[-1]
        scores = class_scores(observer.detection_feature(tokens), texts)
    golden.near("cls_logits_step0", scores)
    found = []
    for step in range(meta["steps"]):
        found.append(stage.step(features, truth))
        assert stage.optimiser.param_groups[0]["lr"] == pytest.approx(float(golden["lr"][step]))
        if step == 0:
            for key, name in GRADIENTS.items():
                golden.near(key, gradient(stage, name))
    golden.near("loss", [one["loss"] for one in found])
    golden.near("cls_loss", [one["class"] for one in found])
    levels = [[one[f"level {level}"] for level in method.levels] for one in found]
    golden.near("seg_loss_per_level", levels)
    with torch.no_grad():
        first = [meta["class_names"][0]] * meta["batch"]
        evidence = observer.observe(dataclasses.replace(_batch(meta), categories=first))
    method, size = in_domain(method, "industrial"), (meta["image_size"], meta["image_size"])
    golden.near("final_map_after", method.maps(evidence, size))
    golden.near("cls_score_after", (evidence["score"] + 1) / 2)


def _eval(golden: Golden) -> None:
    assert golden.meta["order"] == ["pixel AUC", "pixel AP", "image AUC", "image AP"]
    everything = np.ones(len(golden["image_label"]), bool)
    for domain in DOMAINS:
        scores, row = _evaluated(in_domain(AaClip(), domain), golden, everything)
        golden.near(f"final_image_score_{domain}", scores)
        golden.near(f"result_{domain}", row)
    _, row = _evaluated(in_domain(AaClip(), "medical"), golden, golden["image_label"] == 1)
    golden.near("result_all_abnormal_medical", row)


def _evaluated(method: AaClip, golden: Golden, rows: NDArray[np.bool_]) -> tuple[NDArray[Any], list[float]]:
    """Return the image scores and the four metrics of some rows, in percent of two decimals.

    The authors report 0 for both image metrics where all images are anomalous.
    """
    maps, class_score = golden["pixel_preds"][rows], torch.from_numpy(golden["image_preds"][rows])
    flat = torch.from_numpy(maps).flatten(1)
    extrema = torch.stack([flat.amin(dim=1), flat.amax(dim=1)], dim=1)
    scores = method.image_scores({"score": 2 * class_score - 1}, extrema).numpy()
    found = evaluate(maps, golden["pixel_label"][rows, 0], golden["image_label"][rows], scores)
    values = [found[key] for key in ("pixel_auroc", "pixel_ap", "image_auroc", "image_ap")]
    if golden["image_label"][rows].all():
        assert values[2] is None
        values[2:] = [0.0, 0.0]
    return scores, [100 * round(value, 4) for value in values if value is not None]


def _preprocess(golden: Golden) -> None:
    spec = Preprocess(golden.meta["img_size"])
    image = preprocess(Image.fromarray(golden["image_uint8"]), spec)
    golden.near("image", to_batch_images([image], spec)[0, 0])
    mask = mask_of(golden["mask_uint8"], (spec.size, spec.size), "nearest")
    golden.same("mask", mask, golden["mask"][0] != 0)
