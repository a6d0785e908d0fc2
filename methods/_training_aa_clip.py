"""How AA-CLIP (Ma et al., CVPR 2025, arXiv 2503.06661) learns: the text side first, then the image side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor
from torchvision.transforms.functional import affine, hflip, rotate, vflip

from zsadbench.clip import AuthorTable, Clip
from zsadbench.inputs import Batch, Count, Positive, Seed, Weight
from zsadbench.maps import render
from zsadbench.training import (
    Example,
    Features,
    Stage,
    TrainingSet,
    Truth,
    leaves,
    segmentation,
    total,
    two_way,
)

from ._shared import Anchors, as_grid
from .aa_clip import SCALE, AaClip, AaClipObserver, check_fit, checkpoint_shapes, difference, text_anchors


@dataclass(frozen=True)
class AdapterRecipe:
    """Two stages of Adam; ``text_...`` are the first one's, the other fields the second one's.

    The first stage learns the texts against frozen features whose last blocks, from ``value_from`` (from
    1; by default a quarter down the tower), attend from value to value: over the images of a batch as the
    authors' code does (``text_attention = "batch"``), over the patches (``"token"``), or not at all.
    ``text_levels = "last"`` steps on the last level's loss alone, ``"sum"`` on all.  ``orthogonality``
    weighs the squared mean cosine of both anchors.  The image side's rate is multiplied by ``decay`` at
    each of ``milestones``, counted in steps.
    """

    epochs: Count = 20
    batch_size: Count = 2
    seed: Seed = 111
    lr: Positive = 5e-4
    milestones: tuple[int, ...] = (16000, 32000)
    decay: Weight = 0.5
    text_epochs: Count = 5
    text_batch_size: Count = 16
    text_lr: Positive = 1e-5
    text_attention: Literal["batch", "token", "none"] = "batch"
    text_levels: Literal["last", "sum"] = "last"
    value_from: Count | None = None
    orthogonality: Weight = 0.1
    betas: tuple[float, float] = (0.5, 0.999)
    augment: bool = True

    def stages(self, method: AaClip, clip: Clip, wordings: Mapping[str, str]) -> list[Stage]:
        """Return the stages; without text adapters there is only the second one."""
        check_fit(method, clip)
        learned = leaves(self.start(checkpoint_shapes(method, clip)), clip.device)
        text = {key: value for key, value in learned.items() if key.startswith("text")}
        image = {key: value for key, value in learned.items() if key.startswith("image")}
        stages = [self.text_stage(method, clip, wordings, text)] if text else []
        return [*stages, self.image_stage(method, clip, wordings, text, image)]

    def author_tables(self, method: AaClip, clip: Clip) -> list[AuthorTable]:
        """Return what the authors' two files hold; without text adapters only the second is wanted."""
        shapes = checkpoint_shapes(method, clip)
        tables = []
        for key in ("text_adapter", "image_adapter"):
            own = {name.removeprefix(f"{key}."): name for name in shapes if name.startswith(f"{key}.")}
            wanted = {short: shapes[name] for short, name in own.items()}
            if own:
                tables.append(AuthorTable(key, wanted, {name: short for short, name in own.items()}))
        return tables

    def start(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Return Xavier-uniform weights, the image side drawn first."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn: dict[str, Tensor] = {}
        for key in sorted(shapes, key=lambda name: name.startswith("text")):
            bound = math.sqrt(6 / sum(shapes[key]))
            drawn[key] = torch.empty(shapes[key]).uniform_(-bound, bound, generator=generator)
        return {key: drawn[key] for key in shapes}

    def text_stage(
        self, method: AaClip, clip: Clip, wordings: Mapping[str, str], text: Mapping[str, Tensor]
    ) -> Stage:
        """Return the stage that learns the text adapters and their head."""
        first = (self.value_from or len(clip.vision.blocks) // 4) - 1

        def features(batch: Batch) -> Features:
            images = batch.images[:, 0]
            found = frozen_levels(clip, images, method.levels, first, self.text_attention)
            return {"levels": torch.stack(found, dim=1) + class_feature(clip, images)[:, None, None]}

        def loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            own = {category: wordings[category] for category in dict.fromkeys(truth.categories)}
            anchors = text_anchors(method, clip, text, own).of(truth.categories)
            orthogonal = orthogonality(anchors)
            levels = [level_losses(one, anchors, truth.masks) for one in inputs["levels"].unbind(dim=1)]
            totals = [total(parts) + self.orthogonality * orthogonal for parts in levels]
            loss = totals[-1] if self.text_levels == "last" else torch.stack(totals).sum()
            return {"loss": loss, "orthogonal": orthogonal, **levels[-1]}

        return Stage(
            "texts",
            text,
            torch.optim.Adam(text.values(), lr=self.text_lr, betas=self.betas),
            self.text_epochs,
            self.text_batch_size,
            features,
            loss,
            cached=False,
            vary=Augmentation(jitter=False) if self.augment else None,
        )

    def image_stage(
        self,
        method: AaClip,
        clip: Clip,
        wordings: Mapping[str, str],
        text: Mapping[str, Tensor],
        image: Mapping[str, Tensor],
    ) -> Stage:
        """Return the stage that learns the image adapters and heads against the texts as they are by then."""

        @cache
        def anchors() -> Anchors:
            with torch.no_grad():
                return text_anchors(method, clip, text, wordings)

        def loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            observer = AaClipObserver(method, clip, anchors(), image)
            own = anchors().of(truth.categories)
            levels = observer.level_tokens(inputs["images"])
            parts = {
                f"level {block}": total(
                    level_losses(observer.patch_features(tokens, number), own, truth.masks)
                )
                for number, (block, tokens) in enumerate(zip(method.levels, levels, strict=True))
            }
            scores = class_scores(observer.detection_feature(levels[-1]), own)
            parts = {"class": F.cross_entropy(scores, truth.labels), **parts}
            return {"loss": total(parts), **parts}

        return Stage(
            "images",
            image,
            torch.optim.Adam(image.values(), lr=self.lr, betas=self.betas),
            self.epochs,
            self.batch_size,
            lambda batch: {"images": batch.images[:, 0]},
            loss,
            cached=False,
            vary=Augmentation(jitter=True) if self.augment else None,
            rate=lambda steps: self.decay ** sum(steps >= mark for mark in self.milestones),
        )


def frozen_levels(
    clip: Clip,
    images: Tensor,
    levels: tuple[Count, ...],
    first: int,
    attention: Literal["batch", "token", "none"],
) -> list[Tensor]:
    """Return unit patch features (B, N, C) after each of ``levels`` (from 1) of the adapter-free tower.

    From block ``first`` (from 0) on the attention is from value to value, and goes into the one stream.
    """
    vision = clip.vision
    kept = []
    x = vision.embed(images)
    for number, block in enumerate(vision.blocks):
        q, k, v = block.qkv(x)
        if number < first or attention == "none":
            x = x + block.attend(q, k, v)
        elif attention == "token":
            x = x + block.attend(v, v, v)
        else:  # the authors' axes are exchanged: at each place the images of the batch see each other
            v = v.transpose(0, 2)
            x = x + block.attend(v, v, v).transpose(0, 1)
        x = x + block.mlp(x)
        if number + 1 in levels:
            kept.append(F.normalize(vision.project(x[:, 1:]), dim=-1))
    return kept


def class_feature(clip: Clip, images: Tensor) -> Tensor:
    """Return plain CLIP's unit image embedding (B, C)."""
    return F.normalize(clip.vision.encode(clip.vision.embed(images)), dim=-1)


def enlarged(features: Tensor, anchors: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return probabilities (B, 2, H, W) of patch ``features`` (B, N, C): logits up-sampled, then softmax."""
    logits = as_grid(SCALE * difference(features, anchors))
    return two_way(render(logits, (size[0], size[1]), align_corners=True))


def level_losses(features: Tensor, anchors: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return the losses of one level's map."""
    return segmentation(enlarged(features, anchors, masks.shape[-2:]), masks)


def orthogonality(anchors: Tensor) -> Tensor:
    """Return the squared mean, over the images of a batch, of the cosine of both anchors (B, 2, C)."""
    return (anchors[:, 0] * anchors[:, 1]).sum(dim=-1).mean().square()


def class_scores(features: Tensor, anchors: Tensor) -> Tensor:
    """Return the logits (B, 2) of image ``features`` (B, C), at temperature 1."""
    return (anchors @ features[..., None])[..., 0]


@dataclass(frozen=True)
class Augmentation:
    """Random colours (``jitter``, before the resize), rotation, shift and flips of image and mask.

    What comes in from outside the frame is the mean colour and no defect; the label stays.
    """

    jitter: bool

    def __call__(self, data: TrainingSet, index: int, rng: np.random.Generator) -> Example:
        """Return a sample's augmented example."""
        image = data.image(index)
        if self.jitter:
            image = jittered(image.convert("RGB"), rng)
        side = data.spec.size
        mask = torch.from_numpy(data.mask(index, (side, side)))
        stacked = torch.cat([data.input(image, data.samples[index].key), mask[None].float()])
        moved = moved_about(stacked, rng)
        return Example(moved[:3], moved[3] > 0)


def jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return ``image`` with brightness, contrast and saturation changed by up to half, each 7 times in 10."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        factor = rng.uniform(0.5, 1.5)
        if rng.random() < 0.7:
            image = enhance(image).enhance(factor)
    return image


def moved_about(stacked: Tensor, rng: np.random.Generator) -> Tensor:
    """Return channels (C, S, S) rotated by up to 30 degrees, shifted by up to 0.15, flipped; each by chance.

    Nearest neighbour, filled with 0.
    """
    angle, shift = rng.uniform(-30, 30), rng.uniform(-0.15, 0.15, 2) * stacked.shape[-1]
    chances = rng.random(4) < 0.5
    if chances[0]:
        stacked = rotate(stacked, float(angle))
    if chances[1]:
        offset = [round(float(value)) for value in shift]
        stacked = affine(stacked, angle=0.0, translate=offset, scale=1.0, shear=[0.0, 0.0])
    if chances[2]:
        stacked = hflip(stacked)
    return vflip(stacked) if chances[3] else stacked
