"""WinCLIP, zero-shot (Jeong et al., CVPR 2023): windows of patches, harmonically aggregated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zsadbench.clip import Clip
from zsadbench.errors import MethodError
from zsadbench.maps import render
from zsadbench.method import Backbone, Batch, Evidence, Preprocess

from ._shared import (
    ANOMALOUS_STATES,
    NORMAL_STATES,
    TEMPLATES_22,
    Anchors,
    anomaly_probability,
    ensemble_anchors,
)

TOKENS_PER_FORWARD = 16384


@dataclass(frozen=True)
class WinClip:
    """Compositional prompts; windows of ``scales`` patches; the image score is a scale of its own."""

    backbone: Backbone = Backbone("ViT-B-16-plus-240", "laion400m_e31")
    preprocess: Preprocess = Preprocess(240)
    normal: tuple[str, ...] = NORMAL_STATES
    anomalous: tuple[str, ...] = ANOMALOUS_STATES
    templates: tuple[str, ...] = TEMPLATES_22
    normalise_prompts: bool = False
    temperature: float = 0.07
    scales: tuple[int, ...] = (2, 3)

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> WinClipObserver:
        """Encode the prompt ensembles of each category."""
        anchors = ensemble_anchors(
            clip,
            wordings,
            self.normal,
            self.anomalous,
            self.templates,
            normalise_prompts=self.normalise_prompts,
        )
        return WinClipObserver(self, clip, anchors)

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the multi-scale grid, bilinear at ``size``; no smoothing."""
        return render(evidence["map"], size)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the score of the whole image."""
        return evidence["score"]


@dataclass(frozen=True)
class WinClipObserver:
    """Evidence: ``map`` (B, gh, gw), the harmonic mean over scales, and ``score`` (B,)."""

    method: WinClip
    clip: Clip
    anchors: Anchors

    def observe(self, batch: Batch) -> Evidence:
        """Score the image, then every window of every scale, and aggregate."""
        vision = self.clip.vision
        anchors = self.anchors.of(batch.categories)
        image = self.clip.vision.project(vision.trace(batch).output[:, 0])
        score = self.scores(image, anchors)
        tokens = vision.embed(batch.images[:, 0])
        side = batch.images.shape[-1] // vision.patch
        inverse = 1 / score[:, None, None].double()
        for k in self.method.scales:
            windows = window_index(side, side, k).to(tokens.device)
            scores = self.scores(embed_windows(self.clip, tokens, windows), anchors)
            inverse = inverse + 1 / harmonic_mean(scores, windows, (side, side))
        grid = (len(self.method.scales) + 1) / inverse
        return {"score": score, "map": grid.float()}

    def scores(self, features: Tensor, anchors: Tensor) -> Tensor:
        """Return the anomaly probability of image or window embeddings."""
        return anomaly_probability(features, anchors, 1 / self.method.temperature)


def window_index(rows: int, columns: int, k: int) -> Tensor:
    """Return patch numbers (W, k*k) of all windows of k x k patches, stride 1, row-major.

    Raises:
        MethodError: if the window is larger than the grid.
    """
    if k > min(rows, columns):
        raise MethodError(
            f"windows of {k} patches do not fit a {rows} x {columns} grid; choose smaller --set scales=..."
        )
    patches = torch.arange(rows * columns).view(rows, columns)
    return patches.unfold(0, k, 1).unfold(1, k, 1).reshape(-1, k * k)


def embed_windows(clip: Clip, tokens: Tensor, windows: Tensor) -> Tensor:
    """Return window embeddings (B, W, C): the class token and a window's patches through all blocks.

    Patches keep the position embeddings they have in the whole image; all others are dropped.
    """
    with_class = torch.cat([torch.zeros_like(windows[:, :1]), windows + 1], dim=1)
    sequences = tokens[:, with_class].flatten(0, 1)
    chunks = torch.split(sequences, max(1, TOKENS_PER_FORWARD // with_class.shape[1]))
    features = torch.cat([clip.vision.encode(chunk) for chunk in chunks])
    return torch.unflatten(features, 0, (len(tokens), len(windows)))


def harmonic_mean(scores: Tensor, windows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return for each patch the harmonic mean (B, gh, gw) float64 of its windows' ``scores`` (B, W)."""
    patches = windows.flatten()
    cells = torch.zeros(len(scores), grid[0] * grid[1], dtype=torch.float64, device=scores.device)
    inverse = (1 / scores.double()).repeat_interleave(windows.shape[1], dim=1)
    total = cells.index_add(1, patches, inverse)
    count = cells.index_add(1, patches, torch.ones_like(inverse))
    return torch.unflatten(count / total, 1, grid)
