"""SC-CLIP (Bai et al., arXiv 2411.15869): CLIP's dense tokens calibrated by their own middle layers.

The dense tokens are those of the authors' segmentation code; prompts for states and the image score are
defined here, as the card says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, Trace, anchor, ensemble
from zsadbench.errors import MethodError
from zsadbench.inputs import Backbone, Batch, Count, Number, Part, Positive, Preprocess, Share, Weight
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._shared import ANOMALOUS_STATES, NORMAL_STATES, TEMPLATES_22, Anchors, anomaly_probability
from .anoclip import AnoClip

NORMS = 10
"""So many of the largest norms the first version of the code took for outliers, whatever the grid."""


@dataclass(frozen=True)
class ScClip:
    """Tokens of the last block but one, repaired, aggregated by similarity and attended anew; no training.

    Blocks are counted from 0 and their outputs are meant: ``middle`` makes the links between patches,
    ``early`` those of the second aggregation, ``fuse`` (half-open) the streams of the second pass.
    ``class_share`` of the class token goes to every patch; similarities below ``beta`` count nothing, and
    centred ones are multiplied by ``gain`` in the attention.  ``outliers`` are the share ``contamination``
    of patches that lie farthest from their ``neighbours``.  The image is cut into windows of ``window``
    pixels (0: the tower's own size), the next one ``stride`` of a window further.
    """

    backbone: Backbone = Backbone("ViT-B-16", "openai", activation="quick_gelu")
    preprocess: Preprocess = Preprocess(336, interpolation="bilinear")
    normal: tuple[str, ...] = NORMAL_STATES
    anomalous: tuple[str, ...] = ANOMALOUS_STATES
    templates: tuple[str, ...] = TEMPLATES_22
    prompts: Literal["own", "anoclip"] = "own"
    middle: Number = 8
    early: Number = 3
    fuse: tuple[Number, Number] = (3, 10)
    class_share: Share = 0.3
    beta: float = 0.4
    gain: Weight = 3.0
    outliers: Literal["lof", "norm", "none"] = "lof"
    neighbours: Count = 30
    contamination: Share = 0.05
    window: Number = 0
    stride: Part = 0.5
    image_score: Literal["class", "max"] = "class"
    scale: Positive = 40.0

    def __post_init__(self) -> None:
        """Refuse an outlier rule that takes no patch, or all."""
        if not 0 < self.contamination < 1:
            raise MethodError("contamination must be a share between 0 and 1")

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> ScClipObserver:
        """Encode the prompt ensembles of each category and ask for the outputs that are read.

        Raises:
            MethodError: if a block is not among those whose output can be read.
        """
        check_fit(self, clip)
        table = {
            category: torch.stack(
                [anchor(clip, texts, normalise_prompts=True) for texts in self.texts(category, words)]
            )
            for category, words in wordings.items()
        }
        clip.vision.tap(**taps(self, clip))
        return ScClipObserver(self, clip, Anchors(table))

    def texts(self, category: str, words: str) -> Sequence[Sequence[str]]:
        """Return the normal and the anomalous prompts of a category."""
        if self.prompts == "anoclip":
            return AnoClip().prompts(category, words)
        return [ensemble(states, self.templates, words) for states in (self.normal, self.anomalous)]

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the probability at ``size`` of the windows' mean difference of cosines, bilinear."""
        columns = (evidence[key] for key in ("difference", "window", "frame"))
        frames = [
            render(self.pasted(grids, side, frame)[None], size)
            for grids, side, frame in zip(*columns, strict=True)
        ]
        return torch.sigmoid(self.scale * torch.cat(frames))

    def pasted(self, grids: Tensor, side: Tensor, frame: Tensor) -> Tensor:
        """Return the mean over windows (H, W) at the input's ``frame`` of their ``grids`` (V, gh, gw)."""
        height, width = map(int, frame)
        boxes = window_boxes((height, width), int(side), self.stride)
        total = torch.zeros(2, height, width, device=grids.device)
        for grid, (top, left, bottom, right) in zip(grids, boxes, strict=True):
            total[0, top:bottom, left:right] += render(grid[None], (bottom - top, right - left))[0]
            total[1, top:bottom, left:right] += 1
        return total[0] / total[1]

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the anomaly probability of the whole image's class token, or the maximum of its map."""
        return evidence["score"] if self.image_score == "class" else extrema[:, 1]


@dataclass(frozen=True)
class ScClipObserver:
    """Evidence: ``difference`` (B, V, gh, gw) of V windows, their ``window`` side and the ``score``, (B,)."""

    method: ScClip
    clip: Clip
    anchors: Anchors

    def observe(self, batch: Batch) -> Evidence:
        """Compare each window's calibrated tokens, and the whole image's class token, with both texts."""
        vision, images = self.clip.vision, batch.images[:, 0]
        anchors = self.anchors.of(batch.categories)
        side = self.method.window or vision.native[0] * vision.patch
        boxes = window_boxes((images.shape[-2], images.shape[-1]), side, self.method.stride)
        cut = [images[..., top:bottom, left:right] for top, left, bottom, right in boxes]
        windows = torch.stack(cut, dim=1)
        if len(boxes) == 1:
            trace = vision.trace(batch)
            whole = vision.project(trace.class_token)
        else:
            trace = Trace(vision, dataclasses.replace(batch, images=windows), taps(self.method, self.clip))
            shrunk = F.interpolate(
                images.float(), windows.shape[-2:], mode="bilinear", antialias=True, align_corners=False
            )
            whole = vision.encode(vision.embed(shrunk))
        grid = vision.grid(windows)
        tokens = torch.unflatten(dense_tokens(self.method, self.clip, trace, grid), 0, windows.shape[:2])
        direction = (anchors[:, 1] - anchors[:, 0])[:, None, :, None]
        difference = (F.normalize(tokens.float(), dim=-1) @ direction)[..., 0]
        return {
            "difference": torch.unflatten(difference, -1, grid),
            "window": torch.full((len(images),), float(side), device=images.device),
            "score": anomaly_probability(whole, anchors, self.clip.logit_scale),
        }


def taps(method: ScClip, clip: Clip) -> dict[str, set[int]]:
    """Return what a trace must keep: the output of block b is the stream that enters block b + 1."""
    outputs = {method.middle, method.early, *range(*method.fuse), len(clip.vision.blocks) - 2}
    return {"stream": {block + 1 for block in outputs}}


def window_boxes(size: tuple[int, int], side: int, stride: float) -> list[tuple[int, int, int, int]]:
    """Return top, left, bottom, right of the windows over ``size``, row by row, the last ones flush."""
    step = max(1, round(stride * side))
    starts = []
    for length in size:
        count = max(length - side + step - 1, 0) // step + 1
        starts.append([min(number * step, max(length - side, 0)) for number in range(count)])
    height, width = (min(side, length) for length in size)
    return [(top, left, top + height, left + width) for top in starts[0] for left in starts[1]]


def dense_tokens(method: ScClip, clip: Clip, trace: Trace, grid: tuple[int, int]) -> Tensor:
    """Return the calibrated tokens (n, L, C) of ``n`` windows, projected, un-normalised."""
    vision, last = clip.vision, len(clip.vision.blocks) - 2

    def out(block: int) -> Tensor:
        return trace.after(block + 1).float()

    deep, fused = out(last), torch.stack([out(block) for block in range(*method.fuse)]).sum(dim=0)
    bad = outliers(method, deep[:, 1:])
    middle = F.normalize(repaired(out(method.middle)[:, 1:], bad, grid), dim=-1)
    early = F.normalize(out(method.early)[:, 1:], dim=-1)
    link = middle @ middle.mT
    near, late = (torch.where(similar < method.beta, 0.0, similar) for similar in (link, early @ early.mT))

    aggregated = aggregate(near, repaired(deep[:, 1:], bad, grid))
    first = attend(method, clip, aggregated, link) + method.class_share * deep[:, :1]
    second = attend(method, clip, fused[:, 1:], link) + method.class_share * fused[:, :1]
    tokens = aggregate(late, first) + aggregate(late, second)
    return vision.project(tokens.to(vision.proj.dtype))


def aggregate(similar: Tensor, tokens: Tensor) -> Tensor:
    """Return the means of ``tokens`` (n, L, W) weighted by the rows of ``similar`` (n, L, L)."""
    return (similar / (similar.sum(dim=-1, keepdim=True) + 1e-6)) @ tokens


def attend(method: ScClip, clip: Clip, tokens: Tensor, link: Tensor) -> Tensor:
    """Return the last block's attention of ``tokens`` (n, L, W) by keys and by links, halves of each.

    No class token, no residual, no MLP; ``link`` (n, L, L) is the same for all heads.
    """
    block, kind = clip.vision.blocks[-1], clip.vision.proj.dtype
    _, k, v = (part.float() for part in block.qkv(tokens.to(kind)))
    centred = method.gain * (link - link.mean(dim=(1, 2), keepdim=True))
    own = centred.masked_fill(centred < 0, -torch.inf).softmax(dim=-1)
    keys = (k @ k.mT / k.shape[-1] ** 0.5).softmax(dim=-1)
    mixed = ((own[:, None] + keys) / 2) @ v
    attended: Tensor = block.attention.out_proj(mixed.transpose(1, 2).flatten(2).to(kind))
    return attended.float()


def outliers(method: ScClip, tokens: Tensor) -> Tensor:
    """Return which of ``tokens`` (n, L, W) are outliers of their window, (n, L) booleans."""
    if method.outliers == "none":
        return torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if method.outliers == "norm":
        largest = tokens.norm(dim=-1).topk(min(NORMS, tokens.shape[1]), dim=-1).indices
        bad = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return bad.scatter(1, largest, True)
    factor = outlier_factor(tokens, method.neighbours)
    return factor > torch.quantile(factor, 1 - method.contamination, dim=-1, keepdim=True)


def outlier_factor(tokens: Tensor, neighbours: int) -> Tensor:
    """Return how much farther each of ``tokens`` (n, L, W) has its neighbours than they have theirs, (n, L).

    The code's rule, not the local outlier factor of the literature: squared distances, and each point's
    own reach throughout.
    """
    x = tokens.double() - tokens.double().mean(dim=1, keepdim=True)
    squares = x.square().sum(dim=-1)
    distances = (squares[:, :, None] + squares[:, None] - 2 * x @ x.mT).clamp(min=0)
    distances.diagonal(dim1=1, dim2=2).zero_()
    nearest = distances.topk(min(neighbours, tokens.shape[1] - 1) + 1, dim=-1, largest=False)
    reach = nearest.values[..., -1].clamp(min=1e-30)
    theirs = reach.gather(1, nearest.indices[..., 1:].flatten(1)).view_as(nearest.indices[..., 1:])
    return (reach[..., None] / theirs).mean(dim=-1)


def repaired(tokens: Tensor, bad: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return ``tokens`` (n, L, W) with the ``bad`` ones (n, L) replaced by the mean of good neighbours.

    Neighbours are the up to 8 around a patch of the grid; a patch without a good one stays.
    """
    good = torch.unflatten((~bad).to(tokens.dtype), 1, grid)[:, None]
    channels = torch.unflatten(tokens.mT, -1, grid)
    around = torch.cat([channels * good, good], dim=1).flatten(0, 1)[:, None]
    summed = F.conv2d(around, torch.ones(1, 1, 3, 3, device=tokens.device), padding=1)
    summed = torch.unflatten(summed[:, 0], 0, (len(tokens), -1)).flatten(2).mT
    count = summed[..., -1:]
    mend = bad[..., None] & (count > 0)
    return torch.where(mend, summed[..., :-1] / count.clamp(min=1), tokens)


def check_fit(method: ScClip, clip: Clip) -> None:
    """Refuse blocks whose output is not read: the last one's never is."""
    last = len(clip.vision.blocks) - 2
    begin, end = method.fuse
    if not (0 <= method.middle <= last and 0 <= method.early <= last and 0 <= begin < end <= last + 1):
        raise MethodError(
            f"middle {method.middle}, early {method.early} and fuse {method.fuse} (its end is not included) "
            f"must be blocks from 0 to {last}; choose others with --set"
        )
