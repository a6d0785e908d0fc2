"""Exported files: proven against torch, run without it, refused where no graph can hold a method."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from tests.kit import tiny
from tests.kit.terminal import call
from zsadbench.data import load_dataset
from zsadbench.deploy import TOLERANCES, Form, ModelEngine, export, load_model, prove
from zsadbench.deploy.model import normalised
from zsadbench.deploy.precision import convert
from zsadbench.deploy.proof import generated, order
from zsadbench.deploy.validation import validate
from zsadbench.engine import encoder
from zsadbench.errors import MethodError, UsageError, WeightsError
from zsadbench.images.batches import to_batch_images
from zsadbench.images.loader import preprocess
from zsadbench.inputs import Preprocess
from zsadbench.method.trial import miniature, with_checkpoint
from zsadbench.metrics import SEVEN
from zsadbench.views import ClipEngine, Predictor, Setup, Threshold, fit


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
    setup: Setup, torch_side: ClipEngine, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(self: Any, evidence: Any, extremes: Any) -> Any:
        return np.asarray(evidence["score"], np.float64) + 1e-3

    def written(predictor: Predictor, engine: ClipEngine, path: Path, form: Form) -> None:
        path.write_bytes(model.read_bytes())

    monkeypatch.setattr("zsadbench.deploy.proof.write_graph", written)
    monkeypatch.setattr("zsadbench.deploy.model.ModelEngine.scores", spoilt)
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    found = export(setup, tmp_path / "out" / "bad.onnx", [tmp_path / "a.png"], engine=torch_side)
    assert not found.passed and found.score == pytest.approx(1e-3, rel=0.1)
    assert list((tmp_path / "out").iterdir()) == []


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
    assert "onnxruntime" in imported and "zsadbench.views.tiles" in imported
    assert not {name for name in imported if name.partition(".")[0] in ("torch", "open_clip")}


def test_what_is_no_exported_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(WeightsError, match="no model that can be run"):
        load_model(tmp_path / "text.onnx", Setup(""))
    with pytest.raises(WeightsError, match="no such file; write one with zsad export"):
        load_model(tmp_path / "gone.onnx", Setup(""))


@pytest.fixture
def miniatures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)
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
    "sc-clip": "depends on numbers that only an image gives",
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
            export(setup, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def calibrated(
    setup: Setup, torch_side: ClipEngine, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Threshold]:
    """A file that takes floats, gives patch grids and holds a threshold found on tiles."""
    path, tiled = tmp_path_factory.mktemp("grid") / "grid.onnx", replace(setup, tile=30)
    plain = Predictor(tiled, torch_side)
    scores = [plain(pixels(shift)).score for shift in (0, 20, 40)]
    limit = fit(scores, 0.4, plain.identity(), plain.engine.names(), force=True)
    found = export(tiled, path, form=Form(bytes_in=False, grid=True, limit=limit), engine=torch_side)
    assert found.passed and found.images == 9
    return path, limit


def test_a_grid_is_the_method_s_map_of_patches(
    setup: Setup, torch_side: ClipEngine, calibrated: tuple[Path, Threshold]
) -> None:
    path, limit = calibrated
    found = load_model(path, Setup(""))
    assert isinstance(found.engine, ModelEngine)
    inputs = np.zeros((2, 3, 42, 42), np.float32)
    assert found.engine.session.run(["map"], {"images": inputs})[0].shape == (2, 3, 3)
    expected = Predictor(replace(setup, tile=30), torch_side)(pixels())
    judged = found(pixels())
    assert judged.score == pytest.approx(expected.score, abs=1e-5)
    assert judged.decision == limit.verdict(expected.score) and judged.map.shape == (48, 60)


def test_a_threshold_in_the_file_is_said_and_held_to(
    calibrated: tuple[Path, Threshold], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, limit = calibrated
    Image.fromarray(pixels(20)).save(tmp_path / "a.png")
    code = call("predict", tmp_path / "a.png", "--model", path, "-q")
    told = capsys.readouterr().out
    assert limit.words in told and "each tile of the image by itself" in told
    score = float(told.splitlines()[-1].split()[0])
    assert code == (1 if score > limit.value else 0)
    with pytest.raises(UsageError, match="found with tile 30, now 40"):
        load_model(path, Setup("", tile=40))


def test_a_threshold_of_other_scores_is_refused(setup: Setup, torch_side: ClipEngine, tmp_path: Path) -> None:
    plain = Predictor(setup, torch_side)
    own = fit([0.1, 0.9], 0.5, plain.identity(), plain.engine.names())
    other = fit([0.1, 0.9], 0.5, plain.identity() | {"words": "screw"}, plain.engine.names())
    for form, says in (
        (Form(limit=other), "words screw, now nut: give its options or calibrate again$"),
        (Form(precision="int8", limit=own), "dtype fp32, now onnx-int8.*; or export without it"),
        (Form(limit=float("nan")), "threshold nan: give a finite number"),
    ):
        with pytest.raises(UsageError, match=says):
            export(setup, tmp_path / "m.onnx", form=form, engine=torch_side)


@pytest.mark.parametrize(("precision", "smaller", "least"), [("fp16", 0.6, 1e-6), ("int8", 0.5, 1e-4)])
def test_other_numbers_are_proven_by_their_own_tolerance(
    precision: Any, smaller: float, least: float, torch_side: ClipEngine, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model.read_bytes())
    convert(path, precision)
    assert path.stat().st_size < smaller * model.stat().st_size
    found = prove(torch_side, ModelEngine(path), generated(tmp_path, 42), Form(precision=precision))
    assert least < max(found.score, found.map) and found.allowed_score == TOLERANCES[precision]
    strict = prove(torch_side, ModelEngine(path), generated(tmp_path, 42), Form())
    assert not strict.passed and strict.map == found.map


def test_scores_of_float16_are_not_rounded_to_it(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model.read_bytes())
    convert(path, "fp16")
    images = np.stack([np.asarray(Image.open(one)) for one in generated(tmp_path, 42)]).transpose(0, 3, 1, 2)
    for values in ModelEngine(path).session.run(None, {"images": np.ascontiguousarray(images)}):
        assert (values.astype(np.float16) != values).any()


def test_order_counts_only_scores_that_are_apart() -> None:
    expected, found = np.array([0.0, 0.05, 0.2]), np.array([0.06, 0.05, 0.04])
    assert order(expected, found, 0.1) == (2, 2)
    assert order(expected, found, 0.01) == (3, 3)
    assert order(expected, found, 0.2) == (0, 0)


def test_maps_that_are_no_numbers_fail(torch_side: ClipEngine, model: Path, tmp_path: Path) -> None:
    engine = ModelEngine(model)
    session = engine.session

    def run(*given: Any) -> list[Any]:
        scores, maps = session.run(*given)
        return [scores, maps * np.nan]

    engine.session = SimpleNamespace(run=run)
    found = prove(torch_side, engine, generated(tmp_path, 42), Form())
    assert found.score <= 1e-5 and not found.passed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of one category, three of them with a scratch and its mask."""
    place = tmp_path_factory.mktemp("data")
    for number in range(6):
        fault = "scratch" if number % 2 else "good"
        image, mask = pixels(9 * number), np.zeros((48, 60), np.uint8)
        (place / "set/nut/test" / fault).mkdir(parents=True, exist_ok=True)
        if number % 2:
            image[10:20, 5 * number : 5 * number + 12] = 255
            mask[10:20, 5 * number : 5 * number + 12] = 255
            (place / "set/nut/ground_truth/scratch").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(place / f"set/nut/ground_truth/scratch/{number}_mask.png")
        Image.fromarray(image).save(place / f"set/nut/test/{fault}/{number}.png")
    return place / "set"


def test_metrics_of_a_dataset(torch_side: ClipEngine, model: Path, folder: Path) -> None:
    dataset = load_dataset(str(folder))
    found = validate(torch_side, ModelEngine(model), dataset, 0.05)
    assert found.passed and found.images == 6 and found.failed == 0
    assert set(found.metrics) == set(SEVEN)
    scores = [Predictor(torch_side.setup, torch_side)(one.image).score for one in dataset.samples]
    labels = [one.anomalous for one in dataset.samples]
    assert found.metrics["image_auroc"][0] == pytest.approx(roc_auc_score(labels, scores))
    turned = ModelEngine(model)
    session = turned.session
    turned.session = SimpleNamespace(run=lambda *given: [-one for one in session.run(*given)])
    worse = validate(torch_side, turned, dataset, 0.05)
    assert not worse.passed and "(0.05 allowed)" in worse.words
    first, last = worse.metrics["pixel_auroc"]
    assert last == pytest.approx(1 - first) and worse.change >= 100 * abs(last - first) - 1e-9


def test_the_verb_tells_what_it_proved(
    setup: Setup,
    model: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def written(predictor: Predictor, engine: ClipEngine, path: Path, form: Form) -> None:
        assert form == Form(grid=False, precision="int8", limit=0.5)
        path.write_bytes(model.read_bytes())

    monkeypatch.setattr("zsadbench.deploy.proof.write_graph", written)
    monkeypatch.chdir(tmp_path)
    words: list[Any] = [
        "export",
        "clip",
        "--words",
        "nut",
        "--backbone",
        setup.backbone,
        "--weights",
        "random",
    ]
    words += ["--set", "size=42", "--limit", 0.5, "--precision", "int8", "--validate", folder]
    assert call(*words, "--json", "proof.json") == 0
    proven, validated, out = capsys.readouterr().out.splitlines()
    assert proven.startswith("9 images, alone and in batches: scores differ by ") and out == "model.onnx"
    assert validated.startswith("set, 6 images: image_auroc ") and "(2 allowed)" in validated
    proof = json.loads(Path("proof.json").read_text())
    assert proof["passed"] and proof["validation"]["passed"] and len(proof["validation"]["metrics"]) == 7
    monkeypatch.setattr("zsadbench.deploy.proof.TOLERANCES", dict.fromkeys(TOLERANCES, 0.0))
    assert call(*words, "--out", "other.onnx") == 1
    assert "other.onnx: not written: the file differs" in capsys.readouterr().out
    assert not Path("other.onnx").exists() and Path("model.onnx").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["clip", "--limit", 1, "--threshold", "t.json"], "give one of them"),
        (["clip", "--data", "."], "--data and --category belong to --validate"),
        (["--words", "nut"], "name a method, or a file of zsad calibrate"),
        (["clip", "--threshold", "gone.json"], "gone.json: no such threshold file"),
        (["clip", "--precision", "fp8"], "fp8"),
    ],
)
def test_words_of_the_verb_that_do_not_fit(
    words: list[Any],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("export", *words) == 2
    assert says in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_runs_in_openvino(torch_side: ClipEngine, model: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    core = openvino.Core()
    compiled = core.compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    engine = ModelEngine(model)
    loaded = [preprocess(Image.fromarray(pixels(shift)), engine.spec) for shift in (0, 20, 40)]
    inputs = np.stack([one.tiles[0] for one in loaded]).transpose(0, 3, 1, 2)
    found = compiled(np.ascontiguousarray(inputs))
    expected = engine.session.run(["score", "map"], {"images": np.ascontiguousarray(inputs)})
    for name, values in zip(("score", "map"), expected, strict=True):
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-4)
