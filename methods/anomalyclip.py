"""AnomalyCLIP (Zhou et al., ICLR 2024, arXiv 2310.18961): two learned prompts that name no object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, Trace, load_checkpoint
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Count, Number, Positive, Preprocess, Sigma
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._prompts import check_prompts, checkpoint_shapes, encode_prompts
from ._shared import Anchors, anomaly_probability, as_grid


@dataclass(frozen=True)
class AnomalyClip:
    """Learned prompts, the same for every category, against a second stream of value-value attention.

    Each prompt is ``context`` learned vectors followed by fixed words; before text blocks 1 to
    ``deep_prompts`` (counted from 0) its first ``deep_length`` vectors are overwritten by learned ones,
    rounded to float16 unless ``half_prompts`` is off.  ``features`` are the image blocks (from 1) whose
    local tokens give a map each, or with ``legacy_taps`` the last block as many times.  The value-value
    stream begins at block ``value_from``; without ``value_stream`` local tokens are the ordinary ones.
    ``class_norm`` applies the final layer norm to the class token too.
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
    features: tuple[Count, ...] = (24,)
    legacy_taps: bool = False
    value_stream: bool = True
    value_from: Number = 6
    class_norm: bool = False
    temperature: Positive = 0.07
    sigma: Sigma = 4.0

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> AnomalyClipObserver:
        """Encode both prompts once for all categories and ask for the value-value attention.

        Raises:
            MethodError: without a checkpoint, or if a parameter does not fit the backbone.
            WeightsError: if the checkpoint cannot be read or does not fit.
        """
        check_fit(self, clip)
        learned = load_checkpoint(self.checkpoint, "anomalyclip", checkpoint_shapes(self, clip))
        with torch.no_grad():
            texts = encode_prompts(self, clip, {key: value.to(clip.device) for key, value in learned.items()})
        anchors = Anchors(dict.fromkeys(wordings, F.normalize(texts, dim=-1)))
        layers, first, taps = reading(self, clip)
        clip.vision.tap(**taps)
        return AnomalyClipObserver(self, clip, anchors, layers, first)

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the summed probability grid, bilinear at ``size``, then smoothed."""
        return render(evidence["map"], size, sigma=self.sigma * size[0] / self.preprocess.size)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the anomaly probability of the class token; the map takes no part."""
        return evidence["score"]


@dataclass(frozen=True)
class AnomalyClipObserver:
    """Evidence: ``map`` (B, g, g), probabilities summed over ``layers``, and ``score`` (B,).

    ``layers`` are blocks counted from 1; ``first`` is the first block (from 0) of the value-value stream.
    """

    method: AnomalyClip
    clip: Clip
    anchors: Anchors
    layers: tuple[int, ...]
    first: int

    def observe(self, batch: Batch) -> Evidence:
        """Compare the class token and the local tokens of each layer with both texts."""
        trace = self.clip.vision.trace(batch)
        anchors, scale = self.anchors.of(batch.categories), 1 / self.method.temperature
        local = {
            layer: anomaly_probability(tokens, anchors, scale)[:, 1:]
            for layer, tokens in self.local_tokens(trace).items()
        }
        grid = torch.stack([local[layer] for layer in self.layers]).sum(dim=0)
        return {
            "score": anomaly_probability(self.class_feature(trace), anchors, scale),
            "map": as_grid(grid),
        }

    def class_feature(self, trace: Trace) -> Tensor:
        """Return the class token (B, C) of the ordinary stream, projected, un-normalised."""
        vision = self.clip.vision
        token = trace.class_token
        return vision.project(token) if self.method.class_norm else token @ vision.proj

    def local_tokens(self, trace: Trace) -> dict[int, Tensor]:
        """Return for each of ``layers`` its local tokens (B, 1+N, C), class token first, projected.

        The value-value stream starts as the ordinary one and only gathers: it has no MLP, and its
        attention reads the ordinary stream.
        """
        vision = self.clip.vision
        ordinary = {block: trace.after(block) for block in {self.first, *self.layers} if block <= self.first}
        local = ordinary[self.first]
        found = {layer: ordinary[layer] for layer in self.layers if layer <= self.first}
        for block in range(self.first, max(self.layers)):
            local = local + trace.values(block)
            if block + 1 in self.layers:
                found[block + 1] = local
        return {layer: vision.project(tokens) for layer, tokens in found.items()}


def reading(method: AnomalyClip, clip: Clip) -> tuple[tuple[int, ...], int, dict[str, set[int]]]:
    """Return the layers with maps (from 1), the value-value stream's first block (from 0), and the taps."""
    depth = len(clip.vision.blocks)
    layers = (depth,) * len(method.features) if method.legacy_taps else method.features
    first = method.value_from - 1 if method.value_stream else depth
    plain = {block for block in (first, *layers) if block <= first}
    # What leaves the last block is kept in any case.
    taps = {"stream": plain - {depth}, "values": {*range(first, max(layers))}}
    return layers, first, taps


def check_fit(method: AnomalyClip, clip: Clip) -> None:
    """Refuse blocks and prompt lengths that the towers do not have."""
    depth, layers = len(clip.vision.blocks), method.features
    if not (layers and 1 <= min(layers) <= max(layers) <= depth and 1 <= method.value_from <= depth):
        raise MethodError(
            f"features {layers} and value_from {method.value_from} are not all among {depth} image blocks; "
            "choose others with --set features=... and --set value_from=..."
        )
    check_prompts(method, clip)
