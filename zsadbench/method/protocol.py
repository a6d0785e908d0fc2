"""What a method is: two protocols, and a third for methods that judge images by each other.

A method is a frozen dataclass of parameters.  ``prepare`` turns it into an ``Observer`` that
holds text anchors; the observer sends batches through the towers and returns evidence; ``maps``
and ``image_scores`` turn evidence into results without any weights.  Where a method has ``relate``, it stands
between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..clip import Clip
    from ..inputs import Backbone, Batch, Preprocess

Evidence = Mapping[str, "Tensor"]
"""float32, first axis = image; on the patch grid or one number; the engine adds ``frame`` (B, 2)."""

Tell = Callable[[float], None]
"""Takes how much of the work is done (0 to 1); raises KeyboardInterrupt where it shall end."""


@runtime_checkable
class Observer(Protocol):
    """Holds anchors, a checkpoint and any per-category state."""

    def observe(self, batch: Batch) -> Evidence:
        """Return the evidence of ``batch``: the only costly step.

        Each tensor is (B, ...): on the patch grid (B, gh, gw), or a number or a few per image.
        """
        ...


@runtime_checkable
class Drawing(Protocol):
    """Beside ``Observer``: one that draws random numbers which depend on nothing but an image's key."""

    def draw_ahead(self, keys: Sequence[str], categories: Sequence[str]) -> None:
        """Begin to draw, on threads, what ``observe`` will need for the images ``keys`` that come next."""
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


@runtime_checkable
class Relating(Protocol):
    """Beside ``Method``: one whose maps of an image need all images of its category.

    What ``observe`` returns, in half precision where it likes, then stays in memory until the category is
    whole, and what ``relate`` makes of it is kept.  The category is the unit of resume.
    """

    @property
    def fewest(self) -> int:
        """How many images a category must have."""
        ...

    def relate(self, evidence: Evidence, device: torch.device, tell: Tell) -> Evidence:
        """Return the evidence to keep of all images of a category, from what ``observe`` gave of them.

        Tensors are (N, ...) before and after, N the images of the category, rows in their order; no weights
        are needed.  ``tell`` is called now and then.
        """
        ...
