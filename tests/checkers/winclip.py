"""WinCLIP against two re-implementations that agree (there is no official code)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.winclip import aggregate, embed_windows, window_index
from tests.checkers.common import Golden, Meta, opened
from tests.kit import tiny
from zsadbench.clip.prompts import encode, ensemble
from zsadbench.method.protocol import Evidence, Method
from zsadbench.method.registry import Resolved, resolve, wordings

TOLERANCE = 1e-4


@torch.inference_mode()
def check(path: Path) -> None:
    """Compare one golden file, whatever its kind."""
    with opened(path, TOLERANCE) as golden:
        meta = golden.meta
        if meta["kind"] == "fewshot":
            golden.leave("fs_")  # WinCLIP+ is no zero-shot method; any other array would be one
        elif meta["kind"] == "text":
            _check_text(golden)
        elif meta["kind"] == "maps":
            _check_maps(golden)
        else:
            _check_embeddings(golden)
            if "preset" in meta:
                _check_preset(golden, meta["preset"], meta["scales"])


def variant(name: str, meta: Meta, scales: Sequence[int]) -> Resolved:
    """Return a variant of the card (``paper22`` is its reference) on the miniature of ``meta``."""
    spec = "winclip" if name == "paper22" else f"winclip@{name}"
    settings = {"size": meta["size"], "scales": tuple(scales)}
    return resolve(spec, backbone=meta["config"], weights="random", settings=settings)


def observer(name: str, meta: Meta, scales: Sequence[int] = (2, 3)) -> Any:
    """Return the prepared observer of a variant for the file's class."""
    resolved = variant(name, meta, scales)
    words = wordings(resolved, {meta["cls"]: meta["cls"]})
    return resolved.method.prepare(tiny.clip(meta["config"]), words)


def _check_text(golden: Golden) -> None:
    meta = golden.meta
    clip = tiny.clip(meta["config"])
    for name, preset in meta["presets"].items():
        observe = observer(name, meta)
        method, features = observe.method, []
        for states, which in ((method.normal, "normal"), (method.anomalous, "anomaly")):
            prompts = ensemble(states, method.templates, preset["class_name"])
            assert prompts == preset.get(f"prompts_{which}", prompts)
            features.append(encode(clip, prompts))
            if (key := f"{name}/prompt_features_{which}") in golden:
                golden.near(key, features[-1])
        if method.normalise_prompts:
            features = [F.normalize(one, dim=-1) for one in features]
        mean = torch.stack([one.mean(dim=0) for one in features])
        golden.near(f"{name}/text_mean", mean)
        anchors = observe.anchors.table[meta["cls"]]
        golden.near(f"{name}/text_features", anchors)


def _images(meta: Meta) -> Tensor:
    return tiny.images(meta["seed"], meta["batch"], meta["size"])


@cache
def _windows(config: str, seed: int, batch: int, size: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the embeddings of all windows of ``k`` patches, and their patch numbers."""
    clip, images = tiny.clip(config), tiny.images(seed, batch, size)
    index = window_index(clip.vision.grid(images), k)
    return embed_windows(clip, clip.vision.embed(images), index), index


def _input(meta: Meta) -> tuple[str, int, int, int]:
    return meta["config"], meta["seed"], meta["batch"], meta["size"]


def _check_embeddings(golden: Golden) -> None:
    meta = golden.meta
    vision = tiny.clip(meta["config"]).vision
    image = vision.encode(vision.embed(_images(meta)))
    golden.near("image_embedding", image)
    for key in (key for key in golden.arrays if key.startswith("window_embedding_k")):
        k, _, first = key.removeprefix("window_embedding_k").partition("_first")
        found, _ = _windows(*_input(meta), int(k))
        golden.near(key, found[:, : int(first or found.shape[1])])


def _check_maps(golden: Golden) -> None:
    meta = golden.meta
    for name in meta["presets"]:
        _check_preset(golden.below(f"{name}/"), name, meta["scales"])
    _check_cao(golden)
    if "alt_mala/image_score" in golden:
        method = observer("paper22_t001", meta)
        score = method.observe(_batch(meta))["score"]
        golden.near("alt_mala/image_score", score)


def _batch(meta: Meta) -> Any:
    return tiny.batch(_images(meta), [meta["cls"]] * meta["batch"])


def _check_preset(golden: Golden, name: str, scales: list[int]) -> None:
    """Compare window scores, aggregated maps, the image score and the rendered map of one preset."""
    meta = golden.meta
    observe = observer(name, meta, scales)
    anchors = observe.anchors.of([meta["cls"]] * meta["batch"])
    for k in scales:
        embeddings, index = _windows(*_input(meta), k)
        scores = observe.scores(embeddings, anchors)
        grid = observe.clip.vision.grid(_images(meta))
        golden.near(f"window_score_k{k}", scores)
        golden.near(f"map_k{k}", aggregate(scores, index, grid))
    evidence = observe.observe(_batch(meta))
    golden.near("map_lowres", evidence["map"])
    score = observe.method.image_scores(evidence, torch.zeros(meta["batch"], 2))
    golden.near("image_score", score)
    for key in ("map_full", "map_full_corner"):
        if key in golden:
            _check_pixels(golden, key, observe.method, evidence)


def _check_pixels(golden: Golden, key: str, method: Method, evidence: Evidence) -> None:
    """Compare the part of the maps that is kept, from the first image and the upper left corner on."""
    size = (golden.meta["size"], golden.meta["size"])
    kept = tuple(slice(length) for length in golden[key].shape)
    golden.near_maps(key, lambda: method.maps(evidence, size)[kept])


def _check_cao(golden: Golden) -> None:
    """Compare the variant that averages normal probabilities; its printed maps are halved."""
    meta = golden.meta
    observe = observer("cao", meta, meta["scales"])
    anchors = observe.anchors.table[meta["cls"]]
    golden.near("alt_cao/text_features", anchors)
    evidence = observe.observe(_batch(meta))
    golden.near("alt_cao/textual_map", evidence["map"])
    golden.near("alt_cao/map_lowres", evidence["map"] / 2)
    side = meta["alt"]["alt_cao"]["out_size"]
    maps = observe.method.maps(evidence, (side, side)).flatten(1)
    score = observe.method.image_scores(evidence, torch.stack([maps.amin(1), maps.amax(1)], dim=1))
    golden.near("alt_cao/image_score", score / 2)
