"""How FAPrompt (Zhu et al., ICCV 2025, arXiv 2410.10289) learns its prompts and what they see."""

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

from ._shared import as_grid
from .anomalyclip import reading
from .faprompt import (
    FaPrompt,
    check_fit,
    checkpoint_shapes,
    features,
    first_pass,
    image_score,
    prior,
    probability,
    prompt_texts,
    reader,
    second_pass,
    texts_of,
)

UNUSED = 896
"""Outputs of the projections that the authors' files carry and their code never uses."""


@dataclass(frozen=True)
class PriorRecipe:
    """Losses of both passes' maps, of the image and of its score; prompts that differ, a prior that is quiet.

    The second pass's map losses weigh ``second_weight``, the similarity of the abnormality prompts
    ``diversity_weight``.  Prompt vectors start as noise of standard deviation ``spread``.
    """

    epochs: Count = 7
    batch_size: Count = 8
    seed: Seed = 111
    lr: Positive = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    spread: Weight = 0.02
    second_weight: Weight = 0.5
    diversity_weight: Weight = 0.1

    def stages(self, method: FaPrompt, clip: Clip, wordings: Mapping[str, str]) -> list[Stage]:
        """Return the one stage; categories and their words play no part."""
        check_fit(method, clip)
        learned = leaves(self.start(method, clip), clip.device)
        plain = reader(method, clip)
        taps = reading(plain.method, clip)[2]

        def frozen(batch: Batch) -> Features:
            image, patches = features(plain, Trace(clip.vision, batch, taps))
            return {"image": F.normalize(image, dim=-1), "patches": F.normalize(patches, dim=-1)}

        def loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            return self.losses(method, clip, learned, inputs, truth)

        adam = torch.optim.Adam(learned.values(), lr=self.lr, betas=self.betas)
        return [Stage("prompts", learned, adam, self.epochs, self.batch_size, frozen, loss)]

    def start(self, method: FaPrompt, clip: Clip) -> dict[str, Tensor]:
        """Return the parameters at the start: small vectors, torch's own start of linear layers."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes, start = checkpoint_shapes(method, clip), {}
        for name, shape in shapes.items():
            if name.startswith("patch_meta_net"):
                bound = shapes[name.replace(".bias", ".weight")][1] ** -0.5
                start[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            else:
                start[name] = self.spread * torch.randn(shape, generator=generator)
        return start

    def losses(
        self, method: FaPrompt, clip: Clip, learned: Mapping[str, Tensor], inputs: Features, truth: Truth
    ) -> dict[str, Tensor]:
        """Return the losses of unit features; the abnormal text of the second pass is each image's own."""
        image, patches = inputs["image"], inputs["patches"]
        normal, anomalous = first_pass(method, clip, learned)
        first = texts_of(normal, anomalous).expand(len(image), -1, -1)
        bias = prior(method, learned, patches, first.detach())
        second = second_pass(method, clip, learned, bias).mean(dim=1)
        second = torch.stack([first[:, 0], F.normalize(second, dim=-1)], dim=1)
        p1, p2 = (probability(method, patches, texts) for texts in (first, second))
        maps = {number: map_losses(p, truth.masks) for number, p in ((1, p1), (2, p2))}
        score = image_score(method, probability(method, image, second), p1, p2)
        logits = (image[:, None] @ second.mT)[:, 0] / method.temperature
        parts = {
            "local": total(maps[1]) + self.second_weight * total(maps[2]),
            "image": F.cross_entropy(logits, truth.labels),
            "score": score_focal(score, truth.labels),
            "diversity": diversity(anomalous),
            "prior": bias[truth.labels == 0].square().mean(dim=1).sum(),
        }
        whole = total({**parts, "diversity": self.diversity_weight * parts["diversity"]})
        named = {f"{name}{number}": value for number, own in maps.items() for name, value in own.items()}
        return {"loss": whole, **parts, **named}

    def author_tables(self, method: FaPrompt, clip: Any) -> list[AuthorTable]:
        """Return what the authors' file holds: learned vectors, fixed ones and unused projections."""
        shapes = checkpoint_shapes(method, clip)
        length, width = clip.text.context, clip.text.width
        ids = dict(
            zip(("pos", "neg"), clip.tokenizer(prompt_texts(method), context_length=length), strict=True)
        )
        counts = {"pos": (1, method.shared), "neg": (method.prompts, method.shared + method.own)}
        whole, fixed, embedded = dict(shapes), {}, {}
        for side, (prompts, vectors) in counts.items():
            rows: Tensor = ids[side].expand(1, prompts, -1)
            fixed[f"tokenized_prompts_{side}"] = rows
            embedded[f"token_prefix_{side}"] = rows[..., :1]
            embedded[f"token_suffix_{side}"] = rows[..., 1 + vectors :]
            whole[f"tokenized_prompts_{side}"] = (1, prompts, length)
            whole[f"token_prefix_{side}"] = (1, prompts, 1, width)
            whole[f"token_suffix_{side}"] = (1, prompts, length - 1 - vectors, width)
        for number in range(method.deep_prompts):
            whole[f"compound_prompt_projections.{number}.weight"] = (UNUSED, width)
            whole[f"compound_prompt_projections.{number}.bias"] = (UNUSED,)
        return [AuthorTable("prompt_learner", whole, {name: name for name in shapes}, fixed, embedded)]


def map_losses(p: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return focal and both Dice losses of patch probabilities (B, N), enlarged to the masks' size."""
    size = (masks.shape[-2], masks.shape[-1])
    large = render(as_grid(p), size)
    return segmentation(torch.stack([1 - large, large], dim=1), masks)


def score_focal(score: Tensor, labels: Tensor) -> Tensor:
    """Return the focal loss (gamma 2) of scores (B,) taken for logits, as the authors' code takes them."""
    entropy = F.binary_cross_entropy_with_logits(score, labels.float(), reduction="none")
    return ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()


def diversity(anomalous: Tensor) -> Tensor:
    """Return the sum of absolute cosines over all pairs of abnormality features (K, C)."""
    unit = F.normalize(anomalous, dim=-1)
    return torch.triu(unit @ unit.T, diagonal=1).abs().sum()
