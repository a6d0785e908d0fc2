"""Every method that can be exported, as a file beside torch: on both miniatures, and metrics of the demo.

Minutes, so it is a step of its own in CI: ``make exports``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import tiny
from zsadbench.data import load_dataset, subset
from zsadbench.deploy import ModelEngine, export
from zsadbench.deploy.precision import convert
from zsadbench.deploy.validation import validate
from zsadbench.engine import encoder
from zsadbench.method import resolve
from zsadbench.method.trial import with_checkpoint
from zsadbench.views import ClipEngine, Setup

pytestmark = pytest.mark.exports
CHECKPOINTS = Path(__file__).parents[2] / "results" / "boards" / "checkpoints"
TOWERS = {"tiny-l14": "84", "tiny-b16p": "80"}
METHODS = (
    "aa-clip",
    "af-clip",
    "anoclip",
    "anomalyclip",
    "april-gan",
    "clip",
    "clip-ad",
    "clip-ad+",
    "crane",
    "winclip",
)
SOME = ("carpet", "comb", "dial")
"""Categories of the demo: three of nine, so that all methods take minutes."""


@pytest.fixture
def miniatures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)
    yield


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("spec", [*METHODS, "anoclip without views"])
def test_a_file_is_its_method_on_both_miniatures(
    spec: str, tower: str, tmp_path: Path, miniatures: None
) -> None:
    spec, _, plainly = spec.partition(" ")
    settings = {"size": TOWERS[tower]} | ({"augment": "false"} if plainly else {})
    plain = resolve(spec, backbone=tower, weights="random", settings=settings)
    with with_checkpoint(plain, tiny.load(plain.method.backbone)) as ready:
        checkpoint = getattr(ready.method, "checkpoint", "") or None
        setup = Setup(spec, "nut", tower, "random", checkpoint=checkpoint, settings=settings, workers=1)
        found = export(setup, tmp_path / "m.onnx")
    assert found.passed and (tmp_path / "m.onnx").is_file()
    assert found.score <= 1e-5 and found.map <= found.allowed_map


@pytest.mark.parametrize("spec", METHODS)
def test_metrics_of_the_demo_are_those_of_the_method(spec: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS / f"{spec}.safetensors"
    given = checkpoint if checkpoint.is_file() else None
    setup = Setup(spec, "part", "demo", "demo", checkpoint=given, workers=1)
    torch_side, path = ClipEngine(setup), tmp_path / "m.onnx"
    dataset = subset(load_dataset("demo"), categories=SOME)
    found = export(setup, path, dataset=dataset, engine=torch_side)
    assert found.validation and len(found.validation.metrics) == 7 and found.validation.change <= 0.05
    convert(path, "fp16")
    assert validate(torch_side, ModelEngine(path), dataset, 0.3).passed
