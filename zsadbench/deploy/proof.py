"""The proof of an exported file: onnxruntime beside torch, on the same images, alone and in batches."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DatasetError, MethodError, RecordError
from ..records import Slice
from ..samples import Dataset
from ..scoring import EvidenceMaps
from ..text import terminal
from ..views import ClipEngine, Predictor, Setup, Threshold
from .export import Form, Precision, grid_of, write_graph
from .model import ModelEngine
from .precision import convert
from .validation import Validation, validate

TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "fp16": 0.01, "int8": 0.1}
"""How far a score or a map value may differ, where values are up to 1; larger ones by that part of them."""
POINTS: dict[Precision, float] = {"fp32": 0.05, "fp16": 0.3, "int8": 2.0}
"""How far a metric of a dataset may change, in points of 100."""
GENERATED = 9
"""Images of noise and steps where none are given: a whole batch and one beyond."""


@dataclass(frozen=True)
class Proof:
    """Differences between a file in onnxruntime and its method in torch, over ``images`` images.

    ``score`` and ``map`` are the largest differences, in batches and one by one, ``allowed_`` what is
    tolerated.  ``pairs`` counts the pairs of images whose scores differ by more than that, and ``turned``
    those of them that the file puts in the other order.
    """

    images: int
    score: float
    map: float
    allowed_score: float
    allowed_map: float
    pairs: int
    turned: int
    validation: Validation | None = None

    @property
    def close(self) -> bool:
        """Whether scores and maps are those of the method, within what is allowed."""
        return self.score <= self.allowed_score and self.map <= self.allowed_map and not self.turned

    @property
    def passed(self) -> bool:
        """Whether the file may be used in place of the method."""
        return self.close and (self.validation is None or self.validation.passed)

    @property
    def words(self) -> str:
        """What was found, in one line, and another for a dataset."""
        lines = (
            f"{self.images} images, alone and in batches: scores differ by {self.score:.2g} "
            f"({self.allowed_score:.2g} allowed), maps by {self.map:.2g} ({self.allowed_map:.2g} allowed); "
            f"{self.turned} of {self.pairs} pairs of scores further apart than that change their order"
        )
        return lines if self.validation is None else f"{lines}\n{self.validation.words}"

    def as_json(self) -> dict[str, Any]:
        """Return the numbers and whether they pass."""
        validation = self.validation.as_json() if self.validation else None
        return asdict(self) | {"validation": validation, "passed": self.passed}


def export(
    setup: Setup,
    out: Path,
    images: Sequence[Path] = (),
    form: Form = Form(),
    *,
    dataset: Dataset | None = None,
    engine: ClipEngine | None = None,
) -> Proof:
    """Write the method of ``setup`` to ``out`` and prove the file; one that fails is not kept.

    It is proven on ``images``, on generated ones where there are none, and its metrics on a ``dataset``.

    Raises:
        MethodError: for a method that no such file can hold.
        UsageError: for a threshold found with other scores than the file's, or that is no finite number.
        DatasetError: for an image that cannot be read.
        RecordError: if the file cannot be written.
    """
    engine = engine or ClipEngine(setup)
    limit = form.limit.value if isinstance(form.limit, Threshold) else form.limit
    predictor = Predictor(setup, engine, limit)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".zsad-", dir=out.parent) as folder:
            path = Path(folder) / "unproven.onnx"
            write_graph(predictor, engine, path, form)
            if len(list(Path(folder).iterdir())) > 1:
                raise MethodError(f"{engine.id}: cannot be exported: a file of ONNX holds at most 2 GB")
            convert(path, form.precision)
            model = ModelEngine(path)
            found = prove(engine, model, images or generated(Path(folder), engine.spec.size), form)
            if dataset and found.close:
                checked = validate(engine, model, dataset, POINTS[form.precision])
                found = replace(found, validation=checked)
            if found.passed:
                path.replace(out)
            return found
    except OSError as error:
        raise RecordError(
            f"{terminal(out)}: cannot be written ({error.strerror or error}); name another with --out"
        ) from None


def prove(engine: ClipEngine, model: ModelEngine, images: Sequence[Path], form: Form) -> Proof:
    """Return how far the file is from its method on ``images``.

    Raises:
        DatasetError: for an image that cannot be read.
    """
    alone = copy.copy(model)
    alone.batch_size = 1
    setup = Setup(engine.id)
    sides = [Predictor(setup, side).observe(images) for side in (engine, model, alone)]
    scores, maps, largest = np.zeros((3, len(images))), 0.0, 0.0
    for number, ((torch_side, evidence), *files) in enumerate(zip(*sides, strict=True)):
        if torch_side.error is not None:
            raise DatasetError(f"{terminal(torch_side.path)}: {torch_side.error}")
        expected = _map(engine, evidence, form)
        largest = max(largest, float(np.abs(expected).max()))
        scores[0, number] = torch_side.score
        for side, (prediction, found) in enumerate(files, 1):
            scores[side, number] = prediction.score
            maps = float(np.maximum(maps, np.abs(found["map"][0] - expected).max()))  # keeps a NaN
    score = float(np.abs(scores - scores[0]).max())
    tolerance = TOLERANCES[form.precision]
    allowed = tolerance * max(1.0, float(np.abs(scores[0]).max()))
    pairs, turned = order(scores[0], scores[1], allowed)
    return Proof(len(images), score, maps, allowed, tolerance * max(1.0, largest), pairs, turned)


def order(expected: NDArray[np.float64], found: NDArray[np.float64], apart: float) -> tuple[int, int]:
    """Return how many pairs of ``expected`` (N,) differ by more than ``apart``, and how many turn round."""
    pairs = turned = 0
    for one, other in zip(expected, found, strict=True):
        higher = expected - one > apart
        pairs += int(higher.sum())
        turned += int((found[higher] <= other).sum())
    return pairs, turned


def generated(folder: Path, side: int) -> list[Path]:
    """Write pictures (side, side, 3) into ``folder``: steps of light under noise, the same every time."""
    random = np.random.default_rng(0)
    paths = []
    for number in range(GENERATED):
        light = np.linspace(20, 200, side)[:, None, None] * np.ones((1, side, 3))
        light[number * side // 12 :, : side // 3] += 40
        pixels = (light + random.normal(0, 3 + number, light.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def _map(engine: ClipEngine, evidence: Any, form: Form) -> NDArray[np.float32]:
    """Return the method's map of one image, as the file is to give it."""
    if not form.grid:
        return next(engine.maps(evidence))
    part = Slice(dict(evidence), [""], [])
    return np.asarray(EvidenceMaps(engine.method, part).render(0, grid_of(engine.method)), np.float32)
