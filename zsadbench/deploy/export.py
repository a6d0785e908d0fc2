"""A method becomes one file of ONNX: image tensor in, score and map out, proven before it is kept.

Anchors, checkpoint, up-sampling and smoothing (the folded matrices of ``maps.render``) are constants of the
graph.  The batch is dynamic: anchors have one row, which every image of a batch shares.
"""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..clip import Clip, layers_and_patch
from ..environment import VERSION
from ..errors import MethodError, UsageError
from ..inputs import Batch, Preprocess, second_towers
from ..method import Method, Observer
from ..views import ClipEngine, Predictor, Threshold, differences
from .model import KEY, SCHEMA

Precision = Literal["fp32", "fp16", "int8"]
DTYPES: dict[Precision, str] = {"fp32": "fp32", "fp16": "onnx-fp16", "int8": "onnx-int8"}
"""What a file's identity says of its numbers: in float32 it gives the scores of the method itself."""


@dataclass(frozen=True)
class Form:
    """What a file takes, gives and decides beside its method.

    It takes uint8 (``bytes_in``) or normalised floats, and gives maps of the evaluation size or, with
    ``grid``, of one value per patch.  ``precision`` is that of its numbers inside.  ``limit`` is the score
    above which an image is NG: a number, or a threshold of ``zsad calibrate``.
    """

    bytes_in: bool = True
    grid: bool = False
    precision: Precision = "fp32"
    limit: float | Threshold | None = None


class Graph(nn.Module):
    """From images (N, 3, S, S) to scores (N,) and maps (N, H, W): everything between file and verdict."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, method: Method, observer: Observer, size: tuple[int, int], category: str, form: Form
    ) -> None:
        super().__init__()
        self.method, self.observer, self.size = method, observer, size
        self.category, self.form, self.grid = category, form, grid_of(method)
        mean, std = method.preprocess.normalisation
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and maps."""
        if self.form.bytes_in:
            images = ((images.float() / 255) - self.mean) / self.std
        side = self.method.preprocess.size
        box, frame = torch.tensor([[[0, 0, side, side]]]), torch.tensor([[side, side]])
        # One key and one category: what belongs to them has one row, and broadcasts over the batch.
        batch = Batch(images[:, None], box, frame, ["image"], [self.category])
        evidence = {**self.observer.observe(batch), "frame": frame.float()}
        maps = self.method.maps(evidence, self.size)
        extrema = torch.stack([maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2))], dim=1)
        scores = self.method.image_scores(evidence, extrema).float()
        return scores, (self.method.maps(evidence, self.grid) if self.form.grid else maps).float()


def grid_of(method: Method) -> tuple[int, int]:
    """Return the rows and columns of patches of a method's input."""
    side = method.preprocess.size // layers_and_patch(method.backbone.name)[1]
    return side, side


def write_graph(predictor: Predictor, engine: ClipEngine, path: Path, form: Form) -> None:
    """Write the method of ``engine`` to ``path``, in float32, with what it is in the metadata.

    Raises:
        MethodError: for a method that no such file can hold, with the reason.
        UsageError: for a threshold found with other scores than the file's.
    """
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    refuse(engine)
    about = _about(predictor, engine, form)
    clip = engine.encoder.walk(engine.method)
    graph, example = _graph(engine, clip, form)
    _check_texts(engine, clip, graph, example)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                graph, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
            found = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                input_names=["images"],
                output_names=["score", "map"],
            )
    except Exception as error:  # whatever a method does that no graph can hold
        reason = " ".join(str(error).split())[:160]
        if "data-dependent" in reason:
            reason = "what it computes depends on numbers that only an image gives"
        raise MethodError(f"{engine.id}: cannot be exported: {reason}; use zsad predict --method") from error
    finally:
        clip.vision.forget()
    assert found is not None
    # Not all rewrites of onnxscript: they take as long as the rest together, and the runtimes have their own.
    fold_constants(found.model)
    remove_unused_nodes(found.model)
    found.model.metadata_props[KEY] = json.dumps(about)
    found.save(str(path))


def refuse(engine: ClipEngine) -> None:
    """Refuse what no file of one image tensor can hold.

    Raises:
        MethodError: with the reason.
    """
    spec, card = engine.method.preprocess, engine.resolved.card
    reasons = {
        "it judges the images of a category by each other": engine.relates,
        "it goes on learning from image to image": card.order_dependent,
        "its second image tower is not part of the graph": bool(second_towers(engine.method)),
        "its input has no fixed size (resize, tiles)": spec.resize != "squash" or spec.tiles != "none",
    }
    for reason, holds in reasons.items():
        if holds:
            raise MethodError(f"{engine.id}: cannot be exported: {reason}; use zsad predict --method")


def _graph(engine: ClipEngine, clip: Clip, form: Form) -> tuple[Graph, Tensor]:
    side, size = engine.method.preprocess.size, engine.resolved.size
    with torch.no_grad():
        observer = engine.encoder.prepare(engine.task, engine.words)
    shape = (side, side) if size == "frame" else (size, size)
    graph = Graph(engine.method, observer, shape, engine.words, form).eval()
    noise = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0))
    return graph, noise.to(torch.uint8) if form.bytes_in else noise.float() / 128 - 1


def _check_texts(engine: ClipEngine, clip: Clip, graph: Graph, example: Tensor) -> None:
    """Refuse a method whose texts depend on the image: it walks the text tower while it observes."""
    heard: list[bool] = []
    hooks = [
        block.module.ln_1.register_forward_pre_hook(lambda *_: heard.append(True))
        for block in clip.text.blocks
    ]
    try:
        with torch.no_grad():
            graph(example[:1])
    finally:
        clip.vision.forget()
        for hook in hooks:
            hook.remove()
    if heard:
        raise MethodError(
            f"{engine.id}: cannot be exported: its texts depend on the image; use zsad predict --method"
        )


def _about(predictor: Predictor, engine: ClipEngine, form: Form) -> dict[str, Any]:
    """Return what a file says of itself.

    Raises:
        UsageError: for a threshold found with other scores.
    """
    spec: Preprocess = engine.method.preprocess
    mean, std = spec.normalisation
    dtype, limit = DTYPES[form.precision], form.limit
    about = {
        "schema": SCHEMA,
        "zsadbench": VERSION,
        "identity": engine.identity() | {"dtype": dtype},
        "weights": engine.weights.tag,
        "tower": list(engine.tower),
        "preprocess": asdict(dataclasses.replace(spec, mean=mean, std=std)),
        "input": "uint8" if form.bytes_in else "float",
        "map": "grid" if form.grid else "full",
    }
    if not isinstance(limit, Threshold):
        return about | {"threshold": limit}
    if found := differences(limit.identity, predictor.identity() | {"dtype": dtype}):
        other = "" if form.precision == "fp32" else "; or export without it, and zsad calibrate --model"
        raise UsageError(
            f"the threshold was found with {'; '.join(found)}: give its options or calibrate again{other}"
        )
    kept = {name: value for name, value in asdict(limit).items() if name not in ("scores", "about", "setup")}
    return about | {"threshold": limit.value, "calibrated": kept}


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop warnings, and the whole graph, which torch prints where it cannot make one."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
