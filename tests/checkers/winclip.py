"""WinCLIP against two re-implementations that agree (there is no official code)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.winclip import aggregate, embed_windows, window_index
from tests.kit import tiny
from zsadbench.clip.prompts import encode, ensemble
from zsadbench.maps import exact_maps
from zsadbench.method.protocol import Method
from zsadbench.method.registry import Resolved, resolve, wordings

Arrays = Mapping[str, Any]
TOLERANCE = 1e-4


@torch.inference_mode()
def check(path: Path) -> None:
    """Compare one golden file, whatever its kind."""
    golden = np.load(path)
    meta = json.loads(str(golden["meta"]))
    arrays = {key: golden[key] for key in golden.files if key != "meta"}
    if meta["kind"] == "fewshot":
        assert all(key.startswith("fs_") for key in arrays), "zero-shot arrays in a few-shot file"
    elif meta["kind"] == "text":
        _check_text(arrays, meta)
    elif meta["kind"] == "maps":
        _check_maps(arrays, meta)
    else:
        _check_embeddings(arrays, meta)
        if "preset" in meta:
            _check_preset(arrays, meta, meta["preset"], meta["scales"])


def variant(name: str, meta: Arrays, scales: Sequence[int]) -> Resolved:
    """Return a variant of the card (``paper22`` is its reference) on the miniature of ``meta``."""
    spec = "winclip" if name == "paper22" else f"winclip@{name}"
    settings = {"size": meta["size"], "scales": tuple(scales)}
    return resolve(spec, backbone=meta["config"], weights="random", settings=settings)


def observer(name: str, meta: Arrays, scales: Sequence[int] = (2, 3)) -> Any:
    """Return the prepared observer of a variant for the file's class."""
    resolved = variant(name, meta, scales)
    words = wordings(resolved, {meta["cls"]: meta["cls"]})
    return resolved.method.prepare(tiny.clip(meta["config"]), words)


def _check_text(arrays: Arrays, meta: Arrays) -> None:
    clip = tiny.clip(meta["config"])
    for name, preset in meta["presets"].items():
        observe = observer(name, meta)
        method, features = observe.method, []
        for states, which in ((method.normal, "normal"), (method.anomalous, "anomaly")):
            prompts = ensemble(states, method.templates, preset["class_name"])
            assert prompts == preset.get(f"prompts_{which}", prompts)
            features.append(encode(clip, prompts))
            if (key := f"{name}/prompt_features_{which}") in arrays:
                tiny.near(key, features[-1], arrays[key], TOLERANCE)
        if method.normalise_prompts:
            features = [F.normalize(one, dim=-1) for one in features]
        mean = torch.stack([one.mean(dim=0) for one in features])
        tiny.near(f"{name}/text_mean", mean, arrays[f"{name}/text_mean"], TOLERANCE)
        anchors = observe.anchors.table[meta["cls"]]
        tiny.near(f"{name}/text_features", anchors, arrays[f"{name}/text_features"], TOLERANCE)


def _images(meta: Arrays) -> Tensor:
    return tiny.images(meta["seed"], meta["batch"], meta["size"])


@cache
def _windows(config: str, seed: int, batch: int, size: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the embeddings of all windows of ``k`` patches, and their patch numbers."""
    clip, images = tiny.clip(config), tiny.images(seed, batch, size)
    index = window_index(clip.vision.grid(images), k)
    return embed_windows(clip, clip.vision.embed(images), index), index


def _input(meta: Arrays) -> tuple[str, int, int, int]:
    return meta["config"], meta["seed"], meta["batch"], meta["size"]


def _check_embeddings(arrays: Arrays, meta: Arrays) -> None:
    vision = tiny.clip(meta["config"]).vision
    image = vision.encode(vision.embed(_images(meta)))
    tiny.near("image_embedding", image, arrays["image_embedding"], TOLERANCE)
    for key in (key for key in arrays if key.startswith("window_embedding_k")):
        k, _, first = key.removeprefix("window_embedding_k").partition("_first")
        found, _ = _windows(*_input(meta), int(k))
        tiny.near(key, found[:, : int(first or found.shape[1])], arrays[key], TOLERANCE)


def _check_maps(arrays: Arrays, meta: Arrays) -> None:
    for name in meta["presets"]:
        stage = {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{name}/")}
        _check_preset(stage, meta, name, meta["scales"])
    _check_cao(arrays, meta)
    if "alt_mala/image_score" in arrays:
        method = observer("paper22_t001", meta)
        score = method.observe(_batch(meta))["score"]
        tiny.near("alt_mala/image_score", score, arrays["alt_mala/image_score"], TOLERANCE)


def _batch(meta: Arrays) -> Any:
    return tiny.batch(_images(meta), [meta["cls"]] * meta["batch"])


def _check_preset(arrays: Arrays, meta: Arrays, name: str, scales: list[int]) -> None:
    """Compare window scores, aggregated maps, the image score and the rendered map of one preset."""
    observe = observer(name, meta, scales)
    anchors = observe.anchors.of([meta["cls"]] * meta["batch"])
    for k in scales:
        embeddings, index = _windows(*_input(meta), k)
        scores = observe.scores(embeddings, anchors)
        grid = observe.clip.vision.grid(_images(meta))
        tiny.near(f"{name}/window_score_k{k}", scores, arrays[f"window_score_k{k}"], TOLERANCE)
        tiny.near(f"{name}/map_k{k}", aggregate(scores, index, grid), arrays[f"map_k{k}"], TOLERANCE)
    evidence = observe.observe(_batch(meta))
    tiny.near(f"{name}/map_lowres", evidence["map"], arrays["map_lowres"], TOLERANCE)
    score = observe.method.image_scores(evidence, torch.zeros(meta["batch"], 2))
    tiny.near(f"{name}/image_score", score, arrays["image_score"], TOLERANCE)
    _check_pixels(observe.method, evidence, arrays, meta["size"])


def _check_pixels(method: Method, evidence: Arrays, arrays: Arrays, size: int) -> None:
    for exact in (False, True):
        with exact_maps(exact):
            maps = method.maps(evidence, (size, size))
        for key in {"map_full", "map_full_corner"} & arrays.keys():
            count, height, width = arrays[key].shape
            tiny.near(key, maps[:count, :height, :width], arrays[key], TOLERANCE)


def _check_cao(arrays: Arrays, meta: Arrays) -> None:
    """Compare the variant that averages normal probabilities; its printed maps are halved."""
    observe = observer("cao", meta, meta["scales"])
    anchors = observe.anchors.table[meta["cls"]]
    tiny.near("alt_cao/text_features", anchors, arrays["alt_cao/text_features"], TOLERANCE)
    evidence = observe.observe(_batch(meta))
    tiny.near("alt_cao/textual_map", evidence["map"], arrays["alt_cao/textual_map"], TOLERANCE)
    tiny.near("alt_cao/map_lowres", evidence["map"] / 2, arrays["alt_cao/map_lowres"], TOLERANCE)
    side = meta["alt"]["alt_cao"]["out_size"]
    maps = observe.method.maps(evidence, (side, side)).flatten(1)
    score = observe.method.image_scores(evidence, torch.stack([maps.amin(1), maps.amax(1)], dim=1))
    tiny.near("alt_cao/image_score", score / 2, arrays["alt_cao/image_score"], TOLERANCE)
