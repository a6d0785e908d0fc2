"""What a method is: two protocols.

A method is a frozen dataclass of parameters.  ``prepare`` turns it into an ``Observer`` that
holds text anchors; the observer sends batches through the towers and returns evidence; ``maps``
and ``image_scores`` turn evidence into results without any weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from ..clip import Clip
    from ..inputs import Backbone, Batch, Preprocess

Evidence = Mapping[str, "Tensor"]
"""float32, first axis = image; on the patch grid or one number; the engine adds ``frame`` (B, 2)."""


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
