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

from methods._shared import as_grid
from methods.aa_clip import (
    SCALE,
    AaClip,
    AaClipObserver,
    blur,
    checkpoint_shapes,
    difference,
    encode_prompts,
)
from tests import tiny
from zsadbench.checkpoints import Provenance, save_checkpoint
from zsadbench.clip import Clip
from zsadbench.images import mask_at, preprocess, to_batch_images
from zsadbench.maps import exact_maps, upsample
from zsadbench.method import Backbone, Preprocess
from zsadbench.metrics import evaluate
from zsadbench.prompts import ensemble
from zsadbench.registry import resolve
from zsadbench.samples import Sample

TOLERANCE = 1e-4
DOMAINS = ("industrial", "medical")
Arrays = Mapping[str, NDArray[Any]]


def check(path: Path) -> None:
    """Compare one file with this implementation; losses and training steps are skipped."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    rules = {
        "infer": _infer,
        "tokens": _tokens,
        "eval": _eval,
        "preprocess": _preprocess,
        "losses": _losses,
        "stage1": _training,
        "stage2": _training,
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
    """Check the maps: one level of random features, all of them against the anchors of the first image."""
    features, anchors = (torch.from_numpy(arrays[key]) for key in ("features", "anchors"))
    first = anchors[:1].mT.expand(len(features), -1, -1)
    evidence = {"map": as_grid(difference(features, first))}
    for domain in DOMAINS:
        wanted = arrays[f"test_map_{domain}"][:, 0]
        method = in_domain(AaClip(levels=(24,)), domain)
        close(f"test_map_{domain}", method.maps(evidence, wanted.shape[1:]), wanted)
    _training(arrays, meta)


def _training(arrays: Arrays, meta: Mapping[str, Any]) -> None:
    pytest.skip("training golden")


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
