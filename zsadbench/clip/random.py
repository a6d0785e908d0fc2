"""Deterministic random weights of both towers, so that everything can be run and timed without a download."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def random_state(name: str, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Return deterministic noise for ``shapes``, scaled so that activations and attention stay lively.

    Each tensor has a generator of its own, seeded by its name (NumPy keeps the stream of RandomState
    frozen), so the bits depend on nothing but (name, seed).
    """
    salt = Path(name).stem if seed == 0 else f"{Path(name).stem}/{seed}"
    width = {"visual.": shapes["visual.class_embedding"][0], "": shapes["token_embedding.weight"][1]}
    return {
        key: _noise(f"{salt}/{key}", key, shape, width["visual." if key.startswith("visual.") else ""])
        for key, shape in shapes.items()
    }


def _noise(salt: str, key: str, shape: tuple[int, ...], width: int) -> Tensor:
    if key == "logit_scale":
        return torch.tensor(np.log(100.0), dtype=torch.float32)
    return _draw(salt, shape, *_spread(key, shape, width))


def _draw(salt: str, shape: tuple[int, ...], std: float, mean: float) -> Tensor:
    rng = np.random.RandomState(zlib.crc32(salt.encode()))
    return torch.from_numpy((mean + std * rng.standard_normal(shape)).astype(np.float32))


def _spread(key: str, shape: tuple[int, ...], width: int) -> tuple[float, float]:
    """Return standard deviation and mean of a parameter's noise."""
    if re.search(r"\bln_\w+\.weight$", key):
        return 0.1, 1.0
    table = (
        ("out_proj.weight", 0.5 * width**-0.5),
        ("c_proj.weight", 0.5 * width**-0.5),
        ("in_proj_weight", 1.5 * width**-0.5),
        ("c_fc.weight", width**-0.5),
        ("out_proj.bias", 0.05),
        ("c_proj.bias", 0.05),
        ("positional_embedding", 0.3),
        ("class_embedding", 1.0),
        ("token_embedding.weight", 1.0),
        ("conv1.weight", 2.0 * float(np.prod(shape[1:])) ** -0.5),
        ("proj", width**-0.5),
        ("text_projection", width**-0.5),
    )
    return next((std for suffix, std in table if key.endswith(suffix)), 0.1), 0.0


def random_second(name: str, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Return deterministic noise for a second tower; ``shapes`` by the names of the authors' hub."""
    salt = name if seed == 0 else f"{name}/{seed}"
    return {key: _draw(f"{salt}/{key}", shape, *_spread_second(key, shape)) for key, shape in shapes.items()}


def _spread_second(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    inputs = float(np.prod(shape[1:])) ** -0.5
    table = (
        ("cls_token", 0.5, 0.0),
        ("register_tokens", 0.5, 0.0),
        ("pos_embed", 0.3, 0.0),
        ("patch_embed.proj.weight", 2.0 * inputs, 0.0),
        ("attn.qkv.weight", 1.5 * inputs, 0.0),
        ("attn.proj.weight", inputs, 0.0),
        ("fc1.weight", inputs, 0.0),
        ("fc2.weight", inputs, 0.0),
        ("attn.proj.bias", 0.05, 0.0),
        ("fc2.bias", 0.05, 0.0),
        ("norm.bias", 0.6, 0.0),
        ("norm.weight", 0.1, 1.0),
        ("norm1.weight", 0.1, 1.0),
        ("norm2.weight", 0.1, 1.0),
        ("gamma", 0.1, 0.3),
    )
    return next(((std, mean) for suffix, std, mean in table if key.endswith(suffix)), (0.1, 0.0))
