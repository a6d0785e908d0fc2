"""MuSc (Li et al., ICLR 2024, arXiv 2401.16753): the test images of a category judge each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip
from zsadbench.errors import MethodError, is_out_of_memory
from zsadbench.inputs import Backbone, Batch, Count, Number, Part, Preprocess
from zsadbench.maps import render
from zsadbench.method import Evidence, Tell

from ._shared import as_grid
from .clip_ad import minmax


@dataclass(frozen=True)
class MuSc:
    """A patch is as anomalous as its nearest patches in the other images are far.

    What leaves the blocks ``features`` (from 1) is averaged over neighbourhoods of each of ``degrees`` rows
    and columns.  Of a patch's distances to the other images the smallest count, a ``share`` of them.  An
    image's score is averaged with those of its look-alikes, as many as each of ``windows`` says, itself among
    them.  A category of more than ``group`` images (0: never) is judged in subsets of at most so many.
    """

    backbone: Backbone = Backbone("ViT-L-14-336", "openai", activation="gelu", position="bicubic")
    preprocess: Preprocess = Preprocess(518)
    features: tuple[Count, ...] = (6, 12, 18, 24)
    degrees: tuple[Count, ...] = (1, 3, 5)
    share: Part = 0.3
    windows: tuple[Count, ...] = (1, 2, 3)
    image_score: Literal["reference", "maximum"] = "reference"
    group: Number = 0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if not 0 < self.share <= 1:
            raise MethodError(f"share={self.share:g} must be a part of the other images, above 0 up to 1")
        if not self.degrees or any(degree < 1 or degree % 2 == 0 for degree in self.degrees):
            raise MethodError(f"degrees {self.degrees} must be odd numbers of patches, from 1")
        if not self.windows or min(self.windows) < 1:
            raise MethodError(f"windows {self.windows} must be numbers of images, from 1")
        if self.group and self.group < 2 * self.fewest:
            raise MethodError(f"group={self.group}: give 0 or at least {2 * self.fewest} images")

    @property
    def fewest(self) -> int:
        """How many images a category must have for the share of one image's others to be one."""
        return math.ceil(1 / self.share) + 1

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> MuScObserver:
        """Ask for the blocks' outputs; no text is encoded.

        Raises:
            MethodError: if the backbone has not all the blocks.
        """
        depth = len(clip.vision.blocks)
        if not (self.features and 1 <= min(self.features) <= max(self.features) <= depth):
            raise MethodError(
                f"features {self.features} are not all among {depth} image blocks; choose others with "
                "--set features=..."
            )
        clip.vision.tap(stream={*self.features} - {depth})
        return MuScObserver(self, clip, frozenset(wordings))

    def relate(self, evidence: Evidence, device: torch.device, tell: Tell) -> Evidence:
        """Score every patch of a category by the patches of its other images: ``map`` (N, gh, gw)."""
        tokens = evidence["tokens"]
        count, blocks, rows, columns, _ = tokens.shape
        subsets = math.ceil(count / self.group) if self.group else 1
        rounds = subsets * blocks * len(self.degrees)
        total, done = torch.zeros(count, rows * columns, dtype=torch.float64), 0
        for subset in range(subsets):  # each of them every so manieth image
            for block in range(blocks):
                pictures = tokens[subset::subsets, block].to(device)
                for degree in self.degrees:
                    told = partial(_tell_round, tell, done, rounds)
                    total[subset::subsets] += mutual_scores(pictures, degree, self.share, told)
                    done += 1
        mean = total / (blocks * len(self.degrees))
        return {"map": as_grid(mean.float(), (rows, columns)), "token": evidence["token"]}

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return the patch scores, bilinear with corners aligned; no smoothing."""
        return render(evidence["map"], size, align_corners=True)

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return the map's maximum; the reference's is averaged over the look-alikes of a category."""
        if self.image_score == "maximum":
            return extrema[:, 1]
        return rescored(minmax(extrema[:, 1].double()), evidence["token"], self.windows)


@dataclass(frozen=True)
class MuScObserver:
    """Evidence before ``relate``: ``tokens`` (B, blocks, gh, gw, W) in float16, unit ``token`` (B, C)."""

    method: MuSc
    clip: Clip
    categories: frozenset[str]

    def observe(self, batch: Batch) -> Evidence:
        """Bring what leaves each block to mean 0 and variance 1 over a whole image."""
        if unknown := set(batch.categories) - self.categories:
            raise MethodError(f"category '{unknown.pop()}' was not prepared")
        vision = self.clip.vision
        trace, grid = vision.trace(batch), vision.grid(batch.images)
        pictures = [normed(trace.after(layer)[:, 1:], grid).half() for layer in self.method.features]
        token = vision.project(trace.output[:, 0]).float()
        return {"tokens": torch.stack(pictures, dim=1), "token": F.normalize(token, dim=-1)}


def normed(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return patch tokens (B, P, W) as pictures (B, gh, gw, W), layer-normed over all patches together."""
    pictures = torch.unflatten(tokens.float(), 1, grid)
    return F.layer_norm(pictures, pictures.shape[1:])


def mutual_scores(pictures: Tensor, degree: int, share: float, tell: Tell) -> Tensor:
    """Return the mean distance (N, P) of each patch to the ``share`` of the other images nearest to it.

    ``pictures`` (N, gh, gw, W) are of one block; ``tell`` is told after each row of tiles.
    """
    count, tile, half = len(pictures), 16 if pictures.is_cuda else 4, pictures.is_cuda
    while True:
        try:
            scores: list[Tensor] = []
            for cosines in nearest(pictures, degree, tile, half):
                scores.append(mean_distance(cosines, share).double().cpu())
                tell(1 - (1 - len(scores) / count) ** 2)
            return torch.stack(scores)
        except RuntimeError as error:
            if tile == 1 or not is_out_of_memory(error):
                raise
            tile //= 2


def nearest(pictures: Tensor, degree: int, tile: int, half: bool) -> Iterator[Tensor]:
    """Yield for each image the cosines (N - 1, P) of its patches to the nearest patch of every other image.

    One product of ``tile`` images with another one serves both sides: a maximum along each axis.  Features
    are made anew for each row of tiles; those of all images would take more memory than ``pictures``.
    """
    count, number = len(pictures), pictures.shape[1] * pictures.shape[2]
    best = {image: torch.empty(count, number, device=pictures.device) for image in range(count)}
    for start in range(0, count, tile):
        stop = min(start + tile, count)
        left = torch.cat([factors(patches(one, degree), half)[0] for one in pictures[start:stop]])
        for other in range(start + 1, count):
            before = min(other, stop)
            right = factors(patches(pictures[other], degree), half)[1]
            cosines = product(left[: (before - start) * number], right).view(-1, number, number)
            best[other][start:before] = cosines.amax(dim=1)
            for image, row in enumerate(cosines.amax(dim=2), start):
                best[image][other] = row
        for image in range(start, stop):
            row = best.pop(image)
            yield torch.cat([row[:image], row[image + 1 :]])


def patches(picture: Tensor, degree: int) -> Tensor:
    """Return unit features (P, W) of ``picture`` (gh, gw, W), averaged over neighbourhoods of ``degree``."""
    pooled = F.avg_pool2d(picture.float().permute(2, 0, 1)[None], degree, 1, degree // 2)
    return F.normalize(pooled[0].permute(1, 2, 0).flatten(0, 1), dim=-1)


def factors(unit: Tensor, half: bool) -> tuple[Tensor, Tensor]:
    """Return unit features (P, W) as the left and the right factor of a product of cosines.

    In half precision a vector's length is no longer 1, which spoils small distances.  Two more columns carry
    what was lost: the product is 1 - d^2 / 2 of the rounded vectors.  Widths are filled up to multiples of 8.
    """
    if not half:
        return unit, unit
    unit = unit.half()
    lost = ((1 - unit.float().square().sum(dim=-1, keepdim=True)) / 2).half()
    one, fill = torch.ones_like(lost), (0, -(unit.shape[-1] + 2) % 8)
    left, right = torch.cat([unit, one, lost], dim=-1), torch.cat([unit, lost, one], dim=-1)
    return F.pad(left, fill), F.pad(right, fill)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left @ right.T`` in float32; of half precision on a GPU too, where torch can."""
    if left.is_cuda and left.dtype == torch.float16 and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(left, right.T, out_dtype=torch.float32)
    return left.float() @ right.float().T


def mean_distance(cosines: Tensor, share: float) -> Tensor:
    """Return the mean distance (P,) to the nearest ``share`` of images, of ``cosines`` (N - 1, P)."""
    closest = cosines.topk(kept(len(cosines), share), dim=0).values
    return (2 - 2 * closest).clamp(min=0).sqrt().mean(dim=0)


def kept(others: int, share: float) -> int:
    """Return how many of so many other images count."""
    return int(others * share)


def rescored(scores: Tensor, tokens: Tensor, windows: Sequence[int]) -> Tensor:
    """Return ``scores`` (N,) averaged over the look-alikes of each image, weighted by cosine, float32.

    ``tokens`` (N, C) are unit features; each of ``windows`` makes a mean over so many look-alikes, the image
    itself among them, and the result is the mean of those.
    """
    cosines = tokens.double() @ tokens.double().T
    means = []
    for window in windows:
        top = cosines.topk(min(window, len(cosines)), dim=1)
        means.append((top.values * scores[top.indices]).sum(dim=1) / top.values.sum(dim=1))
    return torch.stack(means).mean(dim=0).float()


def _tell_round(tell: Tell, done: int, rounds: int, part: float) -> None:
    tell((done + part) / rounds)
