"""How AnomalyCLIP (Zhou et al., ICLR 2024, arXiv 2310.18961) learns its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import AuthorTable, Clip, Trace
from zsadbench.inputs import Batch, Count, Positive, Seed, Weight
from zsadbench.maps import render
from zsadbench.training import Features, Stage, Truth, leaves, segmentation, total

from ._prompts import LearnedPrompts, checkpoint_shapes, encode_prompts, prompt_texts
from ._shared import Anchors
from .anomalyclip import AnomalyClip, AnomalyClipObserver, check_fit, reading

UNUSED = 896
"""Outputs of the projections that the authors' files carry and their code never uses."""


@dataclass(frozen=True)
class PromptRecipe:
    """Cross-entropy of the image plus ``local_weight`` times focal and both Dice losses of the maps.

    Learned vectors start as noise of standard deviation ``spread``.
    """

    epochs: Count = 15
    batch_size: Count = 8
    seed: Seed = 111
    lr: Positive = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    spread: Weight = 0.02
    local_weight: Weight = 4.0

    @classmethod
    def of(cls, method: AnomalyClip) -> PromptRecipe:
        """Return the authors' numbers for ``method``: of equal maps each has its share."""
        return cls(local_weight=cls.local_weight / len(method.features)) if method.legacy_taps else cls()

    def stages(self, method: AnomalyClip, clip: Clip, wordings: Mapping[str, str]) -> list[Stage]:
        """Return the one stage; categories and their words play no part."""
        check_fit(method, clip)
        learned = leaves(start(method, clip, self.seed, self.spread), clip.device)
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

        adam = torch.optim.Adam(learned.values(), lr=self.lr, betas=self.betas)
        return [Stage("prompts", learned, adam, self.epochs, self.batch_size, features, loss)]

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

    def author_tables(self, method: AnomalyClip, clip: Any) -> list[AuthorTable]:
        """Return what the authors' file holds: learned vectors, fixed ones and unused projections."""
        unused: dict[str, tuple[int, ...]] = {}
        for number in range(method.deep_prompts):
            unused[f"compound_prompt_projections.{number}.weight"] = (UNUSED, clip.text.width)
            unused[f"compound_prompt_projections.{number}.bias"] = (UNUSED,)
        return [prompt_table(method, clip, unused)]


def start(method: LearnedPrompts, clip: Clip, seed: int, spread: float) -> dict[str, Tensor]:
    """Return the learned vectors at the start: noise of standard deviation ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    shapes = checkpoint_shapes(method, clip)
    return {name: spread * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def prompt_table(
    method: LearnedPrompts, clip: Any, unused: Mapping[str, tuple[int, ...]] | None = None
) -> AuthorTable:
    """Return the table of a prompt learner: learned vectors, token ids, embeddings and what is ``unused``."""
    shapes, fixed = checkpoint_shapes(method, clip), prompt_ids(method, clip)
    length, width = clip.text.context, clip.text.width
    whole, embedded = {**shapes, **(unused or {})}, {}
    for side in ("pos", "neg"):
        whole[f"token_prefix_{side}"] = (1, 1, 1, width)
        whole[f"token_suffix_{side}"] = (1, 1, length - 1 - method.context, width)
        whole[f"tokenized_prompts_{side}"] = (1, 1, length)
        ids = fixed[f"tokenized_prompts_{side}"]
        embedded[f"token_prefix_{side}"] = ids[..., :1]
        embedded[f"token_suffix_{side}"] = ids[..., 1 + method.context :]
    return AuthorTable("prompt_learner", whole, {name: name for name in shapes}, fixed, embedded)


def prompt_ids(method: LearnedPrompts, clip: Any) -> dict[str, Tensor]:
    """Return the token ids (1, 1, L) of both prompts by the names of the authors' file."""
    ids: Tensor = clip.tokenizer(prompt_texts(method), context_length=clip.text.context)
    return {f"tokenized_prompts_{side}": ids[row][None, None] for row, side in enumerate(("pos", "neg"))}


def map_losses(patches: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return the losses of patch probabilities (B, N, 2) after they are enlarged to the masks' size."""
    side = round(patches.shape[1] ** 0.5)
    height, width = masks.shape[-2:]
    grid = torch.unflatten(patches.mT, -1, (side, side))
    return segmentation(render(grid, (height, width)), masks)
