"""A predictor in memory: every way to hand over an image, threads, thresholds, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import zsadbench
from tests.kit import tiny
from zsadbench.engine import encoder
from zsadbench.errors import DatasetError, UsageError, ZsadError
from zsadbench.views import Predictor, fit, predict, read_threshold, write_threshold

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"backbone": "tiny-l14", "weights": "random", "settings": {"size": 42}}


@pytest.fixture(autouse=True)
def cached_towers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)
    yield


def pixels(width: int = 60, height: int = 48) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) whose colours and directions all differ."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    found = np.stack([255 * x, 255 * y, 90 + 0 * x], axis=2).astype(np.uint8)
    found[: height // 3, : width // 4] = 255
    return found


@pytest.fixture
def predictor() -> Predictor:
    return zsadbench.load_predictor("clip", words="nut", **SMALL)


def test_every_way_to_hand_over_an_image_is_the_same(tmp_path: Path, predictor: Predictor) -> None:
    array = pixels()
    Image.fromarray(array).save(tmp_path / "a.png")
    (listed,), _ = predict(predictor, [tmp_path / "a.png"], quiet=True)
    expected = predictor(tmp_path / "a.png")
    assert expected.score == listed.score and expected.decision is None
    assert expected.map.shape == (48, 60) and expected.map.dtype == np.float32
    assert (float(expected.map.min()), float(expected.map.max())) != (0, 0)
    ways: list[Any] = [
        str(tmp_path / "a.png"),
        Image.open(tmp_path / "a.png"),
        array,
        np.asfortranarray(array),
    ]
    for way in ways:
        found = predictor(way)
        assert found.score == expected.score
        np.testing.assert_array_equal(found.map, expected.map)
    turned = predictor(array[..., ::-1], order="bgr")
    assert turned.score == expected.score != predictor(array[..., ::-1]).score


def test_grey_is_grey(predictor: Predictor) -> None:
    grey = pixels()[..., 1]
    assert predictor(grey).score == predictor(np.stack([grey] * 3, axis=2)).score
    assert predictor(grey, order="bgr").score == predictor(grey).score


def test_a_photograph_is_turned_upright(tmp_path: Path, predictor: Predictor) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=exif)
    found = predictor(Image.open(tmp_path / "a.png"))
    assert found.map.shape == (60, 48) and found.score == predictor(tmp_path / "a.png").score


def test_a_list_gives_a_list(predictor: Predictor) -> None:
    images = [np.roll(pixels(), 7 * number, axis=1) for number in range(11)]
    together = predictor(images)
    assert [one.score for one in together] == [
        pytest.approx(predictor(image).score, rel=1e-3) for image in images
    ]
    assert len({one.score for one in together}) == 11
    assert predictor([]) == [] and len(predictor((images[0],))) == 1


def test_threads_share_a_predictor(predictor: Predictor) -> None:
    images = [np.roll(pixels(), 5 * number, axis=1) for number in range(8)]
    expected = [predictor(image) for image in images]
    fresh = zsadbench.load_predictor("clip", words="nut", **SMALL)  # its towers load in the race
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, one in zip(pool.map(fresh, images), expected, strict=True):
                assert found.score == one.score
                np.testing.assert_array_equal(found.map, one.map)
    towers = fresh.engine.encoder.clips.values()  # type: ignore[attr-defined]
    assert len({clip.vision.module for clip in towers}) == 1


def test_each_call_of_an_order_dependent_method_starts_afresh() -> None:
    options = SMALL | {"settings": {"size": 42, "augment": False}}
    predictor = zsadbench.load_predictor("anoclip+", words="nut", **options)
    first = predictor([pixels(), pixels(50, 40)])
    with ThreadPoolExecutor(3) as pool:
        again = list(pool.map(lambda _: predictor([pixels(), pixels(50, 40)]), range(2)))
    for calls in again:
        for one, other in zip(first, calls, strict=True):
            assert one.score == other.score
            np.testing.assert_array_equal(one.map, other.map)


def test_the_map_of_a_region_keeps_the_image_s_size() -> None:
    predictor = zsadbench.load_predictor("clip", words="nut", **SMALL, roi=(10, 8, 30, 30))
    found = predictor(pixels())
    assert found.map.shape == (48, 60)
    assert np.isfinite(found.map[8:38, 10:40]).all() and np.isnan(found.map).sum() == 48 * 60 - 900
    assert found.score == zsadbench.load_predictor("clip", "nut", **SMALL)(pixels()[8:38, 10:40]).score
    painted = np.asarray(found.overlay())
    np.testing.assert_array_equal(painted[:8], pixels()[:8])
    assert (painted[8:38, 10:40] != pixels()[8:38, 10:40]).any()


def test_tiles_are_those_of_predict(tmp_path: Path) -> None:
    Image.fromarray(pixels(120, 90)).save(tmp_path / "a.png")
    predictor = zsadbench.load_predictor("clip", words="nut", **SMALL, tile=50)
    (listed,), _ = predict(predictor, [tmp_path / "a.png"], quiet=True)
    assert predictor(pixels(120, 90)).score == listed.score
    assert predictor(pixels(120, 90)).map.shape == (90, 120)


def test_a_threshold_decides(tmp_path: Path, predictor: Predictor) -> None:
    images = [np.roll(pixels(), 9 * number, axis=0) for number in range(4)]
    scores = [predictor(image).score for image in images]
    limit = sorted(scores)[2]
    deciding = zsadbench.load_predictor("clip", words="nut", threshold=limit, **SMALL)
    assert [deciding(image).decision for image in images] == [
        "NG" if score > limit else "OK" for score in scores
    ]
    found = fit(scores, 0.25, predictor.identity(), predictor.engine.names(), force=True)
    write_threshold(tmp_path / "t.json", found, predictor.about())
    recalled = zsadbench.load_predictor("clip", threshold=tmp_path / "t.json")  # the words are in the file
    assert recalled.engine.words == "nut" and recalled(images[0]).score == scores[0]
    assert recalled(images[0]).decision == found.verdict(scores[0])
    assert (
        zsadbench.load_predictor("clip", threshold=read_threshold(tmp_path / "t.json")).limit == found.value
    )
    with pytest.raises(UsageError, match="words nut, now screw"):
        zsadbench.load_predictor("clip", words="screw", threshold=tmp_path / "t.json")
    with pytest.raises(UsageError, match="a threshold found on some"):
        zsadbench.load_predictor("musc", threshold=0.5, **SMALL)


def test_what_is_chosen_for_the_user_is_warned_of() -> None:
    with pytest.warns(UserWarning, match='so the prompts say "object"; name what is seen') as told:
        zsadbench.load_predictor("clip", **SMALL)
    assert told[0].filename == __file__


def test_an_overlay_is_a_picture_of_the_image_s_size(predictor: Predictor) -> None:
    found = predictor(pixels(200, 160))
    picture = found.overlay()
    assert picture.size == (200, 160) and picture.mode == "RGB"
    pinned = found.overlay((0.0, 1e9))
    assert (np.asarray(pinned) != np.asarray(picture)).any()
    for scale in ((1.0, 0.0), (0.5, 0.5), (float("nan"), 1.0)):
        with pytest.raises(UsageError, match="give the lowest and the highest map value"):
            found.overlay(scale)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (pixels().astype(np.float32) / 255, "image 1: an array of float32 has no defined range"),
        (pixels().astype(np.uint16), "image 1: an array of uint16"),
        (
            np.ma.masked_less(pixels(), 9),
            "image 1: methods see every pixel of a masked array; give its `data`",
        ),
        (np.zeros((0, 5, 3), np.uint8), r"image 1: an array of shape \(0, 5, 3\) is no image"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\) is no image; give \(H, W, 3\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"shape \(2, 4, 5, 3\) is no image"),
        (Image.new("RGB", (0, 4)), "image 1: an image of 0 x 4 pixels"),
        (Image.new("F", (4, 4)), "32-bit values"),
        (None, "image 1: NoneType is no image; give a path"),
        ("gone.png", "gone.png: no such file"),
    ],
)
def test_what_is_no_image_is_refused(predictor: Predictor, image: Any, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        predictor(image)
    if not isinstance(image, str):
        with pytest.raises(DatasetError, match=says.replace("image 1", "image 2")):
            predictor([pixels(), image])


@pytest.mark.parametrize("order", ["rbg", "BGR", None])
def test_an_order_of_colours_that_is_not_known(predictor: Predictor, order: Any) -> None:
    with pytest.raises(UsageError, match=f"order '{order}' of colours is not known"):
        predictor(pixels(), order=order)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"words": ["nut"]}, r"words \['nut'\]: give one text"),
        ({"settings": "size=42"}, "give names and values, as in {'size': 336}"),
        ({"settings": {"sise": 42}}, "'sise' is no parameter of this method"),
        ({"weights": ""}, "weights is empty: give it a value"),
        ({"backbone": Path("gone.json")}, "gone.json"),
        ({"tile": 50.0}, r"--tile 50\.0: give a whole number of 1 or more"),
        ({"batch_size": "4"}, "--batch-size '4': give a whole number of 1 or more"),
        ({"workers": 0}, "--workers 0: give a whole number of 1 or more"),
        ({"tile": 20, "overlap": "0.2"}, "--overlap '0.2': give the part of a tile"),
        ({"roi": (1.5, 2, 3, 4)}, "give four whole numbers"),
        ({"roi": 5}, "--roi 5: give four whole numbers"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"dtype": np.float32}, "unknown dtype"),
        ({"threshold": float("nan")}, "threshold nan: give a finite number"),
        ({"threshold": True}, "threshold True: give a finite number"),
        ({"threshold": [0.5]}, r"threshold \[0.5\]: give a finite number, or a file of zsad calibrate"),
        ({"threshold": "0.5"}, "0.5: no such threshold file"),
    ],
)
def test_an_option_that_is_none(option: dict[str, Any], says: str) -> None:
    with pytest.raises(ZsadError, match=says):
        zsadbench.load_predictor("clip", **{"words": "nut", **SMALL, **option})


def test_the_three_lines_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?load_predictor.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len([line for line in block.splitlines() if line]) == 4  # the import and three lines
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels()).save("photo.jpg")
    found: dict[str, Any] = {}
    small = 'backbone="tiny-b16p", weights="random", settings={"size": 80}'
    exec(block.replace('words="metal nut"', f'words="metal nut", {small}'), found)
    assert isinstance(found["r"].score, float) and found["r"].map.shape == (48, 60)
    assert Image.open("overlay.png").size == (60, 48)
