"""Predictions of loose images: every kind of file, tiles, regions, thresholds, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from tests.kit import tiny, toy
from tests.kit.factory import make_folder
from zsadbench.cli import predict as verbs
from zsadbench.engine import encoder
from zsadbench.errors import DatasetError, MethodError, RecordError, UsageError
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute
from zsadbench.text import terminal
from zsadbench.views.calibrate import (
    Threshold,
    check_fits,
    differences,
    fit,
    read_threshold,
    upper_rate,
    write_threshold,
)
from zsadbench.views.overlay import OPACITY, Scale, palette
from zsadbench.views.predict import find_images, overlay_names, parse_scale, predict
from zsadbench.views.predictor import Predictor
from zsadbench.views.setup import Prediction, Setup

SMALL = {"size": "42"}
BASE = Setup("clip", "nut", "tiny-l14", "random", settings=SMALL, workers=1)
OPTIONS = ["--method", "clip", "--backbone", "tiny-l14", "--weights", "random", "--set", "size=42"]
OPTIONS += ["--words", "nut", "--workers", "1", "--quiet"]


@pytest.fixture(autouse=True)
def cached_towers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Answer:
    """What a command printed, its exit code, and the error it raised."""

    code: int
    out: str
    err: str
    error: BaseException | None


Zsad = Callable[..., Answer]


@pytest.fixture
def zsad() -> Zsad:
    app = typer.Typer()
    verbs.register(app)

    def call(*words: object) -> Answer:
        done = CliRunner().invoke(app, [str(word) for word in words])
        error = None if isinstance(done.exception, SystemExit) else done.exception
        return Answer(done.exit_code, done.stdout, done.stderr, error)

    return call


def photo(width: int = 60, height: int = 48) -> Image.Image:
    """Return a picture with structure in every direction and colour, so that a turned one differs."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([255 * x, 255 * y, 255 * (x * y)], axis=2)
    pixels[: height // 3, : width // 4] = 255
    return Image.fromarray(pixels.astype(np.uint8))


def score(*paths: Path, setup: Setup = BASE) -> list[Prediction]:
    return predict(Predictor(setup), paths, quiet=True)[0]


def one(path: Path, setup: Setup = BASE) -> float:
    (found,) = score(path, setup=setup)
    assert found.error is None and found.score is not None
    return found.score


def same(value: Any) -> Any:
    """Equal but for rounding; plain CLIP's scores span orders of magnitude, so the tolerance is relative."""
    return pytest.approx(value, rel=1e-3, abs=0)


def pixels(path: Path | None) -> NDArray[np.uint8]:
    assert path is not None
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- every kind of file ---


def grey(path: Path) -> None:
    photo().convert("L").save(path)


def palette_of_colours(path: Path) -> None:
    photo().quantize(64).save(path)


def rgba(path: Path) -> None:
    image = photo().convert("RGBA")
    image.putalpha(7)
    image.save(path)


def sixteen_bit(path: Path) -> None:
    Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257).save(path)


def cmyk(path: Path) -> None:
    photo().convert("CMYK").save(path.with_suffix(".tif"))
    path.with_suffix(".tif").replace(path)


@pytest.mark.parametrize(
    ("write", "as_plain", "note"),
    [
        (grey, lambda image: image.convert("L").convert("RGB"), ""),
        (palette_of_colours, lambda image: image.quantize(64).convert("RGB"), ""),
        (rgba, lambda image: image, ""),
        (
            sixteen_bit,
            lambda image: image.convert("L").convert("RGB"),
            "16-bit values scaled by 1/257 to 8 bit",
        ),
        (
            cmyk,
            lambda image: image.convert("CMYK").convert("RGB"),
            "CMYK converted to RGB without a colour profile",
        ),
    ],
)
def test_every_mode_is_seen_as_its_colours(
    tmp_path: Path, write: Callable[[Path], None], as_plain: Callable[[Image.Image], Image.Image], note: str
) -> None:
    write(tmp_path / "odd.png")
    as_plain(photo()).save(tmp_path / "plain.png")
    predictor = Predictor(BASE)
    images = [tmp_path / "odd.png", tmp_path / "plain.png"]
    (odd, plain), _ = predict(predictor, images, out=tmp_path / "out", quiet=True)
    assert odd.score == same(plain.score)
    assert [text for text in odd.notes if text not in plain.notes] == ([note] if note else [])
    np.testing.assert_allclose(pixels(odd.overlay), pixels(plain.overlay), atol=1)
    assert pixels(odd.overlay).shape == (48, 60, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    """The file holds turned pixels and says how to hold it; the prediction is that of the upright picture."""
    upright = photo()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    images = [tmp_path / "turned.png", tmp_path / "upright.png"]
    (turned, plain), _ = predict(Predictor(BASE), images, out=tmp_path / "out", quiet=True)
    assert turned.size == plain.size == (48, 60)
    assert turned.score == same(plain.score)
    np.testing.assert_allclose(pixels(turned.overlay), pixels(plain.overlay), atol=1)
    assert Image.open(tmp_path / "turned.png").size == stored.size
    with Image.open(turned.overlay or "") as picture:
        assert not picture.getexif().get(0x0112)  # or a viewer would turn it once more


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "dot.png")
    Image.new("RGB", (50, 50), "red").save(tmp_path / "flat.png")
    images = [tmp_path / "dot.png", tmp_path / "flat.png"]
    (dot, flat), _ = predict(Predictor(BASE), images, out=tmp_path / "out", quiet=True)
    assert dot.score == same(flat.score)
    assert pixels(dot.overlay).shape == (1, 1, 3) and dot.size == (1, 1)
    assert dot.notes == ("too small for a scale bar in its overlay",)


def test_twenty_megapixels_in_tiles(tmp_path: Path) -> None:
    big = np.zeros((3648, 5472, 3), np.uint8)
    big[::64] = 90
    Image.fromarray(big).save(tmp_path / "big.png", compress_level=1)
    setup = replace(BASE, tile=1824, overlap=0.0)
    (found,), _ = predict(Predictor(setup), [tmp_path / "big.png"], out=tmp_path / "out", quiet=True)
    assert found.size == (3648, 5472) and found.tiles is not None and len(found.tiles.boxes) == 6
    with Image.open(found.overlay or "") as picture:
        assert picture.size == (5472, 3648)


@pytest.mark.parametrize("name", ["größe 件.png", "نمونه.png", "a b'\"&.png", "new\nline.png"])
def test_names_of_any_script(tmp_path: Path, zsad: Zsad, name: str) -> None:
    photo().save(tmp_path / name)
    answer = zsad("predict", tmp_path, *OPTIONS, "--out", tmp_path / "out", "--json", tmp_path / "r.json")
    assert answer.code == 0 and answer.error is None
    assert terminal(name) in answer.out and "\n" not in terminal(name)
    assert (tmp_path / "out" / name).is_file()
    (image,) = json.loads((tmp_path / "r.json").read_text())["images"]
    assert image["path"] == terminal(tmp_path / name)


def test_a_terminal_without_the_letters_gets_escapes(
    tmp_path: Path,
) -> None:
    photo().save(tmp_path / "件.png")
    app = typer.Typer()
    verbs.register(app)
    words = ["predict", str(tmp_path), *OPTIONS]
    answer = CliRunner(charset="ascii").invoke(app, words)
    assert answer.exception is None and "\\u4ef6.png" in answer.stdout


def test_a_corrupt_file_is_reported_and_the_others_are_done(tmp_path: Path, zsad: Zsad) -> None:
    photo().save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:400])
    (tmp_path / "c.png").write_text("no image")
    (tmp_path / "d.png").touch()
    photo().save(tmp_path / "e.png")
    answer = zsad("predict", tmp_path, *OPTIONS, "--out", tmp_path / "out", "--json", tmp_path / "r.json")
    assert answer.code == 3
    assert (
        "3 of 5 images could not be scored:" in answer.err and f"{tmp_path / 'c.png'}: not an" in answer.err
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "e.png"]
    images = json.loads((tmp_path / "r.json").read_text())["images"]
    assert [image["error"] is None for image in images] == [True, False, False, False, True]
    assert images[2]["score"] is None and images[2]["map_min"] is None and images[2]["height"] is None
    assert images[0]["score"] == same(one(tmp_path / "a.jpg"))


# --- what a score is ---


@pytest.mark.parametrize("method", ["clip", "winclip"])
def test_scores_are_those_of_a_run(tmp_path: Path, method: str) -> None:
    folder = make_folder(tmp_path / "parts", categories=("nut",), each=2)
    request = Request(
        backbone="tiny-l14", weights="random", settings=SMALL, out=tmp_path / "results", quiet=True
    )
    (record,) = execute([method], [str(folder)], request).records
    found = score(*(folder / row.key for row in record.images()), setup=replace(BASE, method=method))
    for row, prediction in zip(record.images(), found, strict=True):
        assert prediction.score == same(row.image_score)
        assert prediction.extremes == same((row.map_min, row.map_max))


@pytest.mark.parametrize("method", ["clip", "clip-ad"])
def test_a_score_does_not_depend_on_the_other_images(tmp_path: Path, method: str) -> None:
    for number in range(4):
        photo(60 - 5 * number, 40 + 9 * number).rotate(30 * number).save(tmp_path / f"{number}.png")
    images = find_images([tmp_path])
    setup = replace(BASE, method=method)
    together = score(*images, setup=setup)
    assert len({found.score for found in together}) == 4  # min-max over one image would be 0 for each
    for path, found in zip(images, together, strict=True):
        assert one(path, setup) == same(found.score)


MUSC = replace(BASE, method="musc")


def photos(folder: Path, count: int) -> list[Path]:
    for number in range(count):
        photo(60 - 5 * number, 40 + 9 * number).rotate(30 * number).save(folder / f"{number}.png")
    return find_images([folder])


def test_images_of_a_call_are_related(tmp_path: Path) -> None:
    images = photos(tmp_path, 6)
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:-30])
    found = score(*images, broken, setup=MUSC)
    assert [one.error is None for one in found] == [True] * 6 + [False]
    assert found[-1].path == broken
    for prediction in found[:-1]:  # the inductive score is the map's maximum
        assert prediction.score == pytest.approx(prediction.extremes[1]) and prediction.extremes[1] > 0
    fewer = score(*images[:5], setup=MUSC)
    assert any(one.score != other.score for one, other in zip(fewer, found, strict=False))
    assert [one.score for one in score(*images[::-1], setup=MUSC)] == [
        pytest.approx(one.score, abs=1e-5) for one in found[5::-1]
    ]


def test_a_prediction_relates_as_a_run_does(tmp_path: Path) -> None:
    parts = make_folder(tmp_path / "parts", categories=("bolt",))
    request = Request(
        backbone="tiny-l14", weights="random", settings=SMALL, out=tmp_path / "r", workers=1, quiet=True
    )
    (record,) = execute(["musc"], [str(parts)], request).records
    rows = {row.key: row.map_max for row in record.images()}
    found = score(*find_images([parts / "bolt" / "test"]), setup=MUSC)
    assert {f"bolt/test/{one.path.parent.name}/{one.path.name}": one.score for one in found} == {
        key: pytest.approx(value, rel=1e-5) for key, value in rows.items()
    }


def test_an_overlay_and_a_region_of_related_images(tmp_path: Path, zsad: Zsad) -> None:
    (tmp_path / "in").mkdir()
    photos(tmp_path / "in", 5)
    words = ["--method", "musc", *OPTIONS[2:], "--roi", "2,3,20,24"]
    answer = zsad("predict", tmp_path / "in", *words, "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    assert "scores are of the region by comparison with all others of this call" in answer.out
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_what_cannot_be_related_is_refused(tmp_path: Path, zsad: Zsad) -> None:
    images = photos(tmp_path, 4)
    with pytest.raises(MethodError, match="needs at least 5; here are 4 that can be read"):
        score(*images, setup=MUSC)
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:-30])
    with pytest.raises(MethodError, match="needs at least 5; here are 4 that can be read"):
        score(*images, broken, setup=MUSC)
    with pytest.raises(UsageError, match="would compare the tiles of an image with each other"):
        Predictor(replace(MUSC, tile=42))
    words = ["--method", "musc", *OPTIONS[2:], "--force", "--out", tmp_path / "t.json"]
    answer = zsad("calibrate", "--normal", tmp_path, *words)
    assert isinstance(answer.error, UsageError) and "a threshold found on some" in str(answer.error)


def test_an_order_dependent_method_works_through_a_call(tmp_path: Path) -> None:
    for number in range(2):
        photo(40 + number, 40).save(tmp_path / f"{number}.png")
    setup = replace(BASE, method="anoclip+", settings=SMALL | {"augment": "false"})
    found = score(*find_images([tmp_path]), setup=setup)
    assert [prediction.error for prediction in found] == [None, None]
    assert found[0].score == same(one(tmp_path / "0.png", setup))


def test_a_transductive_method_without_an_inductive_rule_is_refused(tmp_path: Path) -> None:
    spec = toy.write(tmp_path, "    backbone: B", "    transductive: ClassVar[bool] = True\n    backbone: B")
    with pytest.raises(MethodError, match="has no inductive rule"):
        Predictor(replace(BASE, method=spec, settings={}))


def test_a_trained_method_says_how_to_come_by_a_checkpoint() -> None:
    with pytest.raises(MethodError, match="needs a checkpoint: pass one with --checkpoint FILE"):
        Predictor(replace(BASE, method="april-gan", settings={}))


def test_without_words_an_object_is_seen(tmp_path: Path, zsad: Zsad) -> None:
    photo().save(tmp_path / "a.png")
    options = [word for word in OPTIONS if word not in ("--words", "nut")]
    answer = zsad("predict", tmp_path / "a.png", *options)
    assert answer.code == 0 and 'the prompts say "object"' in answer.err
    assert 'words "object"' in answer.out and "inductive, from the image alone" in answer.out
    assert one(tmp_path / "a.png", replace(BASE, words="  ")) != one(tmp_path / "a.png")
    assert one(tmp_path / "a.png", replace(BASE, words="object")) == one(
        tmp_path / "a.png", replace(BASE, words="")
    )


def test_a_frame_of_its_own_shape_is_stretched_back(tmp_path: Path) -> None:
    photo(60, 48).save(tmp_path / "a.png")
    photo(150, 30).save(tmp_path / "long.png")
    setup = replace(BASE, settings=SMALL | {"resize": "shortest", "tiles": "ends", "augment": "false"})
    setup = replace(setup, method="anoclip")
    (a, long), _ = predict(Predictor(setup), find_images([tmp_path]), out=tmp_path / "out", quiet=True)
    assert a.error is None and pixels(a.overlay).shape == (48, 60, 3)
    assert long.error is not None and long.error.startswith("150 x 30 pixels are longer than 2:1")


# --- tiles and regions ---


def toy_setup(folder: Path, **changes: Any) -> Setup:
    """Return a method whose score and map are the brightness of patches."""
    return replace(BASE, method=toy.write(folder), backbone=None, weights=None, settings={}, **changes)


def spotted(path: Path, side: int = 400) -> None:
    dark = np.zeros((side, side, 3), np.uint8)
    dark[300:306, 200:206] = 255
    Image.fromarray(dark).save(path)


def test_a_tiled_score_is_the_maximum_over_tiles(tmp_path: Path) -> None:
    spotted(tmp_path / "a.png")
    setup = toy_setup(tmp_path, tile=100, overlap=0.25)
    (found,) = score(tmp_path / "a.png", setup=setup)
    assert found.tiles is not None and len(found.tiles.boxes) == 25
    image = Image.open(tmp_path / "a.png")
    alone = []
    for number, box in enumerate(found.tiles.boxes):
        image.crop(box).save(tmp_path / f"tile{number}.png")
        alone.append(one(tmp_path / f"tile{number}.png", replace(setup, tile=None)))
    assert found.score == pytest.approx(max(alone)) and min(alone) < max(alone)
    assert max(alone) > one(tmp_path / "a.png", replace(setup, tile=None))  # the spot is a larger part
    assert "maximum over tiles" in Predictor(setup).rule


def test_the_map_of_tiles_shows_the_spot_in_its_place(tmp_path: Path) -> None:
    spotted(tmp_path / "a.png")
    predictor = Predictor(toy_setup(tmp_path, tile=100, overlap=0.25))
    ((prediction, part),) = predictor.observe([tmp_path / "a.png"])
    values = predictor.map_of(prediction, part)
    assert values.shape == (400, 400)
    y, x = np.unravel_index(values.argmax(), values.shape)
    assert abs(int(y) - 303) < 12 and abs(int(x) - 203) < 12
    assert max(np.abs(np.diff(values, axis=axis)).max() for axis in (0, 1)) < 0.15 * np.ptp(values)


def test_batches_of_tiles_change_nothing(tmp_path: Path) -> None:
    spotted(tmp_path / "a.png")
    setups = [replace(BASE, tile=150, batch_size=size) for size in (1, 4)]
    a, b = (one(tmp_path / "a.png", setup) for setup in setups)
    assert a == same(b)


def test_an_image_smaller_than_a_tile_is_seen_whole(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    assert one(tmp_path / "a.png", replace(BASE, tile=518)) == same(one(tmp_path / "a.png"))


def test_only_the_region_is_scored_and_coloured(tmp_path: Path) -> None:
    photo(200, 160).save(tmp_path / "a.png")
    photo(200, 160).crop((50, 40, 150, 120)).save(tmp_path / "cut.png")
    setup = replace(BASE, roi=(50, 40, 150, 120))
    (found,), _ = predict(Predictor(setup), [tmp_path / "a.png"], out=tmp_path / "out", quiet=True)
    assert found.score == same(one(tmp_path / "cut.png"))
    changed = (pixels(found.overlay) != np.asarray(photo(200, 160))).any(axis=2)
    assert changed[40:120, 50:150].mean() > 0.9
    changed[40:120, 50:150] = False
    assert not changed.any()


def test_a_region_may_be_cut_in_tiles(tmp_path: Path) -> None:
    spotted(tmp_path / "a.png")
    setup = toy_setup(tmp_path, tile=50, roi=(150, 250, 270, 330))
    (found,) = score(tmp_path / "a.png", setup=setup)
    assert found.tiles is not None and found.tiles.boxes[0] == (150, 250, 200, 300)
    assert found.tiles.boxes[-1] == (220, 280, 270, 330)
    assert "each tile of the region" in Predictor(setup).rule


def test_a_region_outside_one_image_fails_that_image_alone(tmp_path: Path, zsad: Zsad) -> None:
    photo(60, 48).save(tmp_path / "a.png")
    photo(200, 160).save(tmp_path / "b.png")
    answer = zsad("predict", tmp_path, *OPTIONS, "--roi", "50,40,100,80")
    assert answer.code == 3
    assert "a.png: the region 50,40,100,80 leaves the image of 60 x 48 pixels" in answer.err


# --- overlays ---


def test_all_overlays_of_a_call_share_one_scale(tmp_path: Path) -> None:
    for level in (10, 120, 240):
        Image.new("RGB", (30, 30), (level,) * 3).save(tmp_path / f"{level:03}.png")
    predictor = Predictor(toy_setup(tmp_path))
    images = find_images([tmp_path])

    def colours(scale: Scale | None) -> tuple[list[NDArray[np.float64]], Scale]:
        found, used = predict(predictor, images, out=tmp_path / "out", scale=scale, quiet=True)
        return [pixels(prediction.overlay)[15, 15].astype(float) for prediction in found], used

    def expected(level: int, place: int) -> NDArray[np.float64]:
        return np.asarray((1 - OPACITY) * level + OPACITY * palette()[place], np.float64)

    (dark, middle, bright), used = colours(None)
    np.testing.assert_allclose(dark, expected(10, 0), atol=1)
    np.testing.assert_allclose(bright, expected(240, 255), atol=1)
    np.testing.assert_allclose(middle, expected(120, round(255 * 110 / 230)), atol=2)
    (dark, _, bright), pinned = colours((used[0], 2 * used[1] - used[0]))
    np.testing.assert_allclose(bright, expected(240, 128), atol=2)
    assert pinned[1] - pinned[0] == pytest.approx(2 * (used[1] - used[0]))


def test_names_of_overlays_never_clash() -> None:
    paths = [Path("x/a.png"), Path("x/a.jpg"), Path("y/A.jpg"), Path("y/b.png"), Path("z/a.jpg")]
    assert overlay_names(paths) == ["a.png", "a.jpg.png", "A.jpg-2.png", "b.png", "a.jpg-3.png"]


def test_overlays_are_kept_away_from_the_images(tmp_path: Path, zsad: Zsad) -> None:
    photo().save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    answer = zsad("predict", tmp_path, *OPTIONS, "--out", tmp_path)
    assert isinstance(answer.error, UsageError) and "name another" in str(answer.error)
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_image(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    with pytest.raises(RecordError, match=r"a\.png.out: the folder cannot be made \(Not a directory\)"):
        predict(Predictor(BASE), [tmp_path / "gone.png"], out=tmp_path / "a.png" / "out", quiet=True)


# --- mistakes ---


def test_paths_that_hold_no_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="name image files or folders"):
        find_images([])
    with pytest.raises(DatasetError, match="no image in this folder"):
        find_images([tmp_path / "empty"])
    with pytest.raises(DatasetError, match="no such file or folder"):
        find_images([tmp_path / "gone.png"])


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DatasetError, match=r"cannot be read \(Permission denied\); check its permissions"):
        find_images([tmp_path])


def test_an_image_named_twice_is_scored_once(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    assert find_images([tmp_path, tmp_path / "a.png"]) == [tmp_path / "a.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": 0}, "--tile 0"),
        ({"overlap": 1.0}, "--overlap 1.0: give the part of a tile"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8'"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"method": "anocilp"}, "Did you mean 'anoclip'"),
        ({"settings": {"sizes": "4"}}, "'sizes' is no parameter"),
    ],
)
def test_options_that_cannot_be_used_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Predictor(replace(BASE, **changes))


@pytest.mark.parametrize("text", ["1", "2,1", "a,b", "0,nan", "1,1"])
def test_a_scale_is_two_rising_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="--scale"):
        parse_scale(text)
    assert parse_scale("-0.5, 2") == (-0.5, 2)


def test_the_verbs_ask_for_what_is_missing(tmp_path: Path, zsad: Zsad) -> None:
    photo().save(tmp_path / "a.png")
    assert "name a method with --method" in str(zsad("predict", tmp_path).error)
    assert "name a folder of normal images" in str(zsad("calibrate", "--method", "clip").error)


# --- thresholds ---


def test_the_threshold_is_the_exact_quantile() -> None:
    scores = [float(n) for n in range(100)]
    assert fit(scores, 0.01, {}).value == 98.5 and fit(scores, 0.05, {}).value == 94.5
    assert fit(scores, 0.29, {}).value == 70.5  # 0.29 * 100 is 28.999... in binary
    found = fit(scores[::-1], 0.1, {})
    assert sum(found.verdict(score) == "NG" for score in scores) == 10 == round(found.reached * 100)
    assert found.smallest_fpr == 0.01 and found.verdict(None) is None


@pytest.mark.parametrize("fpr", [0.02, 0.1, 0.25])
def test_ties_never_raise_the_rate(fpr: float) -> None:
    scores = [0.1] * 60 + [0.7] * 30 + [0.9] * 10
    found = fit(scores, fpr, {})
    assert found.reached <= fpr
    assert found.value == pytest.approx({0.02: 0.9 + 1e-3 * 0.8, 0.1: 0.8, 0.25: 0.8}[fpr])


def test_too_few_images_for_the_rate_are_refused() -> None:
    scores = [float(n) for n in range(99)]
    with pytest.raises(UsageError, match=r"the smallest they can is 0.0101; give at least 100 images"):
        fit(scores, 0.01, {})
    forced = fit(scores, 0.01, {}, force=True)
    assert forced.value == pytest.approx(98 + 98e-3) and forced.reached == 0
    assert fit([*scores, 99.0], 0.01, {}).value == 98.5
    with pytest.raises(UsageError, match="lies from 0 to below 1"):
        fit(scores, 1.0, {})
    with pytest.raises(UsageError, match="no normal image could be scored"):
        fit([], 0.5, {}, force=True)


def test_the_bound_of_the_rate_is_clopper_and_pearsons() -> None:
    """No false alarm among n leaves 1 - 0.05^(1/n): the rule of three."""
    assert upper_rate(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert upper_rate(5, 5) == 1
    assert upper_rate(1, 100) == pytest.approx(0.0466, abs=1e-4)


@pytest.fixture
def normal(tmp_path: Path) -> Path:
    folder = tmp_path / "normal"
    folder.mkdir()
    for level in range(0, 100, 10):
        Image.new("RGB", (20, 20), (level,) * 3).save(folder / f"{level:03}.png")
    return folder


def test_calibrate_then_predict(tmp_path: Path, normal: Path, zsad: Zsad) -> None:
    method = ["--method", toy.write(tmp_path), "--words", "nut", "--quiet"]
    file = tmp_path / "t.json"
    answer = zsad("calibrate", "--normal", normal, "--fpr", "0.1", *method, "--out", file)
    assert answer.error is None and answer.code == 0, answer
    reached = "10.00% of 10 normal images were (10.00% allowed)"
    assert reached in answer.out and "the smallest rate so many images can tell is 10.00%" in answer.out
    content = json.loads(file.read_text())
    assert content["rule"] == "NG when score > value" and content["identity"]["words"] == "nut"
    scores = [one(normal / f"{level:03}.png", toy_setup(tmp_path)) for level in (80, 90)]
    assert content["value"] == sum(scores) / 2

    answer = zsad("predict", normal, *method, "--threshold", file, "--json", tmp_path / "r.json")
    assert answer.code == 1
    verdicts = [image["verdict"] for image in json.loads((tmp_path / "r.json").read_text())["images"]]
    assert verdicts == ["OK"] * 9 + ["NG"] and reached in answer.out
    assert answer.out.count("  OK  ") == 9 and answer.out.count("  NG  ") == 1
    assert zsad("predict", normal / "050.png", *method, "--threshold", file).code == 0


def test_ng_counts_more_than_a_failed_image(tmp_path: Path, normal: Path, zsad: Zsad) -> None:
    method = ["--method", toy.write(tmp_path), "--words", "nut", "--quiet"]
    (normal / "broken.png").write_text("broken")
    file = tmp_path / "t.json"
    answer = zsad("calibrate", "--normal", normal, "--fpr", "0.1", *method, "--out", file)
    assert answer.code == 3 and "1 of 11 images could not be scored" in answer.err
    assert json.loads(file.read_text())["images"] == 10
    answer = zsad("predict", normal, *method, "--threshold", file)
    assert answer.code == 1 and "failed  -   " in answer.out
    bad = normal / "broken.png"
    assert zsad("predict", bad, normal / "000.png", *method, "--threshold", file).code == 3


def test_a_threshold_of_other_scores_is_refused(tmp_path: Path, normal: Path) -> None:
    predictor = Predictor(BASE)
    threshold = fit([0.1, 0.2], 0.5, predictor.identity())
    write_threshold(tmp_path / "t.json", threshold, {})
    threshold = read_threshold(tmp_path / "t.json")
    check_fits(threshold, Predictor(replace(BASE, device="cpu", batch_size=1)), tmp_path / "t.json")
    changed: list[tuple[dict[str, Any], str]] = [
        ({"words": "bolt"}, "words nut, now bolt"),
        ({"settings": {"size": "28"}}, "parameters.preprocess.size 42, now 28"),
        ({"weights": "random:1"}, "parameters.backbone.weights random/tiny-l14/0, now random/tiny-l14/1"),
        ({"method": "winclip"}, "method clip, now winclip"),
        ({"tile": 64}, "tile none, now 64"),
        ({"roi": (0, 0, 9, 9)}, r"roi none, now \[0, 0, 9, 9\]"),
        ({"dtype": "bf16"}, "dtype fp32, now bf16"),
    ]
    for changes, difference in changed:
        with pytest.raises(UsageError, match=difference):
            check_fits(threshold, Predictor(replace(BASE, **changes)), tmp_path / "t.json")


def test_differences_name_every_field() -> None:
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2}}) == []
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 3, "b": {"d": ""}}) == [
        "a 1, now 3",
        "b.c 2, now none",
        "b.d none, now empty",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such threshold file"),
        ("{", "cannot be read"),
        ("[" * 10_000, "cannot be read"),
        ("[]", "no threshold of zsad calibrate"),
        ('{"kind": "zsad threshold", "schema": 9}', "schema 9, this version reads 1"),
        ('{"kind": "zsad threshold", "schema": 1, "value": 1}', "incomplete or damaged"),
    ],
)
def test_a_file_that_is_no_threshold_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "t.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecordError, match=message):
        read_threshold(path)


def test_a_threshold_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    write_threshold(tmp_path / "t.json", Threshold(float("nan"), 0.1, 0.0, 0.1, 10, {}), {})
    with pytest.raises(RecordError, match="no finite threshold"):
        read_threshold(tmp_path / "t.json")


# --- the machine-readable answer ---


def test_json_alone_goes_to_the_output(tmp_path: Path, zsad: Zsad) -> None:
    photo().save(tmp_path / "a.png")
    answer = zsad("predict", tmp_path / "a.png", *OPTIONS, "--tile", "40", "--json", "-")
    content = json.loads(answer.out)
    assert content["method"] == "clip" and content["words"] == "nut" and content["image_score"] == "inductive"
    assert content["tile"] == 40 and content["overlap"] == 0.25 and content["environment"]["dtype"] == "fp32"
    (image,) = content["images"]
    assert image["tiles"] == 4 and image["width"] == 60 and image["overlay"] is None
    assert content["scale"] == [image["map_min"], image["map_max"]]
