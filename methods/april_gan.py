"""APRIL-GAN, zero-shot (Chen et al., arXiv 2305.17382): linear layers from patch tokens to texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from zsadbench.clip import Clip, load_checkpoint
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Count, Preprocess
from zsadbench.method import Evidence

from ._shared import FLAWED, NORMAL_STATES, Anchors, anomaly_probability, as_grid, ensemble_anchors
from .clip_ad import SCALE, Linear, checkpoint_shapes, inner_layers, layer_logits, layer_maps, linear_layers


@dataclass(frozen=True)
class AprilGan:
    """The ordinary tower's tokens after the blocks ``features`` (from 1), one trained layer for each.

    ``checkpoint`` is the file of these layers: ``fc.0.weight`` (C, W), ``fc.0.bias`` (C,), and so on.
    """

    backbone: Backbone = Backbone("ViT-L-14-336", "openai", activation="gelu")
    preprocess: Preprocess = Preprocess(518, rgb="after")
    normal: tuple[str, ...] = NORMAL_STATES
    anomalous: tuple[str, ...] = ("damaged {}", "broken {}", *FLAWED)
    templates: tuple[str, ...] = (
        "a bad photo of a {}.",
        "a low resolution photo of the {}.",
        "a bad photo of the {}.",
        "a cropped photo of the {}.",
        "a bright photo of a {}.",
        "a dark photo of the {}.",
        "a photo of my {}.",
        "a photo of the cool {}.",
        "a close-up photo of a {}.",
        "a black and white photo of the {}.",
        "a bright photo of the {}.",
        "a cropped photo of a {}.",
        "a jpeg corrupted photo of a {}.",
        "a blurry photo of the {}.",
        "a photo of the {}.",
        "a good photo of the {}.",
        "a photo of one {}.",
        "a close-up photo of the {}.",
        "a photo of a {}.",
        "a low resolution photo of a {}.",
        "a photo of a large {}.",
        "a blurry photo of a {}.",
        "a jpeg corrupted photo of the {}.",
        "a good photo of a {}.",
        "a photo of the small {}.",
        "a photo of the large {}.",
        "a black and white photo of a {}.",
        "a dark photo of a {}.",
        "a photo of a cool {}.",
        "a photo of a small {}.",
        "there is a {} in the scene.",
        "there is the {} in the scene.",
        "this is a {} in the scene.",
        "this is the {} in the scene.",
        "this is one {} in the scene.",
    )
    features: tuple[Count, ...] = (6, 12, 18, 24)
    checkpoint: str = ""

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> AprilGanObserver:
        """Load the linear layers, encode the prompt ensembles and ask for the blocks' outputs.

        Raises:
            MethodError: if a block of ``features`` is not in the tower, or without a checkpoint.
            WeightsError: if the checkpoint cannot be read or does not fit.
        """
        check_layers(self, clip)
        learned = load_checkpoint(self.checkpoint, "april-gan", checkpoint_shapes(self, clip))
        clip.vision.tap(stream=inner_layers(self, clip))
        return AprilGanObserver(self, clip, self.anchors(clip, wordings), linear_layers(learned, clip.device))

    def anchors(self, clip: Clip, wordings: Mapping[str, str]) -> Anchors:
        """Return the mean of unit prompt features for both states of each category."""
        return ensemble_anchors(
            clip, wordings, self.normal, self.anomalous, self.templates, normalise_prompts=True
        )

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the sum of the layers' probability maps; no smoothing."""
        return layer_maps(evidence["layers"], size).sum(dim=1)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the anomaly probability of the image embedding."""
        return evidence["score"]


def check_layers(method: AprilGan, clip: Clip) -> None:
    """Refuse blocks that the tower does not have."""
    depth = len(clip.vision.blocks)
    if not method.features or not all(1 <= layer <= depth for layer in method.features):
        raise MethodError(
            f"features={','.join(map(str, method.features))}: the backbone has blocks 1 to {depth}"
        )


@dataclass(frozen=True)
class AprilGanObserver:
    """Evidence: ``layers`` (B, K, g, g), logits, and ``score`` (B,), a probability."""

    method: AprilGan
    clip: Clip
    anchors: Anchors
    linear: Sequence[Linear]

    def observe(self, batch: Batch) -> Evidence:
        """Read the ordinary stream after each block and compare its tokens with the texts."""
        anchors = self.anchors.of(batch.categories)
        trace = self.clip.vision.trace(batch)
        tokens = [trace.after(layer)[:, 1:] for layer in self.method.features]
        image = self.clip.vision.project(trace.output[:, 0])
        logits = layer_logits(tokens, self.linear, anchors)
        return {
            "layers": as_grid(logits, self.clip.vision.grid(batch.images)),
            "score": anomaly_probability(image, anchors, SCALE),
        }
