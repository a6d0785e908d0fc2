"""What a method declares of its input: preprocessing, backbone; its batch, and steps that it shares there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Within:
    """The numbers from ``low`` to ``high`` that an option or a field takes; without ``low`` where ``above``.

    As a part of a field's type, ``Annotated[float, Within(0, 1)]``, it holds for ``--set`` and for cards.
    """

    low: float
    high: float = inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        low, high = (f"{bound:.12g}" for bound in (self.low, self.high))
        if self.above:
            return f"above {low}" + (f", up to {high}" if self.high < inf else "")
        return f"from {low} to {high}" if self.high < inf else f"of {low} or more"


Count = Annotated[int, Within(1, 4096)]
"""How many of something there are, one at least: blocks, images of a batch, words of a prompt."""
Number = Annotated[int, Within(0, 4096)]
"""How many of something there are, or none."""
Seed = Annotated[int, Within(0, 2**32 - 1)]
"""What a random generator starts from."""
Share = Annotated[float, Within(0, 1)]
"""A part of a whole, a probability, a weight between two."""
Part = Annotated[float, Within(0, 1, above=True)]
"""A part of a whole that holds something."""
Positive = Annotated[float, Within(0, above=True)]
"""A scale, a temperature, a learning rate."""
Weight = Annotated[float, Within(0)]
"""A factor that may be zero."""
Sigma = Annotated[float, Within(0, 1024)]
"""Width of a Gaussian in pixels or patches; zero for none."""
Side = Annotated[int, Within(1, 4096)]
"""Side of a network's input in pixels: attention over 4096 of them takes some 30 GB already."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How an image file becomes network input; equal values are decoded and resized once.

    ``resize="squash"`` gives exactly ``size`` x ``size``; ``"shortest"`` brings the shorter side to
    ``size`` and keeps the aspect (long side truncated).  ``rgb="before"`` converts to RGB before the
    resize, ``"after"`` resizes in the file's own mode, as some references do.  ``tiles="ends"``
    cuts the (longer) frame into two squares of ``size`` flush with both ends.  ``mean`` and ``std`` of colour
    that are None become those of the weights when a method is made by its name, and are OpenAI's otherwise.
    """

    size: Side
    resize: Literal["squash", "shortest"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    rgb: Literal["before", "after"] = "before"
    tiles: Literal["none", "ends"] = "none"
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None

    @property
    def normalisation(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of colour."""
        return self.mean or OPENAI_MEAN, self.std or OPENAI_STD


@dataclass(frozen=True, slots=True)
class Backbone:
    """Which CLIP a method runs on; the input size belongs to ``Preprocess``.

    ``activation="auto"`` takes the weights' own (QuickGELU for OpenAI's); ``position`` is the rule
    that resizes position embeddings for another grid (``"bicubic-antialias"`` is open_clip's).
    """

    name: str
    weights: str
    activation: Literal["auto", "gelu", "quick_gelu"] = "auto"
    position: Literal["bicubic-antialias", "bicubic", "bilinear"] = "bicubic-antialias"

    @property
    def plain(self) -> Backbone:
        """The same weights by open_clip's position rule."""
        return replace(self, position="bicubic-antialias")


@dataclass(frozen=True, slots=True)
class SecondTower:
    """A second frozen image tower beside CLIP's: one of timm's DINOv2 and its weights.

    ``weights`` is timm's tag, a file (timm's or that of the authors' hub), or ``random[:SEED]``.
    """

    name: str
    weights: str


def second_towers(method: Any) -> dict[str, SecondTower]:
    """Return the fields of ``method`` that declare a second tower, by their names."""
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    return {name: value for name, value in values.items() if isinstance(value, SecondTower)}


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


class Steps:
    """Steps on a batch that several methods share, each taken once; ``clock`` tells how long it takes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._fresh = clock, 0.0
        self._found: dict[str, Any] = {}
        self._seconds: dict[str, float] = {}
        self._used: set[str] = set()

    def take(self, name: str, compute: Callable[[], T]) -> T:
        """Return ``compute()``, computed once."""
        if name not in self._found:
            start = self._clock()
            self._found[name] = compute()
            self.add(name, self._clock() - start)
        self.use(name)
        found: T = self._found[name]
        return found

    def add(self, name: str, seconds: float) -> None:
        """Note that a step was taken."""
        self._seconds[name] = seconds
        self._fresh += seconds

    def use(self, name: str) -> None:
        """Note that somebody uses what a step gave."""
        self._used.add(name)

    def took(self) -> tuple[float, float]:
        """Return the seconds of the steps since the last call: of those that were taken, of all used."""
        found = self._fresh, sum(self._seconds[name] for name in self._used)
        self._fresh = 0.0
        self._used.clear()
        return found
