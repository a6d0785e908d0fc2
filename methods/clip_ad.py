"""CLIP-AD (Chen et al., arXiv 2311.00453): the staged dual path (SDP) and its fine-tuned form (SDP+)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from zsadbench.clip import Clip, Trace, encode, ensemble, load_checkpoint
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Count, Positive, Preprocess, Sigma
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._shared import FLAWED, FLAWLESS, TEMPLATES_22, Anchors, as_grid

STAGES = 4
SCALE = 100.0

Selection = Literal["mean", "dbscan", "mean_shift", "kde", "pca"]


@dataclass(frozen=True)
class ClipAd:
    """SDP: the tower's depth is cut in four stages, each with a value-value path of its own.

    ``features`` are the blocks (from 1) read out, ends of stages.  ``selection`` is the rule that takes
    one vector from a state's prompts: DBSCAN's largest cluster with ``eps`` and ``min_samples``.
    ``half_text`` rounds that vector to float16 before its normalisation.  ``tap="reference"`` reads a
    block's output together with the next block's attention, as the authors' code does by an in-place
    sum; ``"clean"`` reads the output itself.
    """

    backbone: Backbone = Backbone("ViT-B-16-plus-240", "laion400m_e31")
    preprocess: Preprocess = Preprocess(240, rgb="after")
    normal: tuple[str, ...] = (
        *FLAWLESS,
        "{} without scratch",
        "{} without crack",
        "{} without contamination",
    )
    anomalous: tuple[str, ...] = (
        "damaged {}",
        "imperfect {}",
        "blemished {}",
        "broken {}",
        *FLAWED,
        "{} with scratch",
        "{} with crack",
        "{} with contamination",
    )
    # The order decides to which cluster DBSCAN gives a point between two.
    templates: tuple[str, ...] = (
        *TEMPLATES_22[:12],
        "a photo of the {}.",
        "a photo of a {}.",
        "a photo of a large {}.",
        "a photo of the small {}.",
        "a photo of the large {}.",
        "a photo of a small {}.",
        *TEMPLATES_22[18:],
    )
    features: tuple[Count, ...] = (3, 6, 9, 12)
    selection: Selection = "dbscan"
    eps: Positive = 0.5
    min_samples: Count = 15
    half_text: bool = False
    tap: Literal["reference", "clean"] = "reference"
    sigma: Sigma = 8.0
    image_score: Literal["reference", "inductive"] = "reference"

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> ClipAdObserver:
        """Select the text anchors of each category and ask for the taps.

        Raises:
            MethodError: if ``features`` are no ends of stages.
        """
        check_stages(self.features, len(clip.vision.blocks))
        clip.vision.tap(**{"middle" if self.tap == "reference" else "stream": inner_layers(self, clip)})
        clip.vision.tap(values=range(max(self.features)))
        return ClipAdObserver(self, clip, self.anchors(clip, wordings))

    def anchors(self, clip: Clip, wordings: Mapping[str, str]) -> Anchors:
        """Return the representative vector of both states of each category."""
        table = {}
        for category, words in wordings.items():
            rows = []
            for states in (self.normal, self.anomalous):
                prompts = encode(clip, ensemble(states, self.templates, words))
                rows.append(self.representative(F.normalize(prompts, dim=-1), category))
            table[category] = torch.stack(rows)
        return Anchors(table)

    def representative(self, embeddings: Tensor, category: str) -> Tensor:
        """Return the unit vector (C,) that stands for unit prompt ``embeddings`` (n, C)."""
        if self.selection == "mean":
            return F.normalize(embeddings.mean(dim=0), dim=0)
        if self.selection == "dbscan":
            vector = dbscan(embeddings, self.eps, self.min_samples, category)
        else:
            vector = {"mean_shift": mean_shift, "kde": kde, "pca": pca}[self.selection](embeddings)
        return F.normalize(vector.half() if self.half_text else vector, dim=0).float()

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the summed class-weighted differences, bilinear, under a Gaussian."""
        return render(evidence["map"], size, sigma=self.sigma_at(size))

    def sigma_at(self, size: tuple[int, int]) -> float:
        """Return the Gaussian's width in pixels of a map of ``size``."""
        return self.sigma * size[0] / self.preprocess.size

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return class probability plus map maximum, each min-maxed over the category's images.

        The inductive rule is the class probability alone.
        """
        score = evidence["score"]
        if self.image_score == "inductive":
            return score
        return minmax(score) + minmax(extrema[:, 1].to(score))


@dataclass(frozen=True)
class ClipAdPlus(ClipAd):
    """SDP+: SDP plus one linear layer for each block read out, trained on another dataset.

    ``checkpoint`` is the file of these layers: ``fc.0.weight`` (C, W), ``fc.0.bias`` (C,), and so on.
    """

    checkpoint: str = ""

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> ClipAdObserver:
        """Prepare SDP and load the linear layers.

        Raises:
            MethodError: if ``features`` are no ends of stages, or without a checkpoint.
            WeightsError: if the checkpoint cannot be read or does not fit.
        """
        learned = load_checkpoint(self.checkpoint, "clip-ad+", checkpoint_shapes(self, clip))
        plain = super().prepare(clip, wordings)
        return ClipAdObserver(self, clip, plain.anchors, linear_layers(learned, clip.device))

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return SDP's map plus the probability maps of the linear layers, under one Gaussian."""
        combined = render(evidence["map"], size) + layer_maps(evidence["layers"], size).sum(dim=1)
        return render(combined, size, sigma=self.sigma_at(size))  # at its own size: the Gaussian alone


Linear = tuple[Tensor, Tensor]
"""Weight (C, W) and bias (C,) of one layer."""


@dataclass(frozen=True)
class ClipAdObserver:
    """Evidence: ``map`` (B, g, g), signed; ``score`` (B,); with linear layers ``layers`` (B, K, g, g)."""

    method: ClipAd
    clip: Clip
    anchors: Anchors
    linear: Sequence[Linear] = ()

    def observe(self, batch: Batch) -> Evidence:
        """Compare the tokens of each stage with the texts, weighted by what the class token says."""
        anchors = self.anchors.of(batch.categories)
        trace, grid = self.clip.vision.trace(batch), self.clip.vision.grid(batch.images)
        maps, similarity = [], torch.empty(0)
        for layer in self.method.features:
            features = F.normalize(self.surgery_tokens(trace, layer), dim=-1)
            similarity = features @ anchors.mT  # (B, 1+N, 2)
            maps.append(surgery(similarity)[:, 1:])
        score = torch.sigmoid(SCALE * (similarity[:, 0, 1] - similarity[:, 0, 0]))
        evidence = {"map": as_grid(torch.stack(maps).sum(dim=0), grid), "score": score}
        if self.linear:
            tokens = [self.tapped(trace, layer)[:, 1:] for layer in self.method.features]
            evidence["layers"] = as_grid(layer_logits(tokens, self.linear, anchors), grid)
        return evidence

    def tapped(self, trace: Trace, layer: int) -> Tensor:
        """Return the ordinary stream (B, 1+N, W) read out for block ``layer`` (from 1)."""
        if self.method.tap == "reference" and layer < len(self.clip.vision.blocks):
            return trace.middle(layer)
        return trace.after(layer)

    def surgery_tokens(self, trace: Trace, layer: int) -> Tensor:
        """Return projected tokens (B, 1+N, C) of the stage that ends at ``layer``, un-normalised.

        Patches are the sum of the stage's value-value attentions, without a residual; the class token is
        that of the ordinary stream.
        """
        stage = range(layer - len(self.clip.vision.blocks) // STAGES, layer)
        local = torch.stack([trace.values(block)[:, 1:] for block in stage]).sum(dim=0)
        last = layer == len(self.clip.vision.blocks)
        token = trace.class_token[:, None] if last else self.tapped(trace, layer)[:, :1]
        tokens = torch.cat([token, local], dim=1)
        return self.clip.vision.project(tokens).float()


def check_stages(features: Sequence[int], depth: int) -> None:
    """Refuse blocks that are no ends of the four stages of a tower of ``depth`` blocks."""
    if depth % STAGES:
        raise MethodError(
            f"a tower of {depth} blocks does not divide into {STAGES} stages; choose another backbone"
        )
    ends = [depth // STAGES * stage for stage in range(1, STAGES + 1)]
    if (
        not features
        or any(layer not in ends for layer in features)
        or list(features) != sorted(set(features))
    ):
        raise MethodError(
            f"features={','.join(map(str, features))}: CLIP-AD reads ends of stages, in order; here "
            f"--set features={','.join(map(str, ends))}"
        )


def surgery(similarity: Tensor) -> Tensor:
    """Return the anomalous channel (B, 1+N) of cosines (B, 1+N, 2) after CLIP Surgery's class weighting.

    Each class's cosines count as much as the class token (row 0) agrees with it, at temperature 1; what
    both classes share is taken away, so that the normal channel is the negative.
    """
    normal, anomalous = (similarity[:, :1].softmax(dim=-1) * similarity).unbind(dim=-1)
    return anomalous - normal


def minmax(values: Tensor, epsilon: float = 0.0) -> Tensor:
    """Return ``values`` brought to [0, 1] over one category; constant values count as 0."""
    low, high = values.aminmax()
    return (values - low) / (high - low + epsilon) if high > low else torch.zeros_like(values)


def inner_layers(method: Any, clip: Clip) -> list[int]:
    """Return the blocks read out before the end of the tower."""
    return [layer for layer in method.features if layer < len(clip.vision.blocks)]


def checkpoint_shapes(method: Any, clip: Clip) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the linear layers from the tower's width to the joint space."""
    width, joint = clip.vision.proj.shape
    names = [f"fc.{number}" for number in range(len(method.features))]
    return {
        key: shape for n in names for key, shape in ((f"{n}.weight", (joint, width)), (f"{n}.bias", (joint,)))
    }


def linear_layers(learned: Mapping[str, Tensor], device: torch.device) -> list[Linear]:
    """Return the layers of a checkpoint's tensors on ``device``, in order."""
    numbers = range(len(learned) // 2)
    return [(learned[f"fc.{n}.weight"].to(device), learned[f"fc.{n}.bias"].to(device)) for n in numbers]


def linear_features(tokens: Tensor, layer: Linear) -> Tensor:
    """Return unit features (B, N, C) of one layer for raw ``tokens`` (B, N, W)."""
    return F.normalize(F.linear(tokens.float(), *layer), dim=-1)


def layer_logits(tokens: Sequence[Tensor], layers: Sequence[Linear], anchors: Tensor) -> Tensor:
    """Return anomalous minus normal logits (B, K, N) of each layer's tokens (B, N, W)."""
    direction = SCALE * (anchors[:, 1] - anchors[:, 0])[..., None]
    found = [linear_features(own, layer) @ direction for own, layer in zip(tokens, layers, strict=True)]
    return torch.stack([one[..., 0] for one in found], dim=1)


def layer_maps(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return probability maps (B, K, H, W) of layer ``logits`` (B, K, g, g): up-sampled, then the softmax.

    A two-way softmax is the sigmoid of the logits' difference, and up-sampling is linear.
    """
    maps = render(logits.flatten(0, 1), size, align_corners=True)
    return maps.sigmoid().view(*logits.shape[:2], *size)


def dbscan(embeddings: Tensor, eps: float, min_samples: int, category: str) -> Tensor:
    """Return the mean of DBSCAN's largest cluster; of all, with a warning, if every prompt is noise."""
    from sklearn.cluster import DBSCAN

    labels = DBSCAN(eps=eps, min_samples=min_samples).fit_predict(embeddings.cpu().numpy())
    if (labels < 0).all():
        warnings.warn(
            f"category '{category}': DBSCAN finds no cluster of prompts (eps={eps}, "
            f"min_samples={min_samples}); the mean of all prompts is used",
            stacklevel=2,
        )
        return embeddings.mean(dim=0)
    return _largest_cluster(embeddings, labels)


def mean_shift(embeddings: Tensor) -> Tensor:
    """Return the mean of mean-shift's largest cluster, bandwidth 2: all unit vectors are one cluster."""
    from sklearn.cluster import MeanShift

    return _largest_cluster(embeddings, MeanShift(bandwidth=2).fit_predict(embeddings.cpu().numpy()))


def kde(embeddings: Tensor, bandwidth: float = 0.3) -> Tensor:
    """Return the mean of the embeddings weighted by their Gaussian kernel density."""
    distances = torch.cdist(embeddings.double(), embeddings.double())
    density = (-0.5 * (distances / bandwidth).square()).logsumexp(dim=1)
    return (density.softmax(dim=0) @ embeddings.double()).float()


def pca(embeddings: Tensor) -> Tensor:
    """Return the first principal direction of rows that are centred over their own coordinates."""
    rows = embeddings.double() - embeddings.double().mean(dim=1, keepdim=True)
    direction: Tensor = torch.linalg.eigh(rows @ rows.T).eigenvectors[:, -1] @ rows
    return (direction * torch.sign(direction @ embeddings.double().mean(dim=0))).float()


def _largest_cluster(embeddings: Tensor, labels: NDArray[Any]) -> Tensor:
    found = torch.from_numpy(labels).to(embeddings.device)
    return embeddings[found == found[found >= 0].bincount().argmax()].mean(dim=0)
