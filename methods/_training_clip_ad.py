"""How SDP+ (Chen et al., arXiv 2311.00453) and APRIL-GAN (arXiv 2305.17382) learn their linear layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zsadbench.clip import AuthorTable, Clip, Trace
from zsadbench.inputs import Batch, Count, Positive, Seed, Share
from zsadbench.maps import render
from zsadbench.training import Features, Mosaic, Stage, Truth, dice, focal, leaves, two_way

from ._shared import Anchors, as_grid
from .april_gan import AprilGan, check_layers
from .clip_ad import (
    ClipAdObserver,
    ClipAdPlus,
    check_stages,
    checkpoint_shapes,
    inner_layers,
    layer_logits,
    linear_layers,
)


@dataclass(frozen=True)
class LinearRecipe:
    """Adam at a constant rate on focal plus Dice loss, summed over the layers.

    ``mosaic`` is the share of images replaced by 2 x 2 mosaics of their category.
    """

    epochs: Count = 5
    batch_size: Count = 8
    seed: Seed = 42
    lr: Positive = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    shuffle: bool = False
    mosaic: Share = 0.0

    def stages(self, method: ClipAdPlus | AprilGan, clip: Clip, wordings: Mapping[str, str]) -> list[Stage]:
        """Return the one stage; layers start as torch starts linear layers."""
        learned = leaves(start(checkpoint_shapes(method, clip), self.seed), clip.device)
        anchors, features = _frozen(method, clip, wordings)

        def loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            parts = layer_losses(inputs["tokens"], learned, anchors, truth)
            return {"loss": parts.sum(), "focal": parts[:, 0].sum(), "dice": parts[:, 1].sum()}

        adam = torch.optim.Adam(learned.values(), lr=self.lr, betas=self.betas)
        stage = Stage("linear layers", learned, adam, self.epochs, self.batch_size, features, loss)
        return [replace(stage, shuffle=self.shuffle, vary=Mosaic(self.mosaic) if self.mosaic else None)]

    def author_tables(self, method: ClipAdPlus | AprilGan, clip: Clip) -> list[AuthorTable]:
        """Return what the authors' file holds: the layers, under one key."""
        shapes = checkpoint_shapes(method, clip)
        key = "linear_layers" if isinstance(method, ClipAdPlus) else "trainable_linearlayer"
        return [AuthorTable(key, shapes, {name: name for name in shapes})]


def start(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Return weights and biases uniform in +-1 / sqrt(inputs)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = next(iter(shapes.values()))[1]
    bound = 1 / math.sqrt(inputs)
    return {
        key: torch.empty(shape).uniform_(-bound, bound, generator=generator) for key, shape in shapes.items()
    }


def _frozen(
    method: Any, clip: Clip, wordings: Mapping[str, str]
) -> tuple[Anchors, Callable[[Batch], Features]]:
    """Return the text anchors and the function that gives ``tokens`` (B, K, N, W) of a batch."""
    anchors, kind = method.anchors(clip, wordings), "clean"
    read: Callable[[Trace, int], Tensor]
    if isinstance(method, ClipAdPlus):
        check_stages(method.features, len(clip.vision.blocks))
        read, kind = ClipAdObserver(method, clip, anchors).tapped, method.tap
    else:
        check_layers(method, clip)
        read = Trace.after
    taps = {"middle" if kind == "reference" else "stream": set(inner_layers(method, clip))}

    def features(batch: Batch) -> Features:
        trace = Trace(clip.vision, batch, taps)
        return {"tokens": torch.stack([read(trace, layer)[:, 1:] for layer in method.features], dim=1)}

    return anchors, features


def layer_losses(tokens: Tensor, learned: Mapping[str, Tensor], anchors: Anchors, truth: Truth) -> Tensor:
    """Return focal and Dice loss of each layer (K, 2) for ``tokens`` (B, K, N, W).

    Logits are up-sampled to the masks' size, corners aligned, before the softmax.
    """
    layers = linear_layers(learned, tokens.device)
    logits = as_grid(layer_logits(tokens.unbind(dim=1), layers, anchors.of(truth.categories)))
    height, width = truth.masks.shape[-2:]
    large = render(logits, (height, width), align_corners=True)
    maps: Sequence[Tensor] = [two_way(layer) for layer in large.unbind(dim=1)]
    return torch.stack([torch.stack([focal(p, truth.masks), dice(p[:, 1], truth.masks)]) for p in maps])
