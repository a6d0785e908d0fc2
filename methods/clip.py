"""CLIP as it is: class token and patch tokens against two texts (Radford et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from zsadbench.clip import Clip
from zsadbench.inputs import Backbone, Batch, Preprocess, Sigma
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._shared import Anchors, anomaly_probability, as_grid, ensemble_anchors


@dataclass(frozen=True)
class PlainClip:
    """The baseline: ordinary patch tokens of the last block, softmax at the model's logit scale.

    ``sigma`` smooths the map by a Gaussian, in pixels at ``preprocess.size``; none by default.
    """

    backbone: Backbone = Backbone("ViT-L-14-336", "openai", activation="quick_gelu")
    preprocess: Preprocess = Preprocess(518)
    normal: tuple[str, ...] = ("a photo of a normal {}",)
    anomalous: tuple[str, ...] = ("a photo of an anomalous {}",)
    templates: tuple[str, ...] = ("{}",)
    sigma: Sigma = 0.0

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> PlainClipObserver:
        """Encode the two texts of each category."""
        anchors = ensemble_anchors(clip, wordings, self.normal, self.anomalous, self.templates)
        return PlainClipObserver(clip, anchors)

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the probability grid, bilinear at ``size``."""
        return render(evidence["map"], size, sigma=self.sigma * size[0] / self.preprocess.size)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the anomaly probability of the class token."""
        return evidence["score"]


@dataclass(frozen=True)
class PlainClipObserver:
    """Evidence: ``map`` (B, gh, gw) and ``score`` (B,), both probabilities."""

    clip: Clip
    anchors: Anchors

    def observe(self, batch: Batch) -> Evidence:
        """Project the last block's tokens and compare them with both texts."""
        vision = self.clip.vision
        features = vision.project(vision.trace(batch).output)
        p = anomaly_probability(features, self.anchors.of(batch.categories), self.clip.logit_scale)
        return {"score": p[:, 0], "map": as_grid(p[:, 1:], vision.grid(batch.images))}
