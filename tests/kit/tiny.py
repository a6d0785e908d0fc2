"""Miniature CLIPs with deterministic weights and inputs, loaded once for all tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.kit import tiny_clip
from zsadbench.clip.towers import Clip, load_clip
from zsadbench.inputs import Backbone, Batch

place: tuple[torch.device, torch.dtype] = (torch.device("cpu"), torch.float32)
"""Where the miniatures lie, and the number type of their image towers."""

FEW = {"augment": "false", "normal": "whole {}", "anomalous": "broken {}", "templates": "a {}"}
"""Settings of AnoCLIP and AnoCLIP+ where it is not the method that is tested: one view, two texts."""


def clip(name: str, activation: Any = "auto", position: Any = "bicubic-antialias") -> Clip:
    """Return ``tiny-l14`` (24 blocks, QuickGELU, 84 px) or ``tiny-b16p`` (12 blocks, GELU, 240 px)."""
    return _clip(Backbone(name, "random", activation, position), *place)


@cache
def _clip(backbone: Backbone, device: torch.device, dtype: torch.dtype) -> Clip:
    return load_clip(backbone, device, dtype)


def load(backbone: Backbone, *options: object) -> Clip:
    """Return the miniature called ``backbone``, in place of ``load_clip``."""
    return clip(backbone.name, backbone.activation, backbone.position)


def images(seed: int, batch: int, size: int) -> Tensor:
    """Return normalised inputs (batch, 3, size, size): smooth noise plus one bright blob each."""
    return torch.from_numpy(tiny_clip.images(seed, batch, size))


def batch(inputs: Tensor, categories: list[str]) -> Batch:
    """Return ``inputs`` (B, 3, S, S), or tiles (B, T, 3, S, S), as one batch of whole frames."""
    tiled = inputs if inputs.ndim == 5 else inputs[:, None]
    count, tiles, _, height, width = tiled.shape
    box = torch.tensor([0.0, 0.0, width, height])
    keys = [f"{number}.png" for number in range(count)]
    frame = torch.tensor([[height, width]]).expand(count, 2)
    return Batch(tiled, box.expand(count, tiles, 4), frame, keys, categories)


def draw(name: str, shape: tuple[int, ...], std: float, mean: float = 0.0, salt: str = "golden") -> Tensor:
    """Return float32 normal noise seeded by ``salt`` and ``name`` alone."""
    return torch.from_numpy(np.asarray(tiny_clip.draw(name, shape, std, mean, salt)))
