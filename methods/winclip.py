"""WinCLIP, zero-shot (Jeong et al., CVPR 2023): windows of patches, harmonically aggregated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zsadbench.clip import Clip
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Count, Positive, Preprocess, Sigma
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._shared import (
    ANOMALOUS_STATES,
    NORMAL_STATES,
    TEMPLATES_22,
    Anchors,
    anomaly_probability,
    ensemble_anchors,
    walked,
)

TOKENS_PER_FORWARD = {"cpu": 2048}
"""Of windows in one walk: on a core as many as its cache holds, on other devices 16,384."""

# A mean of scores is ``back(mean(to(scores)))``.
MEANS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "harmonic": (lambda s: 1 / s, lambda m: 1 / m),
    "arithmetic": (lambda s: s, lambda m: m),
    "harmonic_normal": (lambda s: 1 / (1 - s), lambda m: 1 - 1 / m),
}


@dataclass(frozen=True)
class WinClip:
    """Compositional prompts; windows of ``scales`` patches; the whole image is a scale of its own.

    ``aggregate`` is the mean over the windows of a patch and over scales: ``harmonic`` leans to the most
    normal score, ``harmonic_normal`` (the harmonic mean of the normal probability) to the most anomalous.
    ``sigma`` smooths the map by a Gaussian, in pixels at ``preprocess.size``; none by default.
    """

    backbone: Backbone = Backbone("ViT-B-16-plus-240", "laion400m_e31")
    preprocess: Preprocess = Preprocess(240)
    normal: tuple[str, ...] = NORMAL_STATES
    anomalous: tuple[str, ...] = ANOMALOUS_STATES
    templates: tuple[str, ...] = TEMPLATES_22
    normalise_prompts: bool = False
    temperature: Positive = 0.07
    scales: tuple[Count, ...] = (2, 3)
    stride: Count = 1
    aggregate: Literal["harmonic", "arithmetic", "harmonic_normal"] = "harmonic"
    image_scale_term: bool = True
    image_score: Literal["class_token", "map_maximum"] = "class_token"
    sigma: Sigma = 0.0

    def __post_init__(self) -> None:
        """Refuse values that no window or softmax can have."""
        if self.temperature <= 0 or self.stride < 1 or not self.scales:
            raise MethodError(
                "temperature must be above 0, stride at least 1, and scales needs a window size"
            )

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> WinClipObserver:
        """Encode the prompt ensembles of each category and ask for the embedded tokens."""
        anchors = ensemble_anchors(
            clip,
            wordings,
            self.normal,
            self.anomalous,
            self.templates,
            normalise_prompts=self.normalise_prompts,
        )
        clip.vision.tap(stream=[0])
        return WinClipObserver(self, clip, anchors)

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the multi-scale grid, bilinear at ``size``."""
        return render(evidence["map"], size, sigma=self.sigma * size[0] / self.preprocess.size)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the score of the whole image, or the maximum of its map."""
        return evidence["score"] if self.image_score == "class_token" else extrema[:, 1]


@dataclass(frozen=True)
class WinClipObserver:
    """Evidence: ``map`` (B, gh, gw), the mean over scales, and ``score`` (B,) of the whole image."""

    method: WinClip
    clip: Clip
    anchors: Anchors

    def observe(self, batch: Batch) -> Evidence:
        """Score the image, then every window of every scale, and aggregate."""
        vision = self.clip.vision
        trace, grid = vision.trace(batch), vision.grid(batch.images)
        anchors = self.anchors.of(batch.categories)
        score = self.scores(vision.project(trace.class_token), anchors)
        maps = [self.scale_map(trace.stream(0), anchors, grid, k) for k in self.method.scales]
        if self.method.image_scale_term:
            maps.append(score[:, None, None].double().expand_as(maps[0]))
        to, back = MEANS[self.method.aggregate]
        return {"score": score, "map": back(to(torch.stack(maps)).mean(dim=0)).float()}

    def scale_map(self, tokens: Tensor, anchors: Tensor, grid: tuple[int, int], k: int) -> Tensor:
        """Return for each patch the mean score (B, gh, gw) of the windows of ``k`` patches it lies in."""
        windows = window_index(grid, k, self.method.stride).to(tokens.device)
        scores = self.scores(embed_windows(self.clip, tokens, windows), anchors)
        return aggregate(scores, windows, grid, self.method.aggregate)

    def scores(self, features: Tensor, anchors: Tensor) -> Tensor:
        """Return the anomaly probability of image or window embeddings."""
        return anomaly_probability(features, anchors, 1 / self.method.temperature)


def window_index(grid: tuple[int, int], k: int, stride: int = 1) -> Tensor:
    """Return patch numbers (W, k*k) of the windows of ``k`` x ``k`` patches, row-major.

    The last window of each row and column is flush with the edge, so that every patch is covered.

    Raises:
        MethodError: if the window is larger than the grid.
    """
    rows, columns = grid
    if not 0 < k <= min(grid):
        raise MethodError(
            f"a window of {k} patches does not fit a grid of {rows} x {columns}; choose --set scales=..."
        )
    tops, lefts = (torch.tensor(sorted({*range(0, n - k + 1, stride), n - k})) for n in grid)
    corners = tops[:, None] * columns + lefts
    inside = torch.arange(k)[:, None] * columns + torch.arange(k)
    return corners.flatten()[:, None] + inside.flatten()


def embed_windows(clip: Clip, tokens: Tensor, windows: Tensor) -> Tensor:
    """Return window embeddings (B, W, C): the class token and a window's patches through all blocks.

    Patches keep the position embeddings they have in the whole image; all others are dropped.
    """
    with_class = torch.cat([torch.zeros_like(windows[:, :1]), windows + 1], dim=1)
    sequences = tokens[:, with_class].flatten(0, 1)
    most = TOKENS_PER_FORWARD.get(tokens.device.type, 16384)
    features = walked(clip.vision.encode, sequences, lambda: max(1, most // with_class.shape[1]))
    return torch.unflatten(features, 0, (tokens.shape[0], len(windows)))


def aggregate(scores: Tensor, windows: Tensor, grid: tuple[int, int], mean: str = "harmonic") -> Tensor:
    """Return for each patch the mean (B, gh, gw) float64 of the ``scores`` (B, W) of its windows."""
    to, back = MEANS[mean]
    patches = windows.flatten()
    cells = torch.zeros(scores.shape[0], grid[0] * grid[1], dtype=torch.float64, device=scores.device)
    summands = to(scores.double()).repeat_interleave(windows.shape[1], dim=1)
    total = cells.index_add(1, patches, summands)
    count = cells.index_add(1, patches, torch.ones_like(summands))
    return torch.unflatten(back(total / count), 1, grid)
