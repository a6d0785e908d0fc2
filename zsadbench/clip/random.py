"""Deterministic random CLIP weights, so that everything can be run and timed without a download."""

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
    std, mean = _spread(key, shape, width)
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
