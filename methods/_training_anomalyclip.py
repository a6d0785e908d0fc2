"""How AnomalyCLIP (Zhou et al., ICLR 2024, arXiv 2310.18961) learns its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, Trace
from zsadbench.losses import segmentation, total
from zsadbench.maps import render
from zsadbench.method import Batch
from zsadbench.training import Features, Stage, Truth, leaves

from ._shared import Anchors
from .anomalyclip import (
    AnomalyClip,
    AnomalyClipObserver,
    check_fit,
    checkpoint_shapes,
    encode_prompts,
    reading,
)


@dataclass(frozen=True)
class PromptRecipe:
    """Cross-entropy of the image plus ``local_weight`` times focal and both Dice losses of the maps.

    Learned vectors start as noise of standard deviation ``spread``.
    """

    epochs: int = 15
    batch_size: int = 8
    seed: int = 111
    lr: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    spread: float = 0.02
    local_weight: float = 4.0

    def stages(self, method: AnomalyClip, clip: Clip, wordings: Mapping[str, str]) -> list[Stage]:
        """Return the one stage; categories and their words play no part."""
        check_fit(method, clip)
        generator = torch.Generator().manual_seed(self.seed)
        shapes = checkpoint_shapes(method, clip)
        noise = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        learned = leaves({key: self.spread * value for key, value in noise.items()}, clip.device)
        layers, first, taps = reading(method, clip)
        observer = AnomalyClipObserver(method, clip, Anchors({}), layers, first)

        def features(batch: Batch) -> Features:
            trace = Trace(clip.vision, batch, taps)
            local = observer.local_tokens(trace)
            return {
                "class": F.normalize(observer.class_feature(trace), dim=-1),
                "local": torch.stack([F.normalize(local[n][:, 1:], dim=-1) for n in sorted(local)], dim=1),
            }

        def loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            texts = F.normalize(encode_prompts(method, clip, learned), dim=-1)
            return self.losses(inputs, truth, texts, method, layers)

        return [
            Stage(
                "prompts",
                learned,
                torch.optim.Adam(learned.values(), lr=self.lr, betas=self.betas),
                self.epochs,
                self.batch_size,
                features,
                loss,
            )
        ]

    def losses(
        self, inputs: Features, truth: Truth, texts: Tensor, method: AnomalyClip, layers: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """Return the losses of unit features against unit ``texts`` (2, C), summed over ``layers``."""
        patches = (inputs["local"] @ texts.T / method.temperature).softmax(dim=-1)
        known = sorted(set(layers))
        found = [map_losses(patches[:, known.index(layer)], truth.masks) for layer in layers]
        parts = {name: torch.stack([one[name] for one in found]).sum() for name in found[0]}
        image = F.cross_entropy(inputs["class"] @ texts.T / method.temperature, truth.labels)
        local = self.local_weight * total(parts)
        return {"loss": local + image, "local": local, "image": image, **parts}


def map_losses(patches: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return the losses of patch probabilities (B, N, 2) after they are enlarged to the masks' size."""
    side = round(patches.shape[1] ** 0.5)
    height, width = masks.shape[-2:]
    grid = torch.unflatten(patches.mT, -1, (side, side))
    return segmentation(render(grid, (height, width)), masks)
