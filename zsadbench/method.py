"""What a method is: declarations of its input and backbone, and two protocols.

A method is a frozen dataclass of parameters.  ``prepare`` turns it into an ``Observer`` that
holds text anchors; the observer sends batches through the towers and returns evidence; ``maps``
and ``image_scores`` turn evidence into results without any weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from .clip import Clip

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Evidence = Mapping[str, "Tensor"]
"""float32, first axis = image; on the patch grid or one number; the engine adds ``frame`` (B, 2)."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image file becomes network input; equal values are decoded and resized once.

    ``resize="squash"`` gives exactly ``size`` x ``size``; ``"shortest"`` brings the shorter side to
    ``size`` and keeps the aspect (long side truncated).  ``rgb="before"`` converts to RGB before the
    resize, ``"after"`` resizes in the file's own mode, as some references do.  ``tiles="ends"``
    cuts the (longer) frame into two squares of ``size`` flush with both ends.
    """

    size: int
    resize: Literal["squash", "shortest"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    rgb: Literal["before", "after"] = "before"
    tiles: Literal["none", "ends"] = "none"
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD


@dataclass(frozen=True, slots=True)
class Backbone:
    """Which CLIP a method runs on; the input size belongs to ``Preprocess``.

    ``activation="auto"`` takes the weights' own (QuickGELU for OpenAI's); ``position`` is the rule
    that resizes position embeddings for another grid.
    """

    name: str
    weights: str
    activation: Literal["auto", "gelu", "quick_gelu"] = "auto"
    position: Literal["bicubic-antialias", "bilinear"] = "bicubic-antialias"


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one forward pass.  No label, no mask, no normal image: zero-shot by type.

    ``images`` (B, T, 3, S, S) normalised, T tiles; ``boxes`` (B, T, 4) left, top, right, bottom of
    each tile in the frame; ``frame`` (B, 2) height and width of the preprocessed image before tiling.
    """

    images: Tensor
    boxes: Tensor
    frame: Tensor
    keys: Sequence[str]
    categories: Sequence[str]


@runtime_checkable
class Observer(Protocol):
    """Holds anchors, a checkpoint and any per-category state."""

    def observe(self, batch: Batch) -> Evidence:
        """Return the evidence of ``batch``: the only costly step."""
        ...


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass: parameters only, no weights, cheap to make."""

    @property
    def preprocess(self) -> Preprocess:
        """How images are read."""
        ...

    @property
    def backbone(self) -> Backbone:
        """Which CLIP is used."""
        ...

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> Observer:
        """Return an observer for the categories of ``wordings`` (category -> words in the prompt)."""
        ...

    def maps(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Return anomaly maps (B, H, W) float32 at ``size`` = (H, W); needs no weights."""
        ...

    def image_scores(self, evidence: Evidence, extrema: Tensor) -> Tensor:
        """Return image scores (N,) of one category; ``extrema`` (N, 2) = min, max of each map."""
        ...
