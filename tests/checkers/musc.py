"""Checks of the MuSc arrays: every file states in ``meta`` what it was made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from methods.clip_ad import minmax
from methods.musc import (
    MuSc,
    MuScObserver,
    kept,
    mean_distance,
    mutual_scores,
    nearest,
    normed,
    patches,
    rescored,
)
from tests.checkers.common import Golden, Meta, activation_of, drawn_batch, mask_of, opened
from tests.kit import tiny
from zsadbench.images.batches import to_batch_images
from zsadbench.images.loader import preprocess
from zsadbench.inputs import Backbone, Batch
from zsadbench.maps import exact_maps
from zsadbench.method import Evidence
from zsadbench.metrics import evaluate, legacy_aupro200

TOLERANCE = 2e-5
END_TO_END = 2e-4
STORED = {"map": 1e-4, "score": 1e-3}
"""Where tokens were kept in half precision between ``observe`` and ``relate``, as the engine has them."""
METRICS = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro")
CPU = torch.device("cpu")


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, TOLERANCE) as golden:
        {"parts": _parts, "end2end": _end2end}.get(golden.word(1), _stages)(golden)


def _setup(meta: Meta, categories: list[str]) -> tuple[MuSc, MuScObserver]:
    backbone = Backbone(meta["config"], "random", activation_of(meta), "bicubic")
    method = MuSc(
        backbone,
        dataclasses.replace(MuSc().preprocess, size=meta["size"]),
        features=tuple(meta["features_list"]),
        degrees=tuple(meta["r_list"]),
        share=meta["topmin_max"],
        windows=tuple(meta["k_list"]),
    )
    clip = tiny.clip(meta["config"], backbone.activation, backbone.position)
    return method, method.prepare(clip, dict.fromkeys(categories, "any"))


def _exact(observer: MuScObserver, batch: Batch) -> dict[str, Tensor]:
    """Return what ``observe`` does, before its tokens are rounded to half precision."""
    vision, features = observer.clip.vision, observer.method.features
    trace, grid = vision.trace(batch), vision.grid(batch.images)
    pictures = [normed(trace.after(layer)[:, 1:], grid) for layer in features]
    return {**observer.observe(batch), "tokens": torch.stack(pictures, dim=1)}


def _scores(method: MuSc, evidence: Evidence, size: int) -> tuple[Tensor, Tensor]:
    """Return the exact maps of a category and its image scores."""
    with exact_maps():
        maps = method.maps(evidence, (size, size))
    extrema = torch.stack([maps.amin((1, 2)), maps.amax((1, 2))], dim=1)
    return maps, method.image_scores(evidence, extrema)


def _stages(golden: Golden) -> None:
    meta = golden.meta
    method, observer = _setup(meta, meta["classes"])
    batch, chosen, size = (
        drawn_batch(meta["image_seed"], meta["classes"], meta["size"]),
        meta["patch_index"],
        meta["size"],
    )
    vision = observer.clip.vision
    trace = vision.trace(batch)
    places = [0, *(1 + index for index in chosen)]
    golden.near("tokens", torch.stack([trace.after(layer)[:, places] for layer in method.features]))
    evidence = _exact(observer, batch)
    golden.near("class_feature", evidence["token"])
    tokens = evidence["tokens"]
    for degree in method.degrees:
        made = [[patches(one, degree)[chosen] for one in tokens[:, b]] for b in range(tokens.shape[1])]
        golden.near(f"lnamd_r{degree}", torch.stack([torch.stack(one) for one in made]))

    _nearest(golden, method, tokens)
    msm = [
        [mutual_scores(tokens[:, b], r, method.share, _quiet) for b in range(tokens.shape[1])]
        for r in method.degrees
    ]
    golden.near("msm", torch.stack([torch.stack(one) for one in msm]))
    assert kept(len(tokens) - 1, method.share) == meta["kept"]

    related = method.relate(evidence, CPU, _quiet)
    golden.near("grid", related["map"])
    maps, score = _scores(method, related, size)
    stride = meta["map_stride"]
    golden.near_maps("final_map", lambda: method.maps(related, (size, size))[:, ::stride, ::stride])
    golden.near("map_max", maps.amax((1, 2)))
    golden.near("similarity", evidence["token"] @ evidence["token"].T)
    _rescored(golden, golden.tensor("map_max").double(), golden.tensor("class_feature"))
    golden.near("image_score", score)

    stored = method.relate(observer.observe(batch), CPU, _quiet)
    maps, score = _scores(method, stored, size)
    golden.near("final_map", maps[:, ::stride, ::stride], tolerance=STORED["map"])
    golden.near("image_score", score, tolerance=STORED["score"])


def _nearest(golden: Golden, method: MuSc, tokens: Tensor) -> None:
    about = golden.meta["nearest_of"]
    pictures = tokens[:, method.features.index(about["layer"])]
    for tile in (1, 3, len(tokens)):
        found = [(2 - 2 * one).clamp(min=0).sqrt() for one in nearest(pictures, about["r"], tile, half=False)]
        whole = [torch.cat([one[:i], torch.zeros_like(one[:1]), one[i:]]) for i, one in enumerate(found)]
        golden.near("nearest", torch.stack(whole))


def _rescored(golden: Golden, scores: Tensor, tokens: Tensor) -> None:
    """Compare the image scores of every list of windows that the file has."""
    for name in [name for name in golden.arrays if name.startswith("rescored_k")]:
        windows = [int(one) for one in name.removeprefix("rescored_k").split("_")]
        golden.near(name, scores if windows == [0] else rescored(minmax(scores), tokens, windows))


def _parts(golden: Golden) -> None:
    features, share = golden.tensor("features"), golden.meta["topmin_max"]
    for name in [name for name in golden.arrays if name.startswith("msm_n")]:
        several = features[: int(name.removeprefix("msm_n"))]
        # Unit features of one row of patches: neither the norm nor a neighbourhood of one changes them.
        found = [mean_distance(one, share) for one in nearest(several[:, None], 1, 4, half=False)]
        golden.near(name, torch.stack(found))
    golden.same("kept", [kept(others, share) for others in range(len(golden["kept"]))])
    _rescored(golden, golden.tensor("scores"), golden.tensor("class_feature"))


def _end2end(golden: Golden) -> None:
    meta, size = golden.meta, golden.meta["size"]
    method, observer = _setup(meta, meta["categories"])
    files = [preprocess(Image.fromarray(image), method.preprocess) for image in golden["images"]]
    inputs = to_batch_images(files, method.preprocess)
    golden.near("inputs_first", inputs[0, 0])
    masks = np.stack([mask_of(mask, (size, size), "all") for mask in golden["masks"]])
    golden.same("masks_at_size", masks, golden["masks_at_size"] > 0)
    names = np.asarray(meta["category_of"])
    assert list(names) == sorted(names, key=meta["categories"].index)
    maps, scores, rows = [], [], []
    for category in meta["categories"]:
        of = names == category
        batch = tiny.batch(inputs[torch.from_numpy(of)], [category] * int(of.sum()))
        own, score = _scores(method, method.relate(_exact(observer, batch), CPU, _quiet), size)
        maps.append(own)
        scores.append(score)
        rows.append(_metrics(own.numpy(), masks[of], golden["labels"][of], score.numpy()))
    golden.near("final_maps", torch.cat(maps)[:, ::2, ::2], tolerance=END_TO_END)
    golden.near("scores", torch.cat(scores), tolerance=END_TO_END)
    golden.near("metrics", np.asarray(rows, float), tolerance=2e-3, of="one")


def _metrics(maps: NDArray[Any], masks: NDArray[np.bool_], labels: Any, scores: Any) -> list[float | None]:
    exact = dict(evaluate(maps, masks, labels, scores))
    exact["pixel_aupro"] = legacy_aupro200(maps.astype(np.float64), masks)
    return [exact[name] for name in METRICS]


def _quiet(done: float) -> None:
    assert 0 < done <= 1
