"""How AF-CLIP (Fang et al., ACM Multimedia 2025, arXiv 2507.19949) learns its vectors and its adaptor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import AuthorTable, Clip, Trace
from zsadbench.inputs import Batch, Count, Positive, Seed, Weight
from zsadbench.training import MODULE, TENSOR, Features, Stage, Truth, leaves

from ._shared import as_grid
from .af_clip import (
    INNER,
    NORM,
    AfClip,
    adapted,
    check_fit,
    checkpoint_shapes,
    difference,
    encode_texts,
    taps,
    token_sets,
)

GAMMA = 4
CUT = -100.0
"""Logarithms of probabilities end here, as in torch's own cross-entropy of probabilities."""


@dataclass(frozen=True)
class AdaptorRecipe:
    """Focal loss of the image, focal and absolute loss of the patches, and patches that keep apart.

    ``patch_weight`` and ``align_weight`` weigh the last two (lambda 1 and 2).  ``gradient="reference"``
    keeps what the authors' code does: its alignment loss changes the targets that the patch losses have
    saved, so their gradients are those of other targets; ``"clean"`` is the gradient of the loss.
    """

    epochs: Count = 2
    batch_size: Count = 8
    seed: Seed = 122
    lr: Positive = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    spread: Weight = 0.01
    patch_weight: Weight = 1.0
    align_weight: Weight = 1.0
    gradient: Literal["reference", "clean"] = "reference"

    def stages(self, method: AfClip, clip: Clip, wordings: Mapping[str, str]) -> list[Stage]:
        """Return the one stage; categories and their words play no part."""
        check_fit(method, clip)
        learned = leaves(self.start(method, clip), clip.device)
        wanted = taps(method, clip)

        def features(batch: Batch) -> Features:
            grid = clip.vision.grid(batch.images)
            tokens = token_sets(method, clip, Trace(clip.vision, batch, wanted), grid)
            return {"tokens": tokens.transpose(0, 1)}

        def loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            texts = F.normalize(encode_texts(method, clip, learned), dim=-1)
            found = adapted(method, clip, learned, inputs["tokens"].transpose(0, 1))
            p = torch.sigmoid(difference(method, found, texts))
            return self.losses(found, p[:, 0], as_grid(p[:, 1:])[:, None], truth)

        adam = torch.optim.Adam(learned.values(), lr=self.lr, betas=self.betas)
        # Twelve token sets of an image are 70 MB: for two epochs they are computed twice.
        return [Stage("adaptor", learned, adam, self.epochs, self.batch_size, features, loss, cached=False)]

    def start(self, method: AfClip, clip: Clip) -> dict[str, Tensor]:
        """Return the parameters at the start: small vectors, torch's own start of linear layers."""
        generator = torch.Generator().manual_seed(self.seed)
        start = {}
        for name, shape in checkpoint_shapes(method, clip).items():
            bound = (INNER if "to_out" in name else shape[-1]) ** -0.5
            start[name] = (2 * torch.rand(shape, generator=generator) - 1) * bound
        prompt = start["state_prompt_embedding"].shape
        start["state_prompt_embedding"] = self.spread * torch.randn(prompt, generator=generator)
        width = clip.vision.width
        return start | {NORM + "weight": torch.ones(width), NORM + "bias": torch.zeros(width)}

    def losses(self, features: Tensor, image: Tensor, patches: Tensor, truth: Truth) -> dict[str, Tensor]:
        """Return the losses of adapted ``features`` (sets, B, 1+N, C) and of probabilities.

        ``image`` (B,) and ``patches`` (B, 1, gh, gw).
        """
        targets = on_patches(truth.masks, patches.shape[-2:])
        parts = {
            "focal_label": focal(image, truth.labels.float()),
            "focal_mask": (mutated_focal if self.gradient == "reference" else focal)(patches, targets),
            "l1": (patches - targets).abs().mean(),
            "align": alignment(features[:, :, 1:], targets.flatten(1)).clamp(min=0).mean(),
        }
        masks = self.patch_weight * (parts["focal_mask"] + parts["l1"])
        return {"loss": parts["focal_label"] + masks + self.align_weight * parts["align"], **parts}

    def author_tables(self, method: AfClip, clip: Any) -> list[AuthorTable]:
        """Return what the authors' two files hold: a bare tensor, and a module."""
        shapes = checkpoint_shapes(method, clip)
        prompt = shapes.pop("state_prompt_embedding")
        paths = {name: name.removeprefix("adaptor.") for name in shapes}
        module = {paths[name]: shape for name, shape in shapes.items()}
        return [
            AuthorTable(TENSOR, {"": prompt}, {"state_prompt_embedding": ""}, {}, {}),
            AuthorTable(MODULE, module, paths, {}, {}),
        ]


def on_patches(masks: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return targets (B, 1, gh, gw) of ``masks`` (B, S, S): plainly bilinear, then 0 or 1; one half stays."""
    small = F.interpolate(masks[:, None], tuple(grid), mode="bilinear", align_corners=False)
    return torch.where(small == 0.5, small, (small > 0.5).to(small.dtype))


def focal(p: Tensor, targets: Tensor) -> Tensor:
    """Return the focal loss of probabilities ``p`` with gamma 4, the mean over all; same shapes."""
    hit = p * targets + (1 - p) * (1 - targets)
    return (F.binary_cross_entropy(p, targets, reduction="none") * (1 - hit) ** GAMMA).mean()


def mutated_focal(p: Tensor, targets: Tensor) -> Tensor:
    """Return `focal` with the gradient of the authors' code, where a saved target 0 has become -1."""
    value = focal(p, targets)
    q = p.detach()
    entropy = q**4 * (1 + q) / (q * (1 - q)).clamp(min=1e-12)
    changed = (entropy - 8 * q**3 * torch.log1p(-q).clamp(min=CUT)) / p.numel()
    clean = (q**5 / (q * (1 - q)).clamp(min=1e-12) - 4 * q**3 * torch.log1p(-q).clamp(min=CUT)) / p.numel()
    return value + (torch.where(targets == 0, changed - clean, 0.0) * (p - q)).sum()


def alignment(features: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cosine across kinds less that within kinds, for each set of ``features``.

    ``features`` (sets, B, N, C), ``targets`` (B, N) of 0, 1 and one half (left out).  Pairs lie within
    an image, means pool the batch; zero where no image has both kinds.
    """
    unit = F.normalize(features, dim=-1)
    anomalous, normal = (targets == 1).to(unit.dtype), (targets == 0).to(unit.dtype)
    a, n = (torch.einsum("sbpc,bp->sbc", unit, kind) for kind in (anomalous, normal))
    many, few = anomalous.sum(dim=1), normal.sum(dim=1)
    if not bool((many * few).any()):
        return features.new_zeros(len(features))
    cross = (a * n).sum(dim=(1, 2)) / (many * few).sum()
    same = (a.square() + n.square()).sum(dim=(1, 2)) / (many.square() + few.square()).sum()
    return cross - same
