"""AnoCLIP (Deng et al., arXiv 2308.15939): value-value attention and domain-aware state prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, anchor, ensemble
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Number, Preprocess
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._shared import FLAWED, FLAWLESS, Anchors, anomaly_probability, as_grid, walked

VIEWS_PER_FORWARD = 21
CACHED_TOKENS = 1024
"""How many tokens a core walks at once: what is computed of more does not stay in its cache."""


def _family(noun: str, article: str) -> tuple[str, ...]:
    """Return the 22 templates of one domain, such as ``an`` + ``industrial photo``."""
    prefixes = [
        *(f"a {kind} {noun} of {which}" for kind, whiches in _KINDS for which in whiches),
        *(f"{article} {noun} of {which}" for which in ("a {}", "the {}", "a small {}", "the small {}")),
        *(f"{article} {noun} of {which}" for which in ("a large {}", "the large {}")),
    ]
    purposes = product(("visual inspection", "anomaly detection"), ("the {}", "a {}"))
    return (*prefixes, *(f"{article} {noun} of {which} for {purpose}" for purpose, which in purposes))


_THE_A, _A_THE = ("the {}", "a {}"), ("a {}", "the {}")
_KINDS = (
    ("cropped", _THE_A),
    ("close-up", _A_THE),
    ("bright", _A_THE),
    ("dark", _THE_A),
    ("jpeg corrupted", _A_THE),
    ("blurry", _THE_A),
)


@dataclass(frozen=True)
class AnoClip:
    """Training-free AnoCLIP.

    The class feature comes from the ordinary stream, the patch features from a second stream of
    value-value attention over the last ``dual_blocks`` blocks.  ``augment`` averages the image score
    over 22 views of each image (square scheme only); with ``preprocess.tiles = "ends"`` it is the mean
    over two square tiles.
    """

    backbone: Backbone = Backbone("ViT-B-16-plus-240", "laion400m_e32")
    preprocess: Preprocess = Preprocess(240, interpolation="bilinear")
    normal: tuple[str, ...] = ("normal {}", *FLAWLESS)
    anomalous: tuple[str, ...] = ("damaged {}", "abnormal {}", "imperfect {}", "blemished {}", *FLAWED)
    templates: tuple[str, ...] = (
        *_family("industrial photo", "an"),
        *_family("industrial image", "an"),
        *_family("manufacturing image", "a"),
    )
    texture_templates: tuple[str, ...] = (
        *_family("industrial photo", "an"),
        *_family("textural photo", "a"),
        *_family("surface picture", "a"),
    )
    textures: tuple[str, ...] = ("carpet", "leather", "grid", "tile", "wood")
    dual_blocks: Number = 12
    augment: bool = True

    def __post_init__(self) -> None:
        """Refuse a local stream without attention."""
        if self.dual_blocks < 1:
            raise MethodError("dual_blocks must be at least 1: the local stream needs a block to attend in")

    def prompts(self, category: str, words: str) -> tuple[list[str], list[str]]:
        """Return the normal and the anomalous prompts of a category."""
        templates = self.texture_templates if category in self.textures else self.templates
        normal, anomalous = (
            ensemble(states, templates, words, template_major=True)
            for states in (self.normal, self.anomalous)
        )
        return normal, anomalous

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> AnoClipObserver:
        """Encode the prompt ensembles of each category and ask for the value-value attention."""
        table = {
            category: torch.stack([anchor(clip, prompts) for prompts in self.prompts(category, words)])
            for category, words in wordings.items()
        }
        depth = len(clip.vision.blocks)
        first = max(0, depth - self.dual_blocks)
        clip.vision.tap(stream=[first], values=range(first, depth))
        return AnoClipObserver(self, clip, Anchors(table))

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the 3 x 3 mean of the probability grid, bilinear (corners aligned), tiles stitched."""
        grids = box_mean(evidence["map"])
        if grids.shape[1] == 1:
            return render(grids[:, 0], size, align_corners=True)
        return stitched(grids, evidence["frame"], size, self.preprocess.size)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the mean anomaly probability of the class feature over views or tiles."""
        return evidence["views"].mean(dim=1)


@dataclass(frozen=True)
class AnoClipObserver:
    """Evidence: ``map`` (B, T, g, g) and ``views`` (B, V), probabilities at temperature 1."""

    method: AnoClip
    clip: Clip
    anchors: Anchors

    def observe(self, batch: Batch) -> Evidence:
        """Walk both paths, then compare the class feature and the patch tokens with the texts."""
        tiles = batch.images.shape[1]
        anchors = self.anchors.of(batch.categories)
        feature, tokens = self.dual_path(batch)
        patches = anomaly_probability(tokens, anchors.repeat_interleave(tiles, 0))
        grids = as_grid(patches, self.clip.vision.grid(batch.images))
        views = anomaly_probability(torch.unflatten(feature, 0, (-1, tiles)), anchors)
        if self.method.augment and tiles == 1:
            views = torch.cat([views, self.augmented(batch, anchors)], dim=1)
        return {"map": torch.unflatten(grids, 0, (-1, tiles)), "views": views}

    def dual_path(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the class feature (B*T, C) and the local patch tokens (B*T, N, C), un-normalised."""
        vision = self.clip.vision
        trace = vision.trace(batch)
        first = max(0, len(vision.blocks) - self.method.dual_blocks)
        local = trace.stream(first)
        for block in range(first, len(vision.blocks)):
            local = local + trace.values(block)  # reads the ordinary stream; no MLP
        return vision.project(trace.class_token), vision.project(local[:, 1:])

    def augmented(self, batch: Batch, anchors: Tensor) -> Tensor:
        """Return the anomaly probabilities (B, 21) of the views other than the image itself."""
        trace = self.clip.vision.trace(batch)
        features = trace.shared("augmented views", lambda: encode_views(self.clip, batch.images[:, 0]))
        return anomaly_probability(features, anchors)


def encode_views(clip: Clip, images: Tensor) -> Tensor:
    """Return the class features (B, 21, C) of every augmented view."""
    views, vision = torch.stack(augmentations(images), dim=1), clip.vision
    features = walked(
        lambda some: vision.encode(vision.embed(some)),
        views.flatten(0, 1),
        lambda: views_at_once(clip, images),
    )
    return torch.unflatten(features, 0, views.shape[:2])


def views_at_once(clip: Clip, images: Tensor) -> int:
    """Return how many views of ``images`` (B, 3, S, S) go through the tower at once."""
    if images.device.type == "cpu":
        return max(1, CACHED_TOKENS // (1 + math.prod(clip.vision.grid(images))))
    return max(len(images), VIEWS_PER_FORWARD)


def augmentations(images: Tensor) -> list[Tensor]:
    """Return 21 views of normalised ``images`` (B, 3, S, S): rotated, shifted, flipped, grey, turned."""
    sixteenth = math.pi / 16
    turns = [step * sixteenth for step in (-4, -3, -2, -1, 1, 2, 3, 4)]
    rotations = [[[math.cos(t), -math.sin(t), 0], [math.sin(t), math.cos(t), 0]] for t in turns]
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    shifts = [[[1, 0, a * d], [0, 1, b * d]] for d in (0.2, 0.1) for a, b in signs]
    grey = torch.tensor([0.299, 0.587, 0.114], device=images.device, dtype=images.dtype)
    return [
        *(affine(images, matrix) for matrix in rotations + shifts),
        images.flip(-1),
        torch.einsum("c,bchw->bhw", grey, images)[:, None].expand_as(images),
        *(images.rot90(k, (-2, -1)) for k in (1, 2, 3)),
    ]


def affine(images: Tensor, matrix: list[list[float]]) -> Tensor:
    """Return ``images`` sampled through a 2 x 3 affine matrix, bilinear, reflected, corners aligned."""
    theta = torch.tensor(matrix, device=images.device, dtype=images.dtype).expand(images.shape[0], 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=True)


def box_mean(grids: Tensor) -> Tensor:
    """Return the 3 x 3 mean of ``grids`` (B, T, g, g), edges replicated."""
    return F.avg_pool2d(F.pad(grids, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def stitched(grids: Tensor, frames: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Return maps (B, H, W) of two tiles of ``side`` pixels, averaged where they overlap in the frame."""
    tiles = [render(grids[:, t], (side, side), align_corners=True) for t in (0, 1)]
    return torch.stack(
        [
            _resized(stitch(first, last, (int(frame[0]), int(frame[1]))), size)
            for first, last, frame in zip(*tiles, frames, strict=True)
        ]
    )


def stitch(first: Tensor, last: Tensor, frame: tuple[int, int]) -> Tensor:
    """Return a (..., H, W) map of two square tiles at both ends of ``frame``, averaged in the overlap."""
    if frame[0] > frame[1]:
        return stitch(first.mT, last.mT, (frame[1], frame[0])).mT
    side, width = first.shape[-1], frame[1]
    gap = width - side
    both = (first[..., gap:] + last[..., : side - gap]) / 2
    return torch.cat([first[..., :gap], both, last[..., side - gap :]], dim=-1)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape) == tuple(size):
        return image
    return F.interpolate(image[None, None], size, mode="bilinear", align_corners=False)[0, 0]
