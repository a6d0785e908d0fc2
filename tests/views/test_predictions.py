"""What predict leaves behind: verdicts with nothing repeated, captions on overlays, a page and a CSV."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.kit import toy
from tests.views.test_predict import BASE, OPTIONS, SMALL, Zsad, cached_towers, normal, photo, zsad
from zsadbench.clip.checkpoints import Provenance, save_checkpoint
from zsadbench.errors import UsageError
from zsadbench.method.registry import resolve
from zsadbench.views.calibrate import Threshold, fit, read_threshold, recalled, write_threshold
from zsadbench.views.engine import ClipEngine
from zsadbench.views.overlay import draw_scale
from zsadbench.views.predict import find_images, predict
from zsadbench.views.predictor import Predictor
from zsadbench.views.setup import Setup

__all__ = ["cached_towers", "normal", "zsad"]
FAST = ["--workers", "1", "--quiet"]


# --- a threshold repeats nothing ---


def calibrated(zsad: Zsad, normal: Path, file: Path, *words: object) -> Threshold:
    answer = zsad("calibrate", "--normal", normal, "--fpr", "0.2", *words, "--out", file)
    assert answer.error is None and answer.code == 0, answer
    return read_threshold(file)


def test_predict_takes_everything_from_the_threshold(tmp_path: Path, normal: Path, zsad: Zsad) -> None:
    file, prompts = tmp_path / "t.json", tmp_path / "prompts.toml"
    prompts.write_text('normal = ["a whole {}"]\nanomalous = ["a torn {}"]\n')
    more = ["--prompts", prompts, "--roi", "1,2,15,16", "--set", "sigma=1.5"]
    limit = calibrated(zsad, normal, file, *OPTIONS, *more)
    prompts.unlink()  # its texts stand in the file
    answer = zsad("predict", normal, "--threshold", file, *FAST, "--json", tmp_path / "r.json")
    assert answer.error is None and answer.code == 1, answer
    assert limit.words in answer.out and '"nut"' in answer.out and "note: no --words" not in answer.err
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["roi"] == [1, 2, 16, 18] and content["threshold"] == limit.value
    assert content["parameters"]["anomalous"] == ["a torn {}"] and content["parameters"]["sigma"] == 1.5
    verdicts = [image["verdict"] for image in content["images"]]
    assert verdicts.count("NG") / len(verdicts) == limit.reached == 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--words", "bolt"], "words nut, now bolt"),
        (["--method", "winclip"], "method clip, now winclip"),
        (["--input-size", "28"], "parameters.preprocess.size 42, now 28"),
        (["--dtype", "bf16"], "dtype fp32, now bf16"),
        (["--tile", "8"], "tile none, now 8"),
        (["--weights", "random:1"], "now random/tiny-l14/1"),
    ],
)
def test_what_contradicts_the_threshold_is_refused(
    tmp_path: Path, zsad: Zsad, words: list[str], message: str
) -> None:
    photo().save(tmp_path / "a.png")
    predictor = Predictor(BASE)
    file = tmp_path / "t.json"
    write_threshold(file, fit([0.1, 0.2], 0.5, predictor.identity(), predictor.engine.names()), {})
    answer = zsad("predict", tmp_path / "a.png", "--threshold", file, *words, *FAST)
    assert isinstance(answer.error, UsageError) and message in str(answer.error)
    same = ["--words", "nut", "--method", "clip", "--input-size", "42", "--dtype", "fp32"]
    assert zsad("predict", tmp_path / "a.png", "--threshold", file, *same, *FAST).error is None


def test_a_default_that_is_stated_contradicts_too(tmp_path: Path, zsad: Zsad) -> None:
    photo().save(tmp_path / "a.png")
    predictor = Predictor(replace(BASE, dtype="bf16", tile=30, overlap=0.5))
    file = tmp_path / "t.json"
    write_threshold(file, fit([0.1, 0.2], 0.5, predictor.identity(), predictor.engine.names()), {})
    assert zsad("predict", tmp_path / "a.png", "--threshold", file, *FAST).error is None
    for words, message in (
        (["--dtype", "fp32"], "now fp32"),
        (["--overlap", "0.25"], "overlap 0.5, now 0.25"),
    ):
        answer = zsad("predict", tmp_path / "a.png", "--threshold", file, *words, *FAST)
        assert message in str(answer.error)


def test_a_threshold_never_names_code_that_is_run(tmp_path: Path, normal: Path, zsad: Zsad) -> None:
    spec = toy.write(tmp_path)
    file = tmp_path / "t.json"
    calibrated(zsad, normal, file, "--method", spec, "--words", "nut", *FAST)
    trap = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(trap)!r}, 'w')\n" + (tmp_path / "mine.py").read_text())
    answer = zsad("predict", normal, "--threshold", file, *FAST)
    assert "run only when you name it: --method" in str(answer.error) and not trap.exists()
    toy.write(tmp_path)
    assert zsad("predict", normal, "--threshold", file, "--method", spec, *FAST).code == 1


def test_a_checkpoint_is_found_again_or_asked_for(tmp_path: Path) -> None:
    predictor = Predictor(BASE)
    kept = predictor.engine.names() | {"checkpoint": str(tmp_path / "gone.safetensors")}
    limit = fit([0.1, 0.2], 0.5, predictor.identity(), kept)
    with pytest.raises(UsageError, match=r"gone\.safetensors, which is no longer there; name it with --ch"):
        recalled(limit, tmp_path / "t.json", {})


def test_a_threshold_of_before_needs_its_options(tmp_path: Path) -> None:
    limit = fit([0.1, 0.2], 0.5, Predictor(BASE).identity())
    with pytest.raises(UsageError, match="keeps no options, as files of earlier versions"):
        recalled(limit, tmp_path / "t.json", {"words": "nut"})
    given: dict[str, Any] = {"method": "clip", "words": "nut"}
    assert recalled(limit, tmp_path / "t.json", given) == Setup("clip", "nut")


def test_other_batches_change_no_verdict(tmp_path: Path) -> None:
    """Each of the scores could be the threshold; the last digits of none may decide."""
    for seed in range(12):
        pixels = np.random.RandomState(seed).randint(0, 255, (30, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{seed:02}.png")
    images = find_images([tmp_path])
    together, _ = predict(Predictor(replace(BASE, batch_size=12)), images, quiet=True)
    alone, _ = predict(Predictor(replace(BASE, batch_size=1)), images, quiet=True)
    scores = [one.score or 0.0 for one in together]
    for allowed in range(11):
        limit = fit(scores, (allowed + 0.5) / 12, {}, force=True)
        assert sum(limit.verdict(one.score) == "NG" for one in alone) == round(limit.reached * 12) == allowed


# --- the backbone of a checkpoint ---


def test_a_checkpoint_brings_its_backbone(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    backbone = {"name": "tiny-l14", "weights": "random:2", "activation": "quick_gelu"}
    save_checkpoint(file, {"a": torch.zeros(1)}, Provenance("anomalyclip", parameters={"backbone": backbone}))
    setup = Setup("anomalyclip", "nut", checkpoint=file, settings=SMALL)
    assert ClipEngine(setup).method.backbone == replace(
        resolve("anomalyclip").method.backbone, name="tiny-l14", weights="random:2", activation="quick_gelu"
    )
    assert ClipEngine(replace(setup, weights="random:3")).method.backbone.weights == "random:3"
    parameters = {"backbone": backbone | {"weights": "own.pt"}}
    save_checkpoint(file, {"a": torch.zeros(1)}, Provenance("anomalyclip", parameters=parameters))
    with pytest.raises(
        UsageError, match=r"trained on tiny-l14 with the weights own\.pt, not on ViT-L-14-336"
    ):
        Predictor(setup)


# --- overlays ---


def test_an_overlay_carries_score_verdict_and_name(tmp_path: Path) -> None:
    photo(400, 300).save(tmp_path / "größe.png")
    limit = Threshold(-1.0, 0.1, 0.1, 0.2, 10, {})
    (one,), _ = predict(
        Predictor(BASE), [tmp_path / "größe.png"], out=tmp_path / "out", threshold=limit, quiet=True
    )
    assert one.verdict == "NG" and one.notes == ()
    with Image.open(one.overlay or "") as picture:
        assert picture.size == (400, 300)
        assert picture.info["Verdict"] == "NG" and picture.info["Score"] == repr(one.score)
        assert picture.info["Source"] == "größe.png"


def test_a_caption_is_drawn_and_cut_to_its_room() -> None:
    values = np.zeros((200, 300), np.float32)

    def drawn(caption: str) -> Any:
        picture = Image.new("RGB", (300, 200), "white")
        assert draw_scale(picture, values, (0.0, 1.0), caption=caption)
        dark = np.argwhere(np.asarray(picture).sum(2) == 0)
        return dark.min(0), dark.max(0)

    (top, left), (bottom, right) = drawn("")
    (top_2, left_2), (bottom_2, right_2) = drawn("NG  0.5  a.png")
    assert top_2 < top and (bottom_2, right_2) == (bottom, right) and left_2 <= left
    assert drawn("NG  0.5  " + "long" * 99)[0][1] >= 300 * 0.25  # never wider than three quarters
    assert drawn("\u4ef6" * 99)[0][1] >= 300 * 0.25


# --- the page ---


def test_the_page_is_sorted_by_score_and_needs_no_other_host(
    tmp_path: Path, normal: Path, zsad: Zsad
) -> None:
    file, folder = tmp_path / "t.json", tmp_path / "page"
    spec = ["--method", toy.write(tmp_path), "--words", "nut"]
    calibrated(zsad, normal, file, *spec, *FAST)
    (normal / "=bad <b>.png").write_text("no image")
    answer = zsad("predict", normal, "--threshold", file, *spec[:2], *FAST, "--report", folder)
    assert answer.error is None and answer.code == 1, answer
    assert str(folder / "index.html") in answer.out
    with (folder / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [Path(row["image"]).name for row in rows]
    assert names == [f"{level:03}.png" for level in range(90, -10, -10)] + ["=bad <b>.png"]
    assert [row["verdict"] for row in rows] == ["NG"] * 2 + ["OK"] * 8 + [""]
    assert "not an image" in rows[-1]["error"] and rows[-1]["score"] == ""
    assert all(Path(row["overlay"]).is_file() for row in rows[:-1])
    html = (folder / "index.html").read_text()
    assert not re.findall(r"https?://", html) and "<b>.png" not in html and "=bad &lt;b&gt;.png" in html
    assert html.index("090.png") < html.index("080.png") < html.index("=bad")
    assert "2 NG, 8 OK" in html and "11, 1 of them could not be scored" in html
    for source in re.findall(r'(?:src|href)="([^"#]+)"', html):
        assert (folder / source).is_file(), source


def test_a_page_replaces_the_one_before_and_nothing_else(tmp_path: Path, zsad: Zsad) -> None:
    photo().save(tmp_path / "a.png")
    photo().save(tmp_path / "b.png")
    folder = tmp_path / "page"
    assert zsad("predict", tmp_path, *OPTIONS, "--report", folder).error is None
    again = zsad(
        "predict", tmp_path, *OPTIONS, "--report", folder
    )  # its pictures are no images of the user's
    assert again.error is None and again.out.count(".png") == 2
    assert zsad("predict", tmp_path / "a.png", *OPTIONS, "--report", folder).error is None
    assert len(list((folder / "images").glob("*.png"))) == 1
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    answer = zsad("predict", tmp_path / "a.png", *OPTIONS, "--report", tmp_path / "own")
    assert isinstance(answer.error, UsageError) and "is not a report" in str(answer.error)


def test_overlays_of_their_own_folder_are_linked(tmp_path: Path, zsad: Zsad) -> None:
    photo().save(tmp_path / "a b.png")
    words = ["--out", tmp_path / "overlays", "--report", tmp_path / "page"]
    assert zsad("predict", tmp_path / "a b.png", *OPTIONS, *words).error is None
    assert (tmp_path / "overlays" / "a b.png").is_file()
    assert 'href="../overlays/a%20b.png"' in (tmp_path / "page" / "index.html").read_text()
