"""Deterministic miniature CLIP weights and inputs for the golden files.

The weights are drawn from ``numpy.random.RandomState``, whose stream NumPy keeps
frozen for ever, one seed per parameter name, so no weight file has to be stored:
every program that loads the same config gets the same bits.  Parameter names and
shapes are those of OpenAI's CLIP and of ``open_clip.CLIP``.

Two sizes cover every method in this folder:

========== ======== ====== ======= ====== ======== ========= ====================
name       embed    layers width   heads  patch    native px stands in for
========== ======== ====== ======= ====== ======== ========= ====================
tiny-l14   96       24     128     2      14       84 (6x6)  ViT-L-14-336 (QuickGELU)
tiny-b16p  80       12     128     2      16       240 (15x15) ViT-B-16-plus-240 (GELU)
========== ======== ====== ======= ====== ======== ========= ====================

The text tower of both: width 128, 2 heads, 12 layers, context 77, vocabulary 49408.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-l14": {
        "embed_dim": 96,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 84, "layers": 24, "width": 128, "head_width": 64, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 12},
    },
    "tiny-b16p": {
        "embed_dim": 80,
        "vision_cfg": {"image_size": 240, "layers": 12, "width": 128, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 12},
    },
}


def draw(
    name: str, shape: tuple[int, ...], std: float, mean: float = 0.0, salt: str = ""
) -> NDArray[np.float32]:
    """Return float32 normal noise seeded by ``salt`` and ``name`` alone."""
    rng = np.random.RandomState(zlib.crc32(f"{salt}/{name}".encode()))
    return (mean + std * rng.standard_normal(shape)).astype(np.float32)


def _block(prefix: str, width: int, layers: int) -> dict[str, tuple[tuple[int, ...], float, float]]:
    out_std = 0.5 * width**-0.5
    return {
        f"{prefix}.ln_1.weight": ((width,), 0.1, 1.0),
        f"{prefix}.ln_1.bias": ((width,), 0.1, 0.0),
        f"{prefix}.attn.in_proj_weight": ((3 * width, width), 1.5 * width**-0.5, 0.0),
        f"{prefix}.attn.in_proj_bias": ((3 * width,), 0.1, 0.0),
        f"{prefix}.attn.out_proj.weight": ((width, width), out_std, 0.0),
        f"{prefix}.attn.out_proj.bias": ((width,), 0.05, 0.0),
        f"{prefix}.ln_2.weight": ((width,), 0.1, 1.0),
        f"{prefix}.ln_2.bias": ((width,), 0.1, 0.0),
        f"{prefix}.mlp.c_fc.weight": ((4 * width, width), width**-0.5, 0.0),
        f"{prefix}.mlp.c_fc.bias": ((4 * width,), 0.1, 0.0),
        f"{prefix}.mlp.c_proj.weight": ((width, 4 * width), out_std, 0.0),
        f"{prefix}.mlp.c_proj.bias": ((width,), 0.05, 0.0),
    }


def state_dict(name: str) -> dict[str, NDArray[np.float32]]:
    """Return the float32 state dict of config ``name``, keyed as OpenAI's CLIP keys it."""
    config = CONFIGS[name]
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    grid = vision["image_size"] // vision["patch_size"]
    width, patch = vision["width"], vision["patch_size"]
    spec: dict[str, tuple[tuple[int, ...], float, float]] = {
        "visual.class_embedding": ((width,), 1.0, 0.0),
        "visual.positional_embedding": ((grid * grid + 1, width), 0.3, 0.0),
        "visual.proj": ((width, embed), width**-0.5, 0.0),
        "visual.conv1.weight": ((width, 3, patch, patch), 2.0 * (3 * patch * patch) ** -0.5, 0.0),
        "visual.ln_pre.weight": ((width,), 0.1, 1.0),
        "visual.ln_pre.bias": ((width,), 0.1, 0.0),
        "visual.ln_post.weight": ((width,), 0.1, 1.0),
        "visual.ln_post.bias": ((width,), 0.1, 0.0),
        "token_embedding.weight": ((text["vocab_size"], text["width"]), 1.0, 0.0),
        "positional_embedding": ((text["context_length"], text["width"]), 0.3, 0.0),
        "ln_final.weight": ((text["width"],), 0.1, 1.0),
        "ln_final.bias": ((text["width"],), 0.1, 0.0),
        "text_projection": ((text["width"], embed), text["width"] ** -0.5, 0.0),
    }
    for layer in range(vision["layers"]):
        spec |= _block(f"visual.transformer.resblocks.{layer}", width, vision["layers"])
    for layer in range(text["layers"]):
        spec |= _block(f"transformer.resblocks.{layer}", text["width"], text["layers"])
    weights = {key: draw(key, *value, salt=name) for key, value in spec.items()}
    weights["logit_scale"] = np.array(np.log(100.0), np.float32)
    return weights


def images(seed: int, batch: int, size: int) -> NDArray[np.float32]:
    """Return normalised float32 inputs ``(batch, 3, size, size)``: smooth noise plus one bright blob each."""
    rng = np.random.RandomState(seed)
    coarse = rng.standard_normal((batch, 3, 8, 8))
    grid = np.linspace(0, 7, size)
    low = np.floor(grid).astype(int).clip(0, 6)
    frac = grid - low
    rows = coarse[:, :, low] * (1 - frac)[:, None] + coarse[:, :, low + 1] * frac[:, None]
    smooth = rows[..., low] * (1 - frac) + rows[..., low + 1] * frac
    yy, xx = np.mgrid[0:size, 0:size] / size
    centre = rng.uniform(0.2, 0.8, (batch, 2))
    radius = rng.uniform(0.05, 0.2, batch)
    blob = np.exp(
        -((yy[None] - centre[:, 0, None, None]) ** 2 + (xx[None] - centre[:, 1, None, None]) ** 2)
        / (2 * radius[:, None, None] ** 2)
    )
    fine = 0.2 * rng.standard_normal((batch, 3, size, size))
    inputs: NDArray[np.float32] = (smooth + 2.0 * blob[:, None] + fine).astype(np.float32)
    return inputs
