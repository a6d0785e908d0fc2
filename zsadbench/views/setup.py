"""What predicts, what judges, and what becomes of an image: the shapes that predictors and engines share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..images import Loaded
from ..inputs import Preprocess
from .overlay import Scale
from .tiles import Box, Tiling

DEFAULT_WORDS = "object"
OK, NG = "OK", "NG"

Evidence: TypeAlias = Mapping[str, Any]
"""What an engine knows of some images: tensors or arrays, first axis = image; empty for none."""
Seen: TypeAlias = tuple[Loaded, Tiling | None, Evidence]
"""An image, how it was cut, and the evidence of its tiles; neither where it cannot be read."""


@dataclass(frozen=True)
class Setup:
    """What predicts: a method with its CLIP and its words, and which parts of an image it sees.

    ``words`` name the object in prompts.  ``roi`` is a region in pixels of the upright image; with ``tile``
    it is cut into squares of so many pixels that share at least ``overlap`` (a fraction) of their side.
    """

    method: str
    words: str = ""
    backbone: str | None = None
    weights: str | None = None
    activation: str | None = None
    checkpoint: str | Path | None = None
    prompts: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    tile: int | None = None
    overlap: float = 0.25
    roi: Box | None = None
    device: str = "auto"
    dtype: str = "fp32"
    batch_size: int | None = None
    workers: int | None = None


class Engine(Protocol):
    """What turns images into scores and maps for a ``Predictor``; several threads may call it."""

    @property
    def id(self) -> str:
        """The method's id."""
        ...

    @property
    def words(self) -> str:
        """The words for what is seen."""
        ...

    @property
    def spec(self) -> Preprocess:
        """How images are read."""
        ...

    @property
    def batch_size(self) -> int:
        """How many images are observed at once."""
        ...

    @property
    def relates(self) -> bool:
        """Whether the images of a call are judged by each other."""
        ...

    @property
    def tower(self) -> tuple[str, str]:
        """Name and weights of the CLIP."""
        ...

    def call(self) -> AbstractContextManager[None]:
        """Surround all that one call of the predictor asks for."""
        ...

    def observe(self, loaded: Sequence[Loaded]) -> Evidence:
        """Return the evidence (B, ...) of images, a row each."""
        ...

    def relate(self, seen: Iterator[Seen], images: int, step: Callable[[str, float], None]) -> Iterator[Seen]:
        """Yield ``images`` images judged by each other; asked only where the engine ``relates``."""
        ...

    def maps(self, evidence: Evidence) -> Iterator[NDArray[np.float32]]:
        """Yield the map (h, w) of every row."""
        ...

    def scores(self, evidence: Evidence, extremes: Sequence[Scale]) -> NDArray[np.float64]:
        """Return the scores (N,); ``extremes`` are the least and the greatest value of each row's map."""
        ...

    def identity(self) -> dict[str, Any]:
        """Return what a score depends on, as JSON values."""
        ...

    def names(self) -> dict[str, str]:
        """Return by what names the files of the identity are found again."""
        ...

    def surroundings(self) -> dict[str, Any]:
        """Return what else files of scores keep: the weights' tag and the environment."""
        ...

    def remarks(self) -> list[str]:
        """Return what was chosen for the user, or has no effect."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What became of one image: a score and the extremes of its map, or the ``error`` that says why not.

    ``size`` is height and width after the EXIF rotation; ``verdict`` that of a threshold, ``overlay`` the
    file written for it and ``thumbnails`` small pictures of the photograph and of the overlay, if any.
    """

    path: Path
    size: tuple[int, int] = (0, 0)
    sha256: str = ""
    score: float | None = None
    extremes: Scale = (0.0, 0.0)
    tiles: Tiling | None = None
    notes: tuple[str, ...] = ()
    verdict: str | None = None
    overlay: Path | None = None
    thumbnails: tuple[Path, ...] = ()
    error: str | None = None


def verdict(score: float | None, limit: float | None) -> str | None:
    """Return "NG" for a score above ``limit``, else "OK"; None without one of them."""
    if score is None or limit is None:
        return None
    return NG if score > limit else OK
