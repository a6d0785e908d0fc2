"""Checks of the Bayes-PFL arrays: every file states in ``meta`` what it was made from and holds its draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from methods._bayes_prompts import SIDES, Drawn, context_bias, context_flow, encode_texts, state_bias
from methods.bayes_pfl import (
    MINMAX_EPSILON,
    BayesPfl,
    BayesPflObserver,
    asked,
    checkpoint_shapes,
    class_logits,
    differences,
    fused,
    patch_tokens,
    probability,
    projected,
)
from methods.clip_ad import layer_maps, minmax
from tests.checkers.common import (
    Golden,
    Meta,
    drawn_batch,
    mask_of,
    opened,
    padded,
    prepared,
    run_pictures,
)
from tests.kit import tiny
from zsadbench.clip.towers import Clip
from zsadbench.images.loader import preprocess, to_batch_images
from zsadbench.inputs import Backbone, Preprocess
from zsadbench.metrics import evaluate
from zsadbench.metrics.image import image_metrics
from zsadbench.training.variations import composed

TOLERANCE, LOOSER = 2e-5, 5e-5
METRICS = (
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1max",
    "pixel_iou",
    "image_auroc",
    "image_ap",
    "image_f1max",
)
WORDS = {"metal_nut": "metal nut", "pipe_fryum": "pipe fryum", "chewinggum": "chewing gum"} | {
    **dict.fromkeys(("macaroni1", "macaroni2"), "macaroni"),
    **dict.fromkeys(("pcb1", "pcb2", "pcb3", "pcb4"), "printed circuit board"),
}


def check(path: Path) -> None:
    """Compare one file with this implementation."""
    with opened(path, LOOSER if "end2end" in path.stem else TOLERANCE) as golden:
        golden.hand_to(golden.word(1), _infer, _preprocess, _end2end)


def words(classes: Sequence[str]) -> dict[str, str]:
    """Return the words of each class, as the authors' table and our descriptions have them."""
    return {name: WORDS.get(name, name) for name in classes}


def spread(name: str, shape: tuple[int, ...]) -> float:
    """Return the standard deviation of a learned tensor in the files; temperatures have the mean 4."""
    if name.startswith("temperature"):
        return 0.2
    if name.startswith("prompt_") or name.endswith(".state"):
        return 1.0
    if name.endswith(("amor_b", ".bias")):
        return 1.0 if name.startswith("RCA") else 0.1
    if ".amor_u" in name or ".amor_w" in name:
        size = 0.3 if ".amor_u" in name else 0.1
        return size * shape[1] ** -0.5 if name.endswith(".weight") else size
    return (100.0 if name == "RCA.q_proj_pre.weight" else 1.0) * float(shape[1] ** -0.5)


def learned(method: BayesPfl, clip: Clip, meta: Meta) -> dict[str, Tensor]:
    """Return the learned parameters as the noise that ``meta`` describes."""
    return {
        name: tiny.draw(
            name, shape, spread(name, shape), 4.0 * name.startswith("temperature"), salt=meta["extras_salt"]
        )
        for name, shape in checkpoint_shapes(method, clip).items()
    }


def setup(meta: Meta, **fields: Any) -> tuple[BayesPfl, Clip, dict[str, Tensor]]:
    """Return method, CLIP and learned parameters of a file."""
    assert meta["position"].split(",")[:2] == ["bicubic", " antialias"]
    backbone = Backbone(meta["config"], "random", meta["activation"])
    given = {
        "prompts": meta["prompt_num"],
        "context": meta["prompt_context_len"],
        "state": meta["prompt_state_len"],
        "flows": meta["num_flows"],
        "draws": meta["sample_num"],
        "features": tuple(meta["features_list"]),
        "sigma": float(meta["sigma"]),
        "weight": meta["alpha"],
    }
    method = BayesPfl(
        **(given | fields), backbone=backbone, preprocess=Preprocess(meta["size"]), checkpoint=""
    )
    clip = tiny.clip(meta["config"], meta["activation"])
    return method, clip, learned(method, clip, meta)


def with_draws(
    observer: BayesPflObserver, context: Mapping[str, NDArray[Any]], state: NDArray[Any]
) -> BayesPflObserver:
    """Return ``observer`` with stored draws: ``context`` (R, E) by image key, ``state`` (2, R, E)."""

    def draw(key: str, what: str, number: int) -> Tensor:
        rows = context[key] if what == "context" else state[SIDES.index(what)]
        return torch.from_numpy(rows[number])

    return dataclasses.replace(observer, draw=draw)


def _infer(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = setup(meta)
    batch = drawn_batch(meta["image_seed"], meta["classes"], meta["size"])
    observer = prepared(method, "bayes-pfl", clip, tensors, words(meta["classes"]))
    _draws_in_sequence(golden)
    stored = dict(zip(batch.keys, golden["eps_context"], strict=True))
    observer = with_draws(observer, stored, golden["eps_state"])
    tokens = observer.tokens(meta["classes"])
    golden.same("tokens", padded(tokens, golden["tokens"].shape[1]))

    trace = clip.vision.trace(batch)
    image, patches = clip.vision.project(trace.output[:, 0]), patch_tokens(method, trace)
    golden.near("image_feature", image)
    context = context_bias(tensors, image, observer.noise("context", batch.keys))
    _check_biases(golden, tensors, image, context)
    texts = encode_texts(clip, tensors, tokens, context.end, observer.state)
    pairs = torch.unflatten(texts, 2, (-1, method.prompts))
    golden.near("text_feature", pairs[:, :, golden["draw_index"]])
    _check_scores(golden, method, tensors, texts, image, patches)
    _check_patches(golden, method, tensors, texts[:1], [own[:1] for own in patches])

    evidence, size = observer.observe(batch), (meta["size"], meta["size"])
    golden.near("image_prob_stage2", evidence["score"])
    assert meta["top_k"] == [observer.pixels(name) for name in meta["classes"]]
    golden.near("top_mean", evidence["top"])
    raw = dataclasses.replace(method, sigma=0.0)
    golden.near_maps("raw_map_strided", lambda: raw.maps(evidence, size)[:, ::2, ::2])
    golden.near_maps("final_map_strided", lambda: method.maps(evidence, size)[:, ::3, ::3])


def _draws_in_sequence(golden: Golden) -> None:
    """Repeat the authors' one stream of random numbers, which ours do not follow."""
    count, draws, width = golden["eps_context"].shape
    torch.manual_seed(golden.meta["draw_seed"])
    stream = torch.stack([torch.randn(1, width)[0] for _ in range(count * 3 * draws)])
    of_image = stream.view(count, 3, draws, width)
    golden.same("eps_context", of_image[:, 0])
    golden.same("eps_state", of_image[0, 1:])


def _check_biases(golden: Golden, tensors: Mapping[str, Tensor], image: Tensor, context: Drawn) -> None:
    flow, shown = context_flow(tensors, image), golden["draw_index"]
    golden.near("context_u", flow.u[0, [0, -1]])
    golden.near("context_w", flow.w[0, [0, -1]])
    golden.near("context_b", flow.b)
    state = state_bias(tensors, golden.tensor("eps_state"))
    for name, found in (("context", context), ("state", state)):
        golden.near(f"{name}_mean", found.mean)
        golden.near(f"{name}_var", found.var)
        golden.near(f"{name}_zk", found.end)
    golden.near("context_z0", context.start[:, shown])


def _check_scores(
    golden: Golden,
    method: BayesPfl,
    tensors: Mapping[str, Tensor],
    texts: Tensor,
    image: Tensor,
    patches: Sequence[Tensor],
) -> None:
    def unit(name: str, x: Tensor) -> Tensor:
        return F.normalize(F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"]), dim=-1)

    last = int(golden["draw_index"][-1])
    mapped = torch.unflatten(unit("class_mapping", texts[0]), 1, (-1, method.prompts))
    golden.near("class_text", mapped[:, last : last + 1])
    pooled = fused(tensors, patches)
    golden.near("fuse_feature", pooled)
    golden.near("image_projected", unit("image_mapping", image + pooled))
    for number in (1, 2):
        staged = dataclasses.replace(method, stage=number)
        logits = class_logits(staged, tensors, texts, image, patches)
        golden.near(f"class_logit_stage{number}", logits, tolerance=LOOSER)
        golden.near(f"image_prob_stage{number}", probability(logits))


def _check_patches(
    golden: Golden,
    method: BayesPfl,
    tensors: Mapping[str, Tensor],
    texts: Tensor,
    patches: Sequence[Tensor],
) -> None:
    """Compare what the first image's patches and texts make of each other."""
    shown, last = golden["patch_index"], int(golden["draw_index"][-1])
    golden.near("patch_stream", torch.cat(list(patches))[:, shown])
    unit = [projected(tensors, number, tokens) for number, tokens in enumerate(patches)]
    golden.near("patch_projected", torch.cat(unit)[:, shown])
    answers = torch.cat([asked(method, tensors, own, texts) for own in unit])
    pairs = torch.unflatten(answers, 2, (-1, method.prompts))
    golden.near("rca_text", pairs[:, :, last : last + 1, :2])
    logits = differences(method, tensors, patches, texts)
    golden.near("pair_logit", logits[0], tolerance=LOOSER)
    side, size = round(logits.shape[-1] ** 0.5), (golden.meta["size"], golden.meta["size"])
    maps = layer_maps(torch.unflatten(logits[0], -1, (side, side)), size).mean(dim=1)
    golden.near("layer_map_strided", maps[:, ::5, ::5])


def _preprocess(golden: Golden) -> None:
    meta = golden.meta
    spec = Preprocess(meta["size"], mean=tuple(meta["mean"]), std=tuple(meta["std"]))
    read = to_batch_images([preprocess(Image.fromarray(golden["image"]), spec)], spec)
    golden.near("tensor", read[0, 0], tolerance=1e-6)
    mask = mask_of(golden["mask"], (meta["size"], meta["size"]), "bilinear50")
    golden.same("mask_binary", mask, golden["mask_binary"][0] > 0)
    golden.same("mask_tensor", mask, golden["mask_tensor"][0] > 0.5)
    tiles = [
        (Image.fromarray(golden[f"mosaic_image_{n}"]), golden[f"mosaic_mask_{n}"] > 0)
        for n in meta["mosaic_order"]
    ]
    for kind in ("image", "mask"):
        golden.leave(f"mosaic_{kind}_")  # tiles are drawn with replacement: not every file is used
    image, mosaic = composed(tiles)
    golden.same("mosaic", np.asarray(image))
    golden.same("mosaic_mask", mosaic, golden["mosaic_mask"] > 0)


def _end2end(golden: Golden) -> None:
    meta = golden.meta
    method, clip, tensors = setup(meta)
    observer = prepared(method, "bayes-pfl", clip, tensors, words(meta["classes"]))
    classes = np.asarray(meta["class_of_image"])
    observer = with_draws(observer, _by_key(golden["eps_context"]), golden["eps_state"])
    found = run_pictures(golden, method, observer, meta["class_of_image"])
    golden.near("final_maps_strided", [found.maps[classes == name][0, ::2, ::2] for name in meta["classes"]])

    evidence = observer.observe(tiny.batch(found.inputs, list(classes)))
    golden.near("image_prob", evidence["score"])
    scores = {name: _scores(method, evidence, classes == name) for name in meta["classes"]}
    mixed = [name for name in meta["classes"] if name not in meta["all_anomalous"]]
    golden.near("image_scores", [scores[name] for name in mixed])
    rows = []
    for name in meta["classes"]:
        own = classes == name
        rows.append(_row(found.maps[own], found.masks[own], golden["labels"][own], scores[name]))
    assert meta["metrics"] == list(METRICS)
    golden.near("metrics", rows, tolerance=2e-3, of="one")
    golden.near("printed_mean", 100 * np.mean(rows, axis=0), tolerance=0.2, of="one")

    assert meta["headct_classes"] == mixed
    chosen = np.isin(classes, mixed)
    _headct(golden, observer, found.inputs[torch.from_numpy(chosen)], classes[chosen])


def _headct(golden: Golden, observer: BayesPflObserver, inputs: Tensor, classes: NDArray[np.str_]) -> None:
    """Compare the same pictures as a dataset without masks: the probability, which the code min-maxes."""
    own = golden.below("headct_")
    observer = with_draws(observer, _by_key(own["eps_context"]), golden["eps_state"])
    p = observer.observe(tiny.batch(inputs, list(classes)))["score"]
    own.near("image_prob", p)
    each = [minmax(p[torch.from_numpy(classes == name)], MINMAX_EPSILON) for name in dict.fromkeys(classes)]
    own.near("image_scores", torch.stack(each))
    labels = golden["labels"][np.isin(golden.meta["class_of_image"], classes)]
    rows = []
    for name in dict.fromkeys(classes):
        chosen = classes == name
        found = image_metrics(p.numpy()[chosen], labels[chosen])
        rows.append([100 * (found[key] or 0.0) for key in METRICS[-3:]])
    own.near("metrics", rows, tolerance=0.2, of="one")


def _by_key(rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{number}.png": row for number, row in enumerate(rows)}


def _scores(method: BayesPfl, evidence: Mapping[str, Tensor], chosen: NDArray[np.bool_]) -> NDArray[Any]:
    rows = torch.from_numpy(chosen)
    own = {name: value[rows] for name, value in evidence.items()}
    return method.image_scores(own, torch.zeros(int(rows.sum()), 2)).numpy()


def _row(maps: NDArray[Any], masks: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any]) -> list[float]:
    """Return the metrics in the order of ``METRICS``, those of images 0 without a normal one, as theirs.

    Their IoU is that of the pixels above the threshold of the greatest F1, without those on it.
    """
    found = dict(evaluate(maps, masks, labels, scores))
    above = maps > np.float32(found["pixel_f1max_threshold"] or 0.0)
    found["pixel_iou"] = (above & masks).sum() / (above | masks).sum()
    defined = METRICS if not labels.all() else METRICS[:4]
    return [float(found[name] or 0.0) if name in defined else 0.0 for name in METRICS]
