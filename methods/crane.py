"""Crane and Crane+ (Salehi et al., arXiv 2504.11055): refined attention, a score that pools patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, Correlation, Second, Trace, load_checkpoint
from zsadbench.errors import MethodError
from zsadbench.inputs import (
    Backbone,
    Batch,
    Count,
    Number,
    Positive,
    Preprocess,
    SecondTower,
    Share,
    Sigma,
    Weight,
)
from zsadbench.maps import render, smooth
from zsadbench.method import Evidence

from ._prompts import check_guidance, check_prompts, checkpoint_shapes, encode_guided, encode_prompts
from ._shared import Anchors, as_grid, check_prepared


@dataclass(frozen=True)
class Crane:
    """Two learned prompts, as AnomalyCLIP has them, against a second stream of self-correlation.

    From block ``refined_from`` on, the second stream gathers the values by the attentions ``attention``;
    after the blocks ``features`` (from 1) its patches give a map each.  ``pooling`` mixes the patches, each
    weighted by its anomaly probability, into the image feature, with the weight ``alpha``.
    ``guidance="suffix"`` puts the image feature behind the learned vectors of both prompts.  ``rule`` says
    what is enlarged: every map's probability, or the mean of their logits.
    """

    backbone: Backbone = Backbone("ViT-L-14-336", "openai", activation="quick_gelu", position="bilinear")
    preprocess: Preprocess = Preprocess(518, rgb="after")
    checkpoint: str = ""
    normal_words: str = "object"
    anomalous_words: str = "damaged object"
    context: Number = 12
    deep_prompts: Number = 8
    deep_length: Number = 4
    half_prompts: bool = True
    guidance: Literal["none", "suffix"] = "none"
    attention: Correlation = "qq+kk+vv"
    refined_from: Number = 6
    features: tuple[Count, ...] = (24,)
    pooling: bool = True
    alpha: Share = 0.5
    temperature: Positive = 0.07
    rule: Literal["probability", "logit"] = "probability"
    sigma: Sigma = 4.0

    id: ClassVar[str] = "crane"

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> CraneObserver:
        """Encode both prompts, unless each image has its own, and ask for the second stream's attentions.

        Raises:
            MethodError: without a checkpoint, or if a parameter does not fit the backbone.
            WeightsError: if the checkpoint, or a second tower, cannot be read or does not fit.
        """
        check_fit(self, clip)
        learned = load_checkpoint(self.checkpoint, self.id, checkpoint_shapes(self, clip))
        learned = {name: value.to(clip.device) for name, value in learned.items()}
        with torch.no_grad():
            texts = F.normalize(encode_prompts(self, clip, learned), dim=-1)
        clip.vision.tap(**taps(self, clip))
        return CraneObserver(self, streams(self, clip), learned, Anchors(dict.fromkeys(wordings, texts)))

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the probability at ``size``, smoothed: of the mean logit, or the mean of probabilities."""
        logit, sigma = evidence["logit"], self.sigma * size[0] / self.preprocess.size
        if self.rule == "logit":
            return smooth(torch.sigmoid(render(logit.mean(dim=1), size)), sigma)
        return render(torch.sigmoid(logit).mean(dim=1), size, sigma=sigma)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the anomaly probability of the image feature; the map takes no part."""
        return evidence["score"]


@dataclass(frozen=True)
class CranePlus(Crane):
    """Crane with a second set of patches: the last block's values, mixed by how alike DINOv2 finds patches.

    A pair of patches counts where their cosine exceeds ``dino_beta`` times the image's mean cosine, by the
    softmax of ``dino_gamma`` times what it exceeds.  ``values="middle"`` takes them from between the block's
    attention and its MLP, as the code does, ``"input"`` from its input.  ``branches`` are the patches in
    use: those of DINO (D), those of the second stream (E).
    """

    rule: Literal["probability", "logit"] = "logit"
    dino: SecondTower = SecondTower("vit_base_patch14_reg4_dinov2", "lvd142m")
    dino_beta: Weight = 1.2
    dino_gamma: Weight = 3.0
    values: Literal["middle", "input"] = "middle"
    branches: tuple[Literal["D", "E"], ...] = ("D", "E")

    id: ClassVar[str] = "crane+"


@dataclass(frozen=True)
class CraneObserver:
    """Evidence: ``logit`` (B, K, gh, gw), abnormal minus normal, of K sets of patches, and ``score`` (B,)."""

    method: Crane
    streams: Streams
    learned: Mapping[str, Tensor]
    anchors: Anchors

    def observe(self, batch: Batch) -> Evidence:
        """Compare the patches, and the image feature with the suspicious ones mixed in, with both texts."""
        method, vision = self.method, self.streams.clip.vision
        image, patches = self.streams.features(vision.trace(batch), batch)
        texts = self.texts(image, batch)
        logit = difference(patches, texts, method.temperature)
        mixed = fused(method, image, patches, logit)
        score = torch.sigmoid(difference(mixed[:, None], texts, method.temperature))[:, 0]
        return {"logit": as_grid(logit, vision.grid(batch.images)), "score": score}

    def texts(self, image: Tensor, batch: Batch) -> Tensor:
        """Return the unit texts (B, 2, C), each image's own where its feature (B, C) stands in them."""
        if self.method.guidance == "none":
            return self.anchors.of(batch.categories)
        check_prepared(batch.categories, self.anchors.table)
        return F.normalize(encode_guided(self.method, self.streams.clip, self.learned, image), dim=-1)


@dataclass(frozen=True)
class Streams:
    """The frozen part: an image feature and K sets of patches from a walk."""

    method: Crane
    clip: Clip

    def features(self, trace: Trace, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the unit image feature (B, C) and unit patches (B, K, N, C), in float32."""
        patches = torch.cat(self.sets(trace, batch), dim=1)
        return (
            F.normalize(self.image_feature(trace).float(), dim=-1),
            F.normalize(patches.float(), dim=-1),
        )

    def sets(self, trace: Trace, batch: Batch) -> list[Tensor]:
        """Return every set of patches (B, K, N, C), un-normalised."""
        return [self.refined(trace)]

    def image_feature(self, trace: Trace) -> Tensor:
        """Return the class token (B, C) of the ordinary stream, un-normalised."""
        return self.clip.vision.project(trace.class_token)

    def refined(self, trace: Trace) -> Tensor:
        """Return the second stream's patches (B, K, N, C) after each of ``features`` (E-Attn).

        It starts as the ordinary stream and only gathers: no MLP, and the ordinary stream never reads it.
        """
        method, vision, first = self.method, self.clip.vision, self.method.refined_from - 1
        local, found = trace.stream(first), {}
        for block in range(first, max(method.features)):
            local = local + trace.correlation(block, method.attention)
            found[block + 1] = local
        return torch.stack([vision.project(found[layer][:, 1:]) for layer in method.features], dim=1)


@dataclass(frozen=True)
class PlusStreams(Streams):
    """Crane+: the patches mixed by DINO's similarities come first."""

    method: CranePlus
    dino: Second

    def sets(self, trace: Trace, batch: Batch) -> list[Tensor]:
        """Return the sets of the branches in use, D first."""
        found = []
        if "D" in self.method.branches:
            similar = similarity(self.dino_tokens(trace, batch))
            found.append(self.mixed(trace, self.weights(similar, similar.mean(dim=(1, 2))))[:, None])
        return [*found, self.refined(trace)] if "E" in self.method.branches else found

    def dino_tokens(self, trace: Trace, batch: Batch) -> Tensor:
        """Return DINO's patch tokens (B, N, W) of the pictures that CLIP sees."""
        images = self.dino_inputs(batch)
        return trace.shared(str(self.method.dino), lambda: self.dino.patches(images).float())

    def dino_inputs(self, batch: Batch) -> Tensor:
        """Return the batch's pictures (B, 3, H, W) in DINO's colours."""
        inputs = batch.images.flatten(0, 1).float()
        mean, std = (inputs.new_tensor(v).view(3, 1, 1) for v in self.method.preprocess.normalisation)
        return self.dino.normalise((inputs * std + mean).clamp(0, 1))

    def weights(self, similar: Tensor, mean: Tensor) -> Tensor:
        """Return attention weights (B, N, N) of cosines ``similar`` with their ``mean`` (B,).

        A patch always counts for itself: in a picture of one colour nothing else might be left.
        """
        logits = self.method.dino_gamma * (similar - self.method.dino_beta * mean[:, None, None])
        own = torch.eye(similar.shape[-1], dtype=torch.bool, device=similar.device)
        return logits.masked_fill((logits < 0) & ~own, -torch.inf).softmax(dim=-1)

    def mixed(self, trace: Trace, weights: Tensor) -> Tensor:
        """Return the last block's values mixed by ``weights`` (B, N, N), projected, (B, N, C) (D-Attn).

        The same weights serve all heads; there is no class token and no residual.
        """
        vision, last = self.clip.vision, len(self.clip.vision.blocks) - 1
        source = trace.middle(last) if self.method.values == "middle" else trace.stream(last)
        values = vision.blocks[last].qkv(source)[2][:, :, 1:]
        return vision.project(vision.blocks[last].join(weights[:, None].to(values.dtype) @ values))


def streams(method: Crane, clip: Clip) -> Streams:
    """Return the frozen part of a method, a second tower loaded where it has one.

    Raises:
        MethodError: if both towers see other grids.
        WeightsError: if the second tower cannot be had.
    """
    if not isinstance(method, CranePlus):
        return Streams(method, clip)
    dino = clip.beside(method.dino)
    if dino.patch != clip.vision.patch:
        raise MethodError(
            f"{method.dino.name} has patches of {dino.patch} pixels, backbone '{clip.backbone.name}' of "
            f"{clip.vision.patch}: both must see one grid; choose another --backbone or --set dino=..."
        )
    return PlusStreams(method, clip, dino)


def similarity(tokens: Tensor) -> Tensor:
    """Return the cosines (B, N, N) of an image's ``tokens`` (B, N, W)."""
    unit = F.normalize(tokens, dim=-1, eps=1e-12)
    return unit @ unit.mT


def difference(features: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """Return abnormal minus normal logits (B, ...) of unit ``features`` (B, ..., C); ``texts`` (B, 2, C)."""
    direction = (texts[:, 1] - texts[:, 0]).view(len(texts), *[1] * (features.ndim - 3), -1, 1)
    return (features @ direction)[..., 0] / temperature


def pooled(patches: Tensor, logit: Tensor) -> Tensor:
    """Return the unit sum (B, C) of ``patches`` (B, K, N, C), each weighted by its anomaly probability.

    The mean over the K sets comes first, of patches and of logits (B, K, N).
    """
    weights = torch.sigmoid(logit.mean(dim=1))[..., None]
    return F.normalize((weights * patches.mean(dim=1)).sum(dim=1), dim=-1)


def fused(method: Crane, image: Tensor, patches: Tensor, logit: Tensor) -> Tensor:
    """Return the image feature (B, C) with the pooled patches mixed in, unit length."""
    if not method.pooling:
        return image
    return F.normalize(method.alpha * pooled(patches, logit) + (1 - method.alpha) * image, dim=-1)


def taps(method: Crane, clip: Clip) -> dict[str, set[int]]:
    """Return what a trace must keep."""
    first, last = method.refined_from - 1, len(clip.vision.blocks) - 1
    wanted = {"stream": {first}}
    if isinstance(method, CranePlus):
        wanted.setdefault("middle" if method.values == "middle" else "stream", set()).add(last)
    return wanted | {method.attention: {*range(first, max(method.features))}}


def check_fit(method: Crane, clip: Clip) -> None:
    """Refuse blocks, prompts and guidance that the towers do not allow."""
    depth, layers = len(clip.vision.blocks), method.features
    if not (layers and 1 <= method.refined_from <= min(layers) <= max(layers) <= depth):
        raise MethodError(
            f"features {layers} must be among {depth} image blocks, none before refined_from "
            f"{method.refined_from}; choose others with --set features=... and --set refined_from=..."
        )
    if isinstance(method, CranePlus) and not method.branches:
        raise MethodError("branches is empty: give D, E or both with --set branches=...")
    check_prompts(method, clip)
    if method.guidance != "none":
        check_guidance(method, clip)
