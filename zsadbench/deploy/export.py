"""A method becomes one file of ONNX: image tensor in, score and map out, proven before it is kept.

Anchors, checkpoint, up-sampling and smoothing (the folded matrices of ``maps.render``) are constants of the
graph.  The batch is dynamic: anchors have one row, which every image of a batch shares.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..clip import Clip
from ..environment import VERSION
from ..errors import MethodError
from ..inputs import Batch, Preprocess, second_towers
from ..method import Method, Observer
from ..views import ClipEngine
from .model import KEY, SCHEMA

Input = Literal["uint8", "float"]


class Graph(nn.Module):
    """From images (N, 3, S, S) to scores (N,) and maps (N, H, W): everything between file and verdict."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, method: Method, observer: Observer, size: tuple[int, int], category: str, bytes_in: bool
    ) -> None:
        super().__init__()
        self.method, self.observer, self.size = method, observer, size
        self.category, self.bytes_in = category, bytes_in
        mean, std = method.preprocess.normalisation
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and maps."""
        if self.bytes_in:
            images = ((images.float() / 255) - self.mean) / self.std
        side = self.method.preprocess.size
        box, frame = torch.tensor([[[0, 0, side, side]]]), torch.tensor([[side, side]])
        # One key and one category: what belongs to them has one row, and broadcasts over the batch.
        batch = Batch(images[:, None], box, frame, ["image"], [self.category])
        evidence = {**self.observer.observe(batch), "frame": frame.float()}
        maps = self.method.maps(evidence, self.size)
        extrema = torch.stack([maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2))], dim=1)
        return self.method.image_scores(evidence, extrema).float(), maps.float()


def write_graph(engine: ClipEngine, path: Path, *, bytes_in: bool, threshold: float | None) -> None:
    """Write the method of ``engine`` to ``path``, in float32, with what it is in the metadata.

    Raises:
        MethodError: for a method that no such file can hold, with the reason.
    """
    refuse(engine)
    clip = engine.encoder.clip(engine.method.backbone)
    graph, example = _graph(engine, clip, bytes_in)
    _check_texts(engine, clip, graph, example)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                graph, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
            found = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=["images"], output_names=["score", "map"]
            )
    except Exception as error:  # whatever a method does that no graph can hold
        reason = " ".join(str(error).split())[:160]
        raise MethodError(f"{engine.id}: cannot be written as a graph ({reason})") from error
    finally:
        clip.vision.forget()
    assert found is not None
    found.model.metadata_props[KEY] = json.dumps(_about(engine, bytes_in, threshold))
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


def _graph(engine: ClipEngine, clip: Clip, bytes_in: bool) -> tuple[Graph, Tensor]:
    side, size = engine.method.preprocess.size, engine.resolved.size
    with torch.no_grad():
        observer = engine.encoder.prepare(engine.task, engine.words)
    shape = (side, side) if size == "frame" else (size, size)
    graph = Graph(engine.method, observer, shape, engine.words, bytes_in).eval()
    noise = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0))
    return graph, noise.to(torch.uint8) if bytes_in else noise.float() / 128 - 1


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


def _about(engine: ClipEngine, bytes_in: bool, threshold: float | None) -> dict[str, Any]:
    spec: Preprocess = engine.method.preprocess
    mean, std = spec.normalisation
    return {
        "schema": SCHEMA,
        "zsadbench": VERSION,
        "identity": engine.identity() | {"dtype": "fp32"},
        "weights": engine.weights.tag,
        "tower": list(engine.tower),
        "preprocess": dataclasses.asdict(dataclasses.replace(spec, mean=mean, std=std)),
        "input": "uint8" if bytes_in else "float",
        "threshold": threshold,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
