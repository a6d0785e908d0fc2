"""An exported file on the line: loaded by its name, without torch, on the frames of a camera."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from examples import blocks
from numpy.typing import NDArray
from PIL import Image

import zsadbench
from tests.kit.terminal import call
from zsadbench.errors import UsageError, WeightsError
from zsadbench.views import ClipEngine, Predictor, Setup, fit, read_threshold, write_threshold

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "export.md"


def frame(shift: int) -> NDArray[np.uint8]:
    x, y = np.meshgrid(np.linspace(0, 250, 64), np.linspace(0, 250, 48))
    return np.roll(np.stack([x, y, x / 2], axis=2).astype(np.uint8), shift, axis=1)


def test_a_file_is_loaded_by_its_name(
    tmp_path: Path, setup: Setup, torch_side: ClipEngine, model: Path
) -> None:
    p, plain = zsadbench.load_predictor(model), Predictor(setup, torch_side)
    expected = plain(frame(0))
    assert p(frame(0)).score == pytest.approx(expected.score, abs=1e-5) and p.limit == 0.25
    other = zsadbench.load_predictor(str(model), threshold=1, roi=[8, 4, 40, 30])
    found = other(frame(0))
    assert found.decision == "OK" and np.isfinite(found.map).sum() == 1200
    assert np.isfinite(found.map[4:34, 8:48]).all()
    about = plain.identity(), plain.engine.names()
    write_threshold(tmp_path / "t.json", fit([0.1, 0.9], 0.5, *about), {})
    assert zsadbench.load_predictor(model, threshold=tmp_path / "t.json").limit == 0.5
    write_threshold(tmp_path / "t.json", fit([0.1, 0.9], 0.5, about[0] | {"words": "screw"}), {})
    with pytest.raises(UsageError, match="found with words screw, now nut"):
        zsadbench.load_predictor(model, threshold=tmp_path / "t.json")


def test_what_a_file_holds_cannot_be_said_again(tmp_path: Path, model: Path) -> None:
    with pytest.raises(
        UsageError, match=r"holds its method, words and settings .* leave out: device, words$"
    ):
        zsadbench.load_predictor(model, "nut", device="cuda")
    with pytest.raises(WeightsError, match=r"gone.ONNX: no such file; write one with zsad export"):
        zsadbench.load_predictor(tmp_path / "gone.ONNX")


def test_a_threshold_is_found_with_a_file(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good").mkdir()
    for number in range(4):
        Image.fromarray(frame(7 * number)).save(f"good/{number}.png")
    p = zsadbench.load_predictor(model)
    scores = sorted(p(path).score for path in Path("good").iterdir())
    assert call("calibrate", "--normal", "good", "--fpr", 0.25, "--model", model, "-q") == 0
    limit = (scores[2] + scores[3]) / 2
    assert zsadbench.load_predictor(model, threshold="threshold.json").limit == pytest.approx(limit)
    assert call("predict", "good", "--model", model, "--threshold", "threshold.json", "-q") == 1
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[-4:]].count("NG") == 1
    assert call("predict", "good", "--threshold", "threshold.json", "-q") == 2
    assert "give --method and the others, or the --model" in capsys.readouterr().err
    assert call("calibrate", "--from", "threshold.json", "--fpr", 0.5, "--out", "looser.json") == 0
    assert read_threshold(Path("looser.json")).reached == 0.5
    for words in (
        ["--method", model, "--normal", "good", "--fpr", 0.5],
        ["--model", model, "--from", "threshold.json"],
    ):
        assert call("calibrate", "--out", "other.json", *words) == 2
    assert "give an exported file with --model" in capsys.readouterr().err


def test_threads_share_a_file(model: Path) -> None:
    p, frames = zsadbench.load_predictor(model), [frame(3 * number) for number in range(8)]
    expected = [p(one) for one in frames]
    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(p, frames), expected, strict=True):
            assert found.score == one.score
            np.testing.assert_array_equal(found.map, one.map)


def test_the_camera_of_the_guide_judges_without_torch(tmp_path: Path, model: Path) -> None:
    (lines,) = (block.lines for block in blocks(GUIDE.read_text()) if "import cv2" in block.lines)
    assert sum(map(bool, lines)) <= 10
    code = "\n".join(
        [*lines, "import sys; print(sorted({'torch', 'open_clip', 'pandas'} & set(sys.modules)))"]
    )
    video = cv2.VideoWriter(str(tmp_path / "line.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for shift in (0, 30, 20, 30, 0):
        video.write(np.ascontiguousarray(frame(shift)[..., ::-1]))
    video.release()
    code = code.replace("metal-nut.onnx", str(model)).replace("VideoCapture(0)", "VideoCapture('line.avi')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    camera, judge = cv2.VideoCapture(str(tmp_path / "line.avi")), zsadbench.load_predictor(model)
    seen = [judge(np.asarray(camera.read()[1]), order="bgr") for _ in range(5)]
    assert [one.decision for one in seen] == ["OK", "NG", "OK", "NG", "OK"]
    assert len(list(tmp_path.glob("*.png"))) == 2
    for name, one in (("ng-1.png", seen[1]), ("ng-2.png", seen[3])):
        np.testing.assert_array_equal(Image.open(tmp_path / name), one.overlay())


def test_a_limit_that_is_no_number_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    for limit in ("nan", "inf"):
        assert call("export", "clip", "--limit", limit) == 2
        assert f"--limit {limit}: give a number" in capsys.readouterr().err
