"""How Crane and Crane+ (Salehi et al., arXiv 2504.11055) learn their prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import AuthorTable, Clip, Trace
from zsadbench.inputs import Batch, Count, Positive, Seed, Weight
from zsadbench.training import Features, Stage, Truth, dice, focal, leaves, two_way

from ._prompts import check_guidance, encode_guided, encode_prompts
from ._shared import as_grid
from ._training_anomalyclip import prompt_table, start
from .crane import Crane, check_fit, difference, fused, streams, taps

ASKED_FOR = 4
"""Maps that Crane's scripts ask for; all four are block 24."""


@dataclass(frozen=True)
class CraneRecipe:
    """Focal and Dice loss of every map, ``local_weight`` each, and ``image_weight`` of the cross-entropy.

    ``guidance="suffix"`` puts the image feature into the prompts of its own texts.  Maps are brought to the
    masks' size by ``enlarge``; the image's logits are over ``image_temperature``.
    """

    epochs: Count = 5
    batch_size: Count = 8
    seed: Seed = 111
    lr: Positive = 1e-3
    betas: tuple[float, float] = (0.6, 0.999)
    spread: Weight = 0.02
    guidance: Literal["suffix", "none"] = "suffix"
    local_weight: Weight = 2.0 * ASKED_FOR
    image_weight: Weight = 0.2
    image_temperature: Positive = 0.01
    enlarge: Literal["nearest", "bilinear"] = "nearest"

    @classmethod
    def of(cls, method: Crane) -> CraneRecipe:
        """Return the authors' numbers for ``method``: losses are summed over four maps, here over fewer."""
        return cls(local_weight=cls.local_weight / len(method.features))

    def stages(self, method: Crane, clip: Clip, wordings: Mapping[str, str]) -> list[Stage]:
        """Return the one stage; categories and their words play no part."""
        check_fit(method, clip)
        if self.guidance != "none":
            check_guidance(method, clip)
        learned = leaves(start(method, clip, self.seed, self.spread), clip.device)
        frozen, wanted = streams(method, clip), taps(method, clip)

        def features(batch: Batch) -> Features:
            image, patches = frozen.features(Trace(clip.vision, batch, wanted), batch)
            return {"image": image, "patches": patches}

        def loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            return self.losses(method, inputs, self.texts(method, clip, learned, inputs["image"]), truth)

        adam = torch.optim.Adam(learned.values(), lr=self.lr, betas=self.betas)
        return [Stage("prompts", learned, adam, self.epochs, self.batch_size, features, loss)]

    def texts(self, method: Crane, clip: Clip, learned: Mapping[str, Tensor], image: Tensor) -> Tensor:
        """Return the unit texts (B, 2, C) of every image."""
        if self.guidance == "none":
            return F.normalize(encode_prompts(method, clip, learned), dim=-1).expand(len(image), -1, -1)
        return F.normalize(encode_guided(method, clip, learned, image), dim=-1)

    def losses(self, method: Crane, inputs: Features, texts: Tensor, truth: Truth) -> dict[str, Tensor]:
        """Return the losses of unit features against unit ``texts`` (B, 2, C), summed over maps."""
        patches = inputs["patches"]
        logit = difference(patches, texts, method.temperature)
        maps = [self.enlarged(two_way(as_grid(one)), truth.masks) for one in logit.unbind(dim=1)]
        mixed = fused(method, inputs["image"], patches, logit)
        logits = (texts @ mixed[..., None])[..., 0] / self.image_temperature
        parts = {
            "focal": torch.stack([focal(one, truth.masks) for one in maps]).sum(),
            "dice": torch.stack([dice(one[:, 1], truth.masks) for one in maps]).sum(),
            "image": F.cross_entropy(logits, truth.labels),
        }
        local = self.local_weight * (parts["focal"] + parts["dice"])
        return {"loss": local + self.image_weight * parts["image"], **parts}

    def enlarged(self, maps: Tensor, masks: Tensor) -> Tensor:
        """Return ``maps`` (B, 2, gh, gw) at the size of ``masks``."""
        corners = None if self.enlarge == "nearest" else False
        return F.interpolate(maps, masks.shape[-2:], mode=self.enlarge, align_corners=corners)

    def author_tables(self, method: Crane, clip: Any) -> list[AuthorTable]:
        """Return what the authors' file holds: learned vectors and fixed ones, the same for both methods."""
        return [prompt_table(method, clip)]
