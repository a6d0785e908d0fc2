"""AA-CLIP (Ma et al., CVPR 2025, arXiv 2503.06661): adapters in the early blocks of both CLIP towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, ensemble, load_checkpoint, read_provenance
from zsadbench.errors import MethodError, WeightsError
from zsadbench.inputs import Backbone, Batch, Count, Number, Preprocess, Share, Sigma
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._shared import Anchors, as_grid, ensemble_anchors

SCALE = 100.0
SLOPE = 0.01


@dataclass(frozen=True)
class AaClip:
    """Adapted patch tokens of four ``levels`` against adapted text anchors.

    An adapter follows each of the first ``image_adapters`` and ``text_adapters`` blocks and makes up a
    share ``mix`` of the stream; with no text adapter the texts are plain CLIP's.  ``relu`` puts a
    LeakyReLU behind the image heads.  The map is smoothed on the patch grid: ``blur_taps`` and
    ``blur_sigma`` count patches.  The image score is ``map_share`` of the map's maximum, the rest the
    class score, each min-maxed over the test images of a category (``image_score = "reference"``); the
    ``inductive`` score of an image is its class score alone, or its map's maximum where that is all.
    """

    backbone: Backbone = Backbone("ViT-L-14-336", "openai", activation="gelu")
    preprocess: Preprocess = Preprocess(518)
    checkpoint: str = ""
    normal: tuple[str, ...] = ("{}", "a {}", "the {}")
    anomalous: tuple[str, ...] = (
        "a damaged {}",
        "a broken {}",
        "a {} with flaw",
        "a {} with defect",
        "a {} with damage",
    )
    templates: tuple[str, ...] = ("{}.", "a photo of {}.")
    levels: tuple[Count, ...] = (6, 12, 18, 24)
    image_adapters: Number = 6
    text_adapters: Number = 3
    mix: Share = 0.1
    relu: bool = False
    blur_taps: Count = 7
    blur_sigma: Sigma = 1.0
    map_share: Share = 0.5
    image_score: Literal["reference", "inductive"] = "reference"

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> AaClipObserver:
        """Load the adapters and encode the prompts of each category through the adapted text tower.

        Raises:
            MethodError: without a checkpoint, or if a parameter does not fit the backbone.
            WeightsError: if the checkpoint cannot be read, does not fit, or was trained with another
                activation.
        """
        check_fit(self, clip)
        learned = load_checkpoint(self.checkpoint, "aa-clip", checkpoint_shapes(self, clip))
        _refuse_other_activation(self.checkpoint, clip)
        learned = {key: value.to(clip.device) for key, value in learned.items()}
        with torch.no_grad():
            anchors = text_anchors(self, clip, learned, wordings)
        dtype = clip.vision.proj.dtype
        image_side = {key: value.to(dtype) for key, value in learned.items() if key.startswith("image")}
        return AaClipObserver(self, clip, anchors, image_side)

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the sum over levels of (1 + abnormal - normal) / 2, smoothed on the grid, then bilinear."""
        smoothed = blur(evidence["map"].float(), self.blur_taps, self.blur_sigma)
        return len(self.levels) / 2 + SCALE / 2 * render(smoothed, size, align_corners=True)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return class score and map maximum fused over the category, or the inductive score."""
        class_score, highest = (evidence["score"] + 1) / 2, extrema[:, 1]
        if self.image_score == "inductive":
            return class_score if self.map_share < 1 else highest
        peak = min_max(highest, extrema[:, 0].min(), highest.max())
        relative = min_max(class_score, class_score.min(), class_score.max())
        return self.map_share * peak + (1 - self.map_share) * relative


@dataclass(frozen=True)
class AaClipObserver:
    """Evidence: ``map`` (B, g, g), cosine with abnormal minus normal summed over levels; ``score`` (B,).

    ``score`` is the cosine of the detection feature with the abnormal anchor alone.
    """

    method: AaClip
    clip: Clip
    anchors: Anchors
    learned: Mapping[str, Tensor]

    def observe(self, batch: Batch) -> Evidence:
        """Compare each level's patches, and the mean of the last level's, with each image's anchors."""
        anchors = self.anchors.of(batch.categories)
        levels = self.level_tokens(batch.images[:, 0])
        grids = [difference(self.patch_features(x, level), anchors) for level, x in enumerate(levels)]
        return {
            "map": as_grid(torch.stack(grids).sum(dim=0)),
            "score": (self.detection_feature(levels[-1]) * anchors[:, 1]).sum(dim=-1),
        }

    def level_tokens(self, images: Tensor) -> list[Tensor]:
        """Return the patch tokens (B, N, W) after each block of ``levels``, adapters included."""
        vision, method = self.clip.vision, self.method
        kept = []
        x = vision.embed(images)
        for number, block in enumerate(vision.blocks, start=1):
            x = block(x)
            if number <= method.image_adapters:
                x = adapt(
                    x, self.learned[f"image_adapter.layer_adapters.{number - 1}.fc.0.weight"], method.mix
                )
            if number in method.levels:
                kept.append(x[:, 1:])
        return kept

    def patch_features(self, tokens: Tensor, level: int) -> Tensor:
        """Return unit patch features (B, N, C) of a level's ``tokens`` through that level's head."""
        return self._through_head(tokens, f"seg_proj.{level}")

    def detection_feature(self, tokens: Tensor) -> Tensor:
        """Return the image feature (B, C): the mean of unit patch features, not of unit length itself."""
        return self._through_head(tokens, "det_proj").mean(dim=1)

    def _through_head(self, tokens: Tensor, name: str) -> Tensor:
        head = self.learned[_head(name, self.method.relu)]
        projected = self.clip.vision.ln_post(tokens) @ head.T
        projected = F.leaky_relu(projected, SLOPE) if self.method.relu else projected
        return F.normalize(projected.float(), dim=-1)


def checkpoint_shapes(method: AaClip, clip: Clip) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every learned parameter: the authors' two files, each under its prefix."""
    width, text_width, joint = clip.vision.width, clip.text.width, clip.vision.proj.shape[1]
    shapes: dict[str, tuple[int, ...]] = {}
    if method.text_adapters:
        adapters = range(method.text_adapters)
        shapes |= {f"text_adapter.{i}.fc.0.weight": (text_width, text_width) for i in adapters}
        shapes |= {f"text_adapter.{method.text_adapters}.fc.0.weight": (joint, text_width)}
    adapters = range(method.image_adapters)
    shapes |= {f"image_adapter.layer_adapters.{i}.fc.0.weight": (width, width) for i in adapters}
    heads = [*(f"seg_proj.{k}" for k in range(len(method.levels))), "det_proj"]
    return shapes | {_head(name, method.relu): (joint, width) for name in heads}


def _head(name: str, relu: bool) -> str:
    return f"image_adapter.{name}.fc{'.0' if relu else ''}.weight"


def text_anchors(
    method: AaClip, clip: Clip, learned: Mapping[str, Tensor], wordings: Mapping[str, str]
) -> Anchors:
    """Return the anchors of each category; gradients reach the text adapters in ``learned``."""
    states = (method.normal, method.anomalous)
    if not method.text_adapters:
        return ensemble_anchors(clip, wordings, *states, method.templates, normalise_prompts=True)
    table = {}
    for category, words in wordings.items():
        normal, anomalous = (ensemble(state, method.templates, words) for state in states)
        features = F.normalize(encode_prompts(method, clip, learned, normal + anomalous), dim=-1)
        means = [features[: len(normal)].mean(dim=0), features[len(normal) :].mean(dim=0)]
        table[category] = F.normalize(torch.stack(means), dim=-1)
    return Anchors(table)


def encode_prompts(
    method: AaClip, clip: Clip, learned: Mapping[str, Tensor], prompts: Sequence[str]
) -> Tensor:
    """Return text features (n, C), un-normalised: adapters after the first blocks, a head of their own.

    The head takes the place of CLIP's text projection, so the features do not lie in CLIP's joint space.
    """
    text, count = clip.text, method.text_adapters
    tokens = clip.tokenize(prompts)
    x = text.embed(tokens)
    for number, block in enumerate(text.blocks):
        x = block(x)
        if number < count:
            x = adapt(x, learned[f"text_adapter.{number}.fc.0.weight"], method.mix)
    end = text.module.ln_final(x)[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
    return F.leaky_relu(end @ learned[f"text_adapter.{count}.fc.0.weight"].T, SLOPE)


def adapt(x: Tensor, weight: Tensor, mix: float) -> Tensor:
    """Return tokens ``x`` (..., W) with a share ``mix`` of their adapted selves at the same length."""
    adapted = F.leaky_relu(x @ weight.T, SLOPE)
    adapted = adapted * _length(x) / _length(adapted)
    return mix * adapted + (1 - mix) * x


def _length(x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length


def difference(features: Tensor, anchors: Tensor) -> Tensor:
    """Return the cosine (B, N) of ``features`` (B, N, C) with the abnormal minus the normal anchor."""
    return (features @ (anchors[:, 1] - anchors[:, 0])[..., None])[..., 0]


def blur(grids: Tensor, taps: int, sigma: float) -> Tensor:
    """Return patch grids (B, g, g) under a Gaussian of ``taps`` patches, reflected without the edge."""
    if not sigma:
        return grids
    matrix = blur_matrix(grids.shape[-1], taps, sigma).to(grids)
    return matrix @ grids @ matrix.T


def blur_matrix(side: int, taps: int, sigma: float) -> Tensor:
    """Return the Gaussian of ``taps`` weights as a matrix (side, side) float64 along one axis."""
    offsets = torch.arange(taps) - taps // 2
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    period = max(2 * (side - 1), 1)
    source = (torch.arange(side)[:, None] + offsets) % period
    source = torch.minimum(source, period - source) if side > 1 else torch.zeros_like(source)
    matrix = torch.zeros(side, side, dtype=torch.float64)
    return matrix.scatter_add_(1, source, (weights / weights.sum()).expand(side, -1))


def min_max(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return ``values`` with ``low`` at 0 and ``high`` at 1; a maximum of exactly 1 leaves them as they are.

    Where ``low`` equals ``high``, and the authors' code divides 0 by 0, they are 0.
    """
    if high == 1:
        return values
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


def check_fit(method: AaClip, clip: Clip) -> None:
    """Refuse levels and adapters that the towers do not have."""
    depth, text_depth, levels = len(clip.vision.blocks), len(clip.text.blocks), method.levels
    if not levels or levels[0] < 1 or levels[-1] > depth or sorted(set(levels)) != list(levels):
        raise MethodError(
            f"levels {levels} are not rising block numbers of an image tower of {depth} blocks; "
            "choose others with --set levels=..."
        )
    if not (0 <= method.image_adapters <= depth and 0 <= method.text_adapters <= text_depth):
        raise MethodError(
            f"{method.image_adapters} image and {method.text_adapters} text adapters do not fit towers of "
            f"{depth} and {text_depth} blocks; choose fewer with --set image_adapters=..., text_adapters=..."
        )


def _refuse_other_activation(checkpoint: str, clip: Clip) -> None:
    trained_on = read_provenance(Path(checkpoint)).parameters.get("backbone")
    activation = trained_on.get("activation", "auto") if isinstance(trained_on, Mapping) else "auto"
    if activation not in ("auto", clip.backbone.activation):
        raise WeightsError(
            f"{checkpoint}: trained with the activation {activation}, but this CLIP runs with "
            f"{clip.backbone.activation}; choose --activation {activation}, or another checkpoint"
        )
