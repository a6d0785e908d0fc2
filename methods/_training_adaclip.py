"""How AdaCLIP (Cao et al., ECCV 2024, arXiv 2407.15795) learns its prompts and linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from zsadbench.clip import AuthorTable, Clip, Trace
from zsadbench.inputs import Batch, Count, Positive, Seed, Share, Weight
from zsadbench.maps import render
from zsadbench.training import Features, Mosaic, Stage, Truth, dice, focal, leaves, total, two_way

from ._shared import as_grid
from .adaclip import (
    AdaClip,
    AdaClipObserver,
    check_fit,
    checkpoint_shapes,
    difference,
    fused_feature,
    image_embedding,
    look_again,
    projected,
    sentences,
)

PREFIX = "clip_model."
"""Stands before every name in the authors' file, which is one flat dictionary."""


@dataclass(frozen=True)
class HybridRecipe:
    """Focal loss of the image, focal and both Dice losses of every layer's map, summed without weights.

    Learned vectors start as noise of standard deviation ``spread``.  Of the images of the datasets
    ``mosaic_on`` a share ``mosaic`` is replaced by 2 x 2 mosaics.  ``dice="rows"`` is what the authors'
    code does: the batch of one is squeezed away, and every row of pixels counts as an image.
    """

    epochs: Count = 5
    batch_size: Count = 1
    seed: Seed = 111
    lr: Positive = 0.01
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: Weight = 0.01
    spread: Weight = 0.02
    mosaic: Share = 0.2
    mosaic_on: tuple[str, ...] = ()
    dice: Literal["rows", "image"] = "rows"

    def stages(self, method: AdaClip, clip: Clip, wordings: Mapping[str, str]) -> list[Stage]:
        """Return the one stage; behind the prompts nothing can be kept from epoch to epoch."""
        check_fit(method, clip)
        learned = leaves(self.start(checkpoint_shapes(method, clip)), clip.device)
        texts = {name: sentences(method, clip, words) for name, words in wordings.items()}
        observer = AdaClipObserver(method, clip, learned, texts)

        def features(batch: Batch) -> Features:
            trace = Trace(clip.vision, batch, {"stream": {0}})
            return {"tokens": trace.stream(0), "image": image_embedding(clip, trace)}

        def loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            seen = look_again(method, clip, learned, inputs["tokens"], inputs["image"])
            anchors = observer.anchors(truth.categories, inputs["image"])
            return self.losses(method, *projected(learned, *seen), anchors, truth)

        adam = torch.optim.AdamW(
            learned.values(), lr=self.lr, betas=self.betas, weight_decay=self.weight_decay
        )
        stage = Stage("prompts", learned, adam, self.epochs, self.batch_size, features, loss, cached=False)
        mosaic = Mosaic(self.mosaic, tiles="images", on=self.mosaic_on)
        return [replace(stage, vary=mosaic if self.mosaic and self.mosaic_on else None)]

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return the parameters at the start: noise, and torch's own start of linear layers."""
        generator = torch.Generator().manual_seed(self.seed)
        found = {}
        for name, shape in shapes.items():
            layer = shapes.get(f"{name.removesuffix('.bias')}.weight", shape)
            uniform = (2 * torch.rand(shape, generator=generator) - 1) * layer[-1] ** -0.5
            noise = self.spread * torch.randn(shape, generator=generator)
            found[name] = noise if "static_prompts" in name else uniform
        return found

    def losses(
        self, method: AdaClip, token: Tensor, patches: Tensor, anchors: Tensor, truth: Truth
    ) -> dict[str, Tensor]:
        """Return the losses of unit features, the class token (B, C) and ``patches`` (B, L, N, C)."""
        logits = difference(method, patches, anchors)
        fused = fused_feature(method, token, patches, logits.mean(dim=1))
        height, width = truth.masks.shape[-2:]
        large = render(as_grid(logits), (height, width), align_corners=True)
        found = [layer_losses(two_way(layer), truth.masks, self.dice) for layer in large.unbind(dim=1)]
        parts = {name: torch.stack([one[name] for one in found]).sum() for name in found[0]}
        parts["image"] = focal(two_way(difference(method, fused, anchors)), truth.labels.float())
        return {"loss": total(parts), **parts}

    def author_tables(self, method: AdaClip, clip: Clip) -> list[AuthorTable]:
        """Return what the authors' file holds: every parameter at its top, under a prefix."""
        shapes = checkpoint_shapes(method, clip)
        prefixed = {PREFIX + name: shape for name, shape in shapes.items()}
        return [AuthorTable("", prefixed, {name: PREFIX + name for name in shapes})]


def layer_losses(probabilities: Tensor, masks: Tensor, images: Literal["rows", "image"]) -> dict[str, Tensor]:
    """Return the losses of one layer's maps (B, 2, S, S); ``images`` says what Dice takes for an image."""
    normal, anomalous, wanted = probabilities[:, 0], probabilities[:, 1], masks
    if images == "rows":
        normal, anomalous, wanted = (one.flatten(0, 1) for one in (normal, anomalous, masks))
    return {
        "focal": focal(probabilities, masks),
        "dice_normal": dice(normal, 1 - wanted),
        "dice_anomalous": dice(anomalous, wanted),
    }
