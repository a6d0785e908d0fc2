"""Exported files: proven against torch, run without it, refused where no graph can hold a method."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.kit import tiny
from zsadbench.deploy import export, load_model
from zsadbench.deploy.export import write_graph
from zsadbench.deploy.model import normalised
from zsadbench.errors import MethodError, WeightsError
from zsadbench.images.batches import to_batch_images
from zsadbench.images.loader import preprocess
from zsadbench.inputs import Preprocess
from zsadbench.method.trial import miniature, with_checkpoint
from zsadbench.run import engine
from zsadbench.views import ClipEngine, Predictor, Setup


def pixels(shift: int = 0) -> NDArray[np.uint8]:
    x, y = np.meshgrid(np.linspace(0, 250, 60), np.linspace(0, 250, 48))
    return np.roll(np.stack([x, y, x / 2], axis=2).astype(np.uint8), shift, axis=1)


def test_a_file_judges_as_its_method_does(setup: Setup, torch_side: ClipEngine, model: Path) -> None:
    images = [pixels(shift) for shift in range(0, 55, 5)]
    expected = Predictor(setup, torch_side, 0.25)(images)
    for found, one in zip(load_model(model, Setup(""))(images), expected, strict=True):
        assert found.score == pytest.approx(one.score, abs=1e-5)
        np.testing.assert_allclose(found.map, one.map, atol=1e-5)
        assert found.decision == one.decision
    tiled = load_model(model, Setup("", tile=30))(pixels())
    assert tiled.score == pytest.approx(
        Predictor(Setup(**{**vars(setup), "tile": 30}), torch_side)(pixels()).score, abs=1e-5
    )


def test_a_file_knows_what_it_is(setup: Setup, torch_side: ClipEngine, model: Path) -> None:
    predictor = load_model(model, Setup(""))
    assert predictor.identity() == Predictor(setup, torch_side).identity()
    assert (predictor.engine.id, predictor.engine.words, predictor.limit) == ("clip", "nut", 0.25)
    assert len(predictor.about()["model_sha256"]) == 64


def test_a_file_that_differs_is_not_kept(
    setup: Setup, torch_side: ClipEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(self: Any, evidence: Any, extremes: Any) -> Any:
        return np.asarray(evidence["score"], np.float64) + 1e-3

    monkeypatch.setattr("zsadbench.deploy.model.ModelEngine.scores", spoilt)
    found = export(setup, tmp_path / "bad.onnx", [pixels()], engine=torch_side)
    assert not found.passed and found.score == pytest.approx(1e-3, rel=0.1)
    assert list(tmp_path.iterdir()) == []


def test_normalised_floats_are_those_of_the_loader() -> None:
    spec = Preprocess(42)
    prepared = preprocess(Image.fromarray(pixels()), spec)
    ours = normalised(prepared.tiles.transpose(0, 3, 1, 2), spec)
    np.testing.assert_allclose(ours, to_batch_images([prepared], spec)[0].numpy(), rtol=0, atol=2e-7)


def test_predict_runs_a_file_without_torch(tmp_path: Path, model: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png"), "--model", str(model), "--quiet", "--json", "-"]
    words += ["--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from zsadbench.cli import main; main()", *words],
        capture_output=True,
        text=True,
    )
    (image,) = json.loads(done.stdout)["images"]
    assert image["score"] == pytest.approx(load_model(model, Setup(""))(pixels()).score)
    assert done.returncode == (1 if image["verdict"] == "NG" else 0)
    assert (tmp_path / "out" / "a.png").is_file()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "onnxruntime" in imported and "zsadbench.views.predictor" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "open_clip")}


def test_what_is_no_exported_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(WeightsError, match="no model that can be run"):
        load_model(tmp_path / "text.onnx", Setup(""))
    with pytest.raises(WeightsError, match="no such file; write one with zsad export"):
        load_model(tmp_path / "gone.onnx", Setup(""))


@pytest.fixture
def miniatures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engine, "load_clip", tiny.load)
    yield


REFUSED = {
    "anoclip+": "goes on learning from image to image",
    "musc": "judges the images of a category by each other",
    "crane+": "second image tower",
    "faprompt": "its texts depend on the image",
    "adaclip": "its texts depend on the image",
    "vcp-clip": "its texts depend on the image",
    "bayes-pfl": "its texts depend on the image",
    "crane@context": "its texts depend on the image",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_methods_that_no_file_can_hold(spec: str, tmp_path: Path, miniatures: None) -> None:
    plain = miniature(spec)
    clip = tiny.load(plain.method.backbone)
    with with_checkpoint(plain, clip) as ready:
        given = getattr(ready.method, "checkpoint", "") or None
        setup = Setup(
            spec,
            "nut",
            plain.method.backbone.name,
            "random",
            checkpoint=given,
            settings={"size": str(plain.method.preprocess.size)},
        )
        with pytest.raises(MethodError, match=REFUSED[spec]):
            write_graph(ClipEngine(setup), tmp_path / "m.onnx", bytes_in=True, threshold=None)
    assert list(tmp_path.iterdir()) == []
