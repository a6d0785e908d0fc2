"""The proof of an exported file: onnxruntime beside torch, on the same images, alone and in batches."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecordError
from ..text import terminal
from ..views import ClipEngine, Predictor, Setup
from .export import write_graph
from .model import load_model

TOLERANCE = 1e-5
"""How far a score or a map value may differ, where values are up to 1; larger ones by that part of them."""
GENERATED = 9
"""Images of noise and steps where none are given: a whole batch and one beyond."""


@dataclass(frozen=True)
class Proof:
    """Differences between a file in onnxruntime and its method in torch, over ``images`` images.

    ``score`` and ``map`` are the largest differences, in batches and one by one, ``allowed_`` what is
    tolerated; ``ranks`` is Spearman's correlation of the scores (None for fewer than two images).
    """

    images: int
    score: float
    map: float
    allowed_score: float
    allowed_map: float
    ranks: float | None

    @property
    def passed(self) -> bool:
        """Whether the file may be used in place of the method."""
        return self.score <= self.allowed_score and self.map <= self.allowed_map

    @property
    def words(self) -> str:
        """What was found, in one line."""
        ranks = "" if self.ranks is None else f"; rank correlation {self.ranks:.4f}"
        return (
            f"{self.images} images, alone and in batches: scores differ by {self.score:.2g} "
            f"({self.allowed_score:.2g} allowed), maps by {self.map:.2g} ({self.allowed_map:.2g} allowed)"
            f"{ranks}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the numbers and whether they pass."""
        return asdict(self) | {"passed": self.passed}


def export(
    setup: Setup,
    out: Path,
    images: Sequence[Any] = (),
    *,
    bytes_in: bool = True,
    threshold: float | None = None,
    engine: ClipEngine | None = None,
) -> Proof:
    """Write the method of ``setup`` to ``out`` and prove the file; one that fails is not kept.

    ``images`` are paths or pictures, generated ones where there are none; ``bytes_in`` makes the file take
    uint8 in place of normalised floats; ``threshold`` is kept in the file.

    Raises:
        MethodError: for a method that no such file can hold.
        RecordError: if the file cannot be written.
    """
    engine = engine or ClipEngine(setup)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".zsad-", dir=out.parent) as folder:
            path = Path(folder) / "unproven.onnx"
            write_graph(engine, path, bytes_in=bytes_in, threshold=threshold)
            found = prove(setup, engine, path, images)
            if found.passed:
                path.replace(out)
            return found
    except OSError as error:
        raise RecordError(
            f"{terminal(out)}: cannot be written ({error.strerror or error}); name another with --out"
        ) from None


def prove(setup: Setup, engine: ClipEngine, path: Path, images: Sequence[Any] = ()) -> Proof:
    """Return how far the file ``path`` is from its method, on ``images`` or on generated ones."""
    held = list(images) or generated(engine.method.preprocess.size)
    torch_side, file_side = Predictor(setup, engine), load_model(path, Setup(setup.method))
    expected = torch_side(held)
    found = [file_side(held), [file_side(one) for one in held]]
    scores = np.array([one.score for one in expected])
    score = max(abs(one.score - then) for side in found for one, then in zip(side, scores, strict=True))
    maps = max(
        float(np.abs(one.map - then.map).max())
        for side in found
        for one, then in zip(side, expected, strict=True)
    )
    largest = max(float(np.abs(one.map).max()) for one in expected)
    allowed = [TOLERANCE * max(1.0, value) for value in (float(np.abs(scores).max()), largest)]
    return Proof(len(held), float(score), maps, allowed[0], allowed[1], _ranks(scores, found[0]))


def generated(side: int) -> list[Any]:
    """Return pictures (side, side, 3) uint8: steps of light under noise, the same every time."""
    random = np.random.default_rng(0)
    pictures = []
    for number in range(GENERATED):
        light = np.linspace(20, 200, side)[:, None, None] * np.ones((1, side, 3))
        light[number * side // 12 :, : side // 3] += 40
        pictures.append((light + random.normal(0, 3 + number, light.shape)).clip(0, 255).astype(np.uint8))
    return pictures


def _ranks(scores: Any, found: Sequence[Any]) -> float | None:
    from scipy.stats import spearmanr

    if len(scores) < 2:
        return None
    return float(spearmanr(scores, [one.score for one in found]).statistic)
