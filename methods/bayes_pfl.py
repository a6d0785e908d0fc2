"""Bayes-PFL (Qu et al., CVPR 2025, arXiv 2503.10080): prompts drawn from distributions that see the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, Trace, load_checkpoint
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Count, Number, Preprocess, Seed, Share, Sigma, Within
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._bayes_prompts import (
    SIDES,
    Sizes,
    context_bias,
    encode_texts,
    prompt_shapes,
    state_bias,
    tokens_of,
    word_tokens,
)
from ._shared import Early, as_grid, generator
from .clip_ad import inner_layers, layer_maps, minmax

Pixels = Annotated[int, Within(1, 4096**2)]
Draw = Callable[[str, str, int], Tensor]
"""``draw(key, what, number)`` gives the standard normal numbers (E,) of one draw for an image.

``what`` is ``context``, ``normal`` or ``abnormal``; what is the same for all images has the empty key.
"""
MINMAX_EPSILON = 1e-8
MAPS_AT_ONCE = 16
"""Maps of pairs that exist together at pixel size: an image has 120."""


@dataclass(frozen=True)
class BayesPfl(Sizes):
    """Pairs of prompts whose vectors are moved by drawn biases: context by the image's, states by fixed ones.

    ``prompts`` prompts have ``context`` vectors that both sides share and ``state`` vectors of each side.
    Biases are drawn ``draws`` times and pass ``flows`` planar flows; without draws (0) their means do.
    Context biases are drawn by ``seed`` and the image's key, or the same for all with ``common_draws``.
    Texts ask the patches that leave the blocks ``features`` (from 1) with ``heads`` heads.  The image's
    probability sees the patches in stage 2 of the training, not in stage 1.

    Evidence is exact, a logit for each pair and block, unless ``nodes`` is set: then probabilities at so
    many places a patch side are kept, linear between them.  The image score weighs the probability by
    ``weight`` against the mean of the map's ``top_pixels`` greatest pixels (``few_pixels`` for
    ``few_classes``), each min-maxed over the category.
    """

    backbone: Backbone = Backbone("ViT-L-14-336", "openai", activation="gelu")
    preprocess: Preprocess = Preprocess(518)
    checkpoint: str = ""
    draws: Number = 10
    common_draws: bool = False
    seed: Seed = 333
    features: tuple[Count, ...] = (6, 12, 18, 24)
    heads: Count = 4
    stage: Literal[1, 2] = 2
    nodes: Number = 0
    image_score: Literal["reference", "probability", "sum", "max"] = "reference"
    weight: Share = 0.5
    top_pixels: Pixels = 2000
    few_pixels: Pixels = 20
    few_classes: tuple[str, ...] = (
        "capsules",
        "macaroni1",
        "macaroni2",
        "pipe_fryum",
        "screw",
        "cashew",
        "chewinggum",
    )
    sigma: Sigma = 8.0

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> BayesPflObserver:
        """Load what was learned, look up the categories' words and ask for the blocks' outputs.

        Raises:
            MethodError: without a checkpoint, or if a parameter does not fit the backbone.
            WeightsError: if the checkpoint cannot be read or does not fit.
        """
        check_fit(self, clip)
        learned = load_checkpoint(self.checkpoint, "bayes-pfl", checkpoint_shapes(self, clip))
        learned = {name: value.to(clip.device) for name, value in learned.items()}
        clip.vision.tap(stream=inner_layers(self, clip))
        draw = Early(seeded(self.seed, clip.text.width))
        return BayesPflObserver(self, clip, learned, word_tokens(self, clip, wordings), draw)

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the mean probability over all blocks and pairs at ``size``, smoothed."""
        sigma = self.sigma * size[0] / self.preprocess.size
        if self.nodes:
            return render(evidence["map"], size, align_corners=True, sigma=sigma)
        return render(mean_map(evidence["logits"], size), size, sigma=sigma)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the image's probability, alone or with what the map says."""
        p = evidence["score"]
        if self.image_score == "probability":
            return p
        top = extrema[:, 1].to(p) if self.image_score == "max" else evidence["top"]
        if self.image_score != "sum":
            p, top = minmax(p, MINMAX_EPSILON), minmax(top, MINMAX_EPSILON)
        return self.weight * p + (1 - self.weight) * top


@dataclass(frozen=True)
class BayesPflObserver:
    """Evidence: ``score`` and ``top`` (B,); ``logits`` (B, K, gh, gw) of blocks times pairs, or ``map``.

    The latter lies at nodes.  ``words`` are each category's token ids; ``draw`` gives the random numbers.
    """

    method: BayesPfl
    clip: Clip
    learned: Mapping[str, Tensor]
    words: Mapping[str, Tensor]
    draw: Draw

    def observe(self, batch: Batch) -> Evidence:
        """Draw texts for each image, compare its embedding with them, and its patches once they asked."""
        method, learned, vision = self.method, self.learned, self.clip.vision
        tokens = tokens_of(batch.categories, self.words)
        trace, grid = vision.trace(batch), vision.grid(batch.images)
        patches, image = patch_tokens(method, trace), vision.project(trace.output[:, 0]).float()

        context = context_bias(learned, image, self.noise("context", batch.keys)).end
        texts = encode_texts(self.clip, learned, tokens, context, self.state)
        score = probability(class_logits(method, learned, texts, image, patches))
        logits = as_grid(differences(method, learned, patches, texts).flatten(1, 2), grid)

        size = (batch.images.shape[-2], batch.images.shape[-1])
        top = top_mean(mean_map(logits, size), [self.pixels(name) for name in batch.categories])
        kept = {"map": at_nodes(logits, method.nodes)} if method.nodes else {"logits": logits}
        return {"score": score, "top": top, **kept}

    @cached_property
    def state(self) -> Tensor:
        """Biases (2, R, E) of the normal and the abnormal state: the same for all images."""
        noise = torch.cat([self.noise(side, [""]) for side in SIDES])
        return state_bias(self.learned, noise).end

    def draw_ahead(self, keys: Sequence[str], categories: Sequence[str]) -> None:
        """Begin to draw, on threads, the random numbers of images that come next."""
        if isinstance(self.draw, Early) and not self.method.common_draws:
            self.draw.announce([(key, "context", j) for key in keys for j in range(self.method.draws)])

    def noise(self, what: str, keys: Sequence[str]) -> Tensor:
        """Return the images' standard normal draws (B, R, E); zeros where the mean stands for them."""
        if not self.method.draws:
            return torch.zeros(len(keys), 1, self.clip.text.width, device=self.clip.device)
        whose = [""] * len(keys) if self.method.common_draws else keys
        rows = [[self.draw(key, what, j) for j in range(self.method.draws)] for key in whose]
        return torch.stack([torch.stack(row) for row in rows]).to(self.clip.device)

    def pixels(self, category: str) -> int:
        """Return how many pixels of a map make the image score."""
        return self.method.few_pixels if category in self.method.few_classes else self.method.top_pixels


def seeded(seed: int, width: int) -> Draw:
    """Return draws of ``width`` numbers, each from a generator of its own: free of any order and batch."""

    def draw(key: str, what: str, number: int) -> Tensor:
        return torch.from_numpy(generator(seed, key, what, number).standard_normal(width, dtype=np.float32))

    return draw


def patch_tokens(method: BayesPfl, trace: Trace) -> list[Tensor]:
    """Return the patches (B, N, W) that leave each block of ``features``, in float32."""
    return [trace.after(layer)[:, 1:].float() for layer in method.features]


def class_logits(
    method: BayesPfl, learned: Mapping[str, Tensor], texts: Tensor, image: Tensor, patches: Sequence[Tensor]
) -> Tensor:
    """Return logits (B, 2, T) of the raw ``image`` embedding (B, E) against unit ``texts`` (B, 2, T, E)."""
    if method.stage == 2:
        image = _linear(learned, "image_mapping", image + fused(learned, patches))
    mapped = F.normalize(_linear(learned, "class_mapping", texts), dim=-1)
    cosines = mapped @ F.normalize(image, dim=-1)[:, None, :, None]
    return learned["temperature_image"].exp() * cosines[..., 0]


def probability(logits: Tensor) -> Tensor:
    """Return the mean anomaly probability (B,) over the pairs of ``logits`` (B, 2, T)."""
    return torch.sigmoid(logits[:, 1] - logits[:, 0]).mean(dim=1)


def fused(learned: Mapping[str, Tensor], patches: Sequence[Tensor]) -> Tensor:
    """Return what is pooled (B, E) from the patches of all blocks, by a softmax over the patches."""
    hidden = _linear(learned, "fuse.fuse_modules", torch.cat([*patches], dim=-1))
    weights = _linear(learned, "fuse.compress", hidden).softmax(dim=1)
    return _linear(learned, "fuse.post_process", (weights.mT @ hidden)[:, 0])


def differences(
    method: BayesPfl, learned: Mapping[str, Tensor], patches: Sequence[Tensor], texts: Tensor
) -> Tensor:
    """Return abnormal minus normal logits (B, blocks, T, N) of patches against texts that have asked them."""
    found = []
    for number, tokens in enumerate(patches):
        own = projected(learned, number, tokens)
        answers = asked(method, learned, own, texts)
        found.append((answers[:, 1] - answers[:, 0]) @ own.mT)
    return learned["temperature_pixel"].exp() * torch.stack(found, dim=1)


def projected(learned: Mapping[str, Tensor], number: int, tokens: Tensor) -> Tensor:
    """Return unit patches (B, N, E) of the block that is listed as ``number``."""
    return F.normalize(tokens @ learned[f"RCA.linear_proj.{number}.weight"].T, dim=-1)


def asked(method: BayesPfl, learned: Mapping[str, Tensor], patches: Tensor, texts: Tensor) -> Tensor:
    """Return unit ``texts`` (B, 2, T, E) after they attend to unit ``patches`` (B, N, E); with a residual.

    Keys and values are the patches themselves; the scale is that of the whole width, not of a head's.
    """
    query = F.linear(texts, learned["RCA.q_proj_pre.weight"][..., 0], learned["RCA.q_proj_pre.bias"])
    heads = torch.unflatten(query.flatten(1, 2), -1, (method.heads, -1)).transpose(1, 2)
    keys = torch.unflatten(patches, -1, (method.heads, -1)).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(heads, keys, keys, scale=texts.shape[-1] ** -0.5)
    return F.normalize(mixed.transpose(1, 2).reshape(texts.shape) + texts, dim=-1)


def _linear(learned: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, learned[f"{name}.weight"], learned[f"{name}.bias"])


def mean_map(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mean (B, H, W) of the probabilities of all ``logits`` (B, K, gh, gw), enlarged before."""
    found = logits.new_zeros(len(logits), *size)
    for part in torch.split(logits, max(1, MAPS_AT_ONCE // len(logits)), dim=1):
        found += layer_maps(part, size).sum(dim=1)
    return found / logits.shape[1]


def at_nodes(logits: Tensor, nodes: int) -> Tensor:
    """Return `mean_map` at ``nodes`` places a patch side, between the centres of the outer patches."""
    rows, columns = ((side - 1) * nodes + 1 for side in logits.shape[-2:])
    return mean_map(logits, (rows, columns))


def top_mean(maps: Tensor, counts: Sequence[int]) -> Tensor:
    """Return for each of ``maps`` (B, H, W) the mean (B,) of so many of its greatest pixels."""
    rows = zip(maps.flatten(1), counts, strict=True)
    return torch.stack([row.topk(min(count, len(row))).values.mean() for row, count in rows])


def checkpoint_shapes(method: BayesPfl, clip: Clip) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every learned parameter, named as in the authors' files."""
    wide, embed = clip.vision.proj.shape
    hidden, blocks = wide // 2, len(method.features)
    shapes: dict[str, tuple[int, ...]] = {"temperature_pixel": (), "temperature_image": ()}
    shapes |= prompt_shapes(method, embed, hidden)
    linear = {
        "fuse.fuse_modules": (hidden, blocks * wide),
        "fuse.compress": (1, hidden),
        "fuse.post_process": (embed, hidden),
        "class_mapping": (embed, embed),
        "image_mapping": (embed, embed),
    }
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes |= {"RCA.q_proj_pre.weight": (embed, embed, 1), "RCA.q_proj_pre.bias": (embed,)}
    return shapes | {f"RCA.linear_proj.{number}.weight": (embed, wide) for number in range(blocks)}


def check_fit(method: BayesPfl, clip: Clip) -> None:
    """Refuse blocks, heads, counts and widths that do not fit."""
    depth, joint = len(clip.vision.blocks), clip.vision.proj.shape[1]
    if not method.features or not all(1 <= layer <= depth for layer in method.features):
        raise MethodError(
            f"features={','.join(map(str, method.features))}: the backbone has blocks 1 to {depth}"
        )
    if joint != clip.text.width:
        raise MethodError(
            f"the image embedding has {joint} numbers, the text tower's words {clip.text.width}: a bias made "
            "of one cannot be added to the others; choose another --backbone, such as ViT-L-14-336"
        )
    if joint % method.heads:
        raise MethodError(f"{method.heads} heads do not divide the joint width {joint}")
