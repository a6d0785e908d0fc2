"""Bad and odd image files: what must be read, what must be refused, and what the user is told."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from zsadbench.data.templates import SUFFIXES, UNREAD
from zsadbench.errors import DatasetError
from zsadbench.images.decoding import decode, looks_like_image, probe
from zsadbench.images.loader import preprocess, stream
from zsadbench.images.masks import MaskInfo, inspect_mask, mask_at, read_mask
from zsadbench.images.scan import SAMPLED_MASKS, scan
from zsadbench.inputs import Preprocess
from zsadbench.samples import Problem, Sample

SPEC = Preprocess(size=28)


def picture(width: int = 40, height: int = 40, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, suffix: str = "png", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, suffix, **options)
    return stream.getvalue()


def sample(path: Path, mask: Path | None = None, key: str = "") -> Sample:
    return Sample(key or path.name, "thing", mask is not None, path, mask)


def put(folder: Path, name: str, content: bytes | Image.Image) -> Sample:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return sample(path)


def tile(one: Sample, spec: Preprocess = SPEC) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    (loaded,) = stream([one], [spec], workers=1)
    assert loaded.error is None
    return np.asarray(loaded.inputs[spec].tiles[0])


def declared(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims ``width`` x ``height`` grey pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


FRAMES = {"save_all": True, "append_images": [picture(seed=1), picture(seed=2)]}
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", r"the file is empty \(0 bytes\)"),
    "page.png": (b"<!DOCTYPE html><html>404</html>", "this is a page of HTML or XML, not the file"),
    "vector.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "truncated_header.png": (encoded(picture())[:20], "broken image header|not an image"),
    "bomb.png": (declared(14_000, 14_000), "14000 x 14000 pixels are more than the limit of 178956970"),
    "huge.png": (declared(2**31 - 1, 2**31 - 1), "more than the limit"),
    "int32.tif": (encoded(Image.new("I", (40, 40)), "tiff"), r"32-bit values \(PIL mode I\)"),
    "float.tif": (encoded(Image.new("F", (40, 40)), "tiff"), r"32-bit values \(PIL mode F\)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_header_damage_is_found_by_every_entrance(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    one = put(tmp_path, name, content)
    for entrance in (probe, decode):
        with pytest.raises(DatasetError, match=reason) as caught:
            entrance(one.image, name=name)
        assert str(caught.value).startswith(f"{name}: ") and "; " in str(caught.value)
    (loaded,) = stream([one], [SPEC])
    assert loaded.error is not None and loaded.error.startswith(f"{name}: ")
    (problem,) = scan([one])
    assert (problem.severity, problem.key) == ("error", name)
    assert problem.reason and problem.remedy and name not in problem.reason


@pytest.mark.parametrize("suffix", ["jpeg", "png"])
def test_truncated_data_is_named_and_never_filled_up(tmp_path: Path, suffix: str) -> None:
    whole = encoded(picture(200, 200), suffix)
    one = put(tmp_path, f"cut.{suffix}", whole[: len(whole) // 2])
    assert scan([one]) == []
    (problem,) = scan([one], full=True)
    assert problem.severity == "error" and problem.reason.startswith("broken image data")
    (loaded,) = stream([one], [SPEC])
    assert loaded.error is not None and loaded.error.startswith(f"cut.{suffix}: broken image data")


def test_absent_dangling_and_odd_paths(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    names = {
        "absent.png": "no such file",
        "link.png": "a link that points nowhere",
        "folder.png": "not a regular file",
        "pipe.png": "not a regular file",
    }
    problems = scan([sample(tmp_path / name) for name in names])
    assert {p.key: p.reason for p in problems} == names


def test_missing_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = put(tmp_path, "locked.png", picture())

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    (problem,) = scan([one])
    assert (problem.reason, problem.remedy) == ("cannot be read (Permission denied)", "allow reading it")
    (loaded,) = stream([one], [SPEC])
    assert loaded.error == "locked.png: cannot be read (Permission denied); allow reading it"


def test_a_file_that_disappears_in_mid_run_is_one_error(tmp_path: Path) -> None:
    samples = [put(tmp_path, f"{i}.png", picture(seed=i)) for i in range(9)]
    results = []
    for loaded in stream(samples, [SPEC], workers=1, ahead=2):
        if loaded.index == 0:
            samples[8].image.unlink()
        results.append(loaded)
    assert [r.index for r in results if r.error] == [8]


def test_every_problem_is_reported_at_once_in_the_order_of_the_samples(tmp_path: Path) -> None:
    samples = [put(tmp_path, name, content) for name, (content, _) in BROKEN.items()]
    samples.insert(3, put(tmp_path, "good.png", picture()))
    assert [p.key for p in scan(samples, full=True, workers=3)] == list(BROKEN)


def test_the_pixel_limit_can_be_raised_and_lowered(tmp_path: Path) -> None:
    one = put(tmp_path, "a.png", picture(40, 40))
    with pytest.raises(DatasetError, match="40 x 40 pixels are more than the limit of 1599"):
        decode(one.image, max_pixels=1599)
    assert decode(one.image, max_pixels=1600).size == (40, 40)
    big = put(tmp_path, "big.png", declared(14_000, 14_000))
    assert probe(big.image, max_pixels=200_000_000).width == 14_000


def test_a_large_image_is_read_without_a_warning(tmp_path: Path) -> None:
    one = put(tmp_path, "large.png", Image.new("1", (10_000, 9_001)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scan([one]) == []
        assert tile(one).shape == (28, 28, 3)


@pytest.mark.parametrize(("name", "suffix"), [("a.jpg", "png"), ("a.png", "jpeg"), ("A.PNG", "png")])
def test_content_decides_not_the_suffix(tmp_path: Path, name: str, suffix: str) -> None:
    one = put(tmp_path, name, encoded(picture(), suffix))
    assert probe(one.image).format == suffix.upper()
    assert scan([one], full=True) == []
    assert tile(one).std() > 0


def test_names_of_any_kind(tmp_path: Path) -> None:
    folder = tmp_path / "Prüfstück 異常"
    folder.mkdir()
    one = put(folder, "1 no — " + "x" * 200 + ".png", picture())
    assert scan([one], full=True) == [] and tile(one).shape == (28, 28, 3)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_becomes_three_equal_channels(tmp_path: Path, mode: str) -> None:
    pixels = tile(put(tmp_path, "grey.png", picture(mode=mode)))
    assert (pixels == pixels[..., :1]).all() and pixels.std() > 0


def test_alpha_is_dropped_before_the_resize_and_reported(tmp_path: Path) -> None:
    opaque = picture()
    translucent = opaque.copy()
    translucent.putalpha(picture(mode="L", seed=1))
    one = put(tmp_path, "rgba.png", translucent)
    np.testing.assert_array_equal(tile(one), tile(put(tmp_path, "rgb.png", opaque)))
    reference = Preprocess(28, rgb="after")
    assert not np.array_equal(tile(one, reference), tile(one))
    (problem,) = scan([one], full=True)
    assert problem.severity == "warning" and "1 of 1 images are partly transparent" in problem.reason
    full = opaque.copy()
    full.putalpha(255)
    assert scan([put(tmp_path, "full.png", full)], full=True) == []


def test_palette_is_converted_first_unless_the_reference_resizes_first(tmp_path: Path) -> None:
    paletted = picture(mode="P")
    one = put(tmp_path, "palette.png", paletted)
    np.testing.assert_array_equal(tile(one), tile(put(tmp_path, "rgb.png", paletted.convert("RGB"))))
    nearest = np.asarray(paletted.resize((28, 28), Image.Resampling.NEAREST).convert("RGB"))
    np.testing.assert_array_equal(tile(one, Preprocess(28, rgb="after")), nearest)


def test_cmyk_is_converted_and_reported(tmp_path: Path) -> None:
    ink = picture(mode="CMYK")
    one = put(tmp_path, "ink.jpg", encoded(ink, "jpeg", quality=95))
    assert probe(one.image).mode == "CMYK"
    (loaded,) = stream([one], [SPEC])
    assert loaded.notes == ("CMYK converted to RGB without a colour profile",)
    (problem,) = scan([one])
    assert "CMYK" in problem.reason and problem.key == ""
    plain = np.asarray(picture().resize((28, 28), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(tile(one).astype(int) - plain).mean() < 40  # not inverted: that would be beyond 80


def test_sixteen_bit_uses_its_whole_range(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    deep = put(tmp_path, "deep.png", Image.fromarray(values))
    flat = put(tmp_path, "flat.png", Image.fromarray(np.rint(values / 257).astype(np.uint8)))
    for spec in (SPEC, Preprocess(28, rgb="after")):
        np.testing.assert_array_equal(tile(deep, spec), tile(flat, spec))
    assert tile(deep).min() < 10 and tile(deep).max() > 245
    (loaded,) = stream([deep], [SPEC])
    assert loaded.notes == ("16-bit values scaled by 1/257 to 8 bit",)
    (problem,) = scan([deep])
    assert problem.severity == "warning" and "scaled by 1/257" in problem.reason


def test_portable_maps_of_16_bit_are_no_32_bit_files(tmp_path: Path) -> None:
    values = np.full((40, 40), 257 * 100, dtype=">u2")
    assert (tile(put(tmp_path, "deep.ppm", b"P5\n40 40\n65535\n" + values.tobytes())) == 100).all()


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp"])
def test_exif_rotation_only_where_asked(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (60, 40))
    image.paste((255, 255, 255), (0, 0, 30, 40))
    one = put(tmp_path, f"turned.{suffix}", encoded(image, suffix, exif=exif))
    stored, upright = decode(one.image), decode(one.image, orient=True)
    assert (stored.size, upright.size) == ((60, 40), (40, 60))
    assert np.asarray(upright)[5].mean() > 240 and np.asarray(upright)[55].mean() < 15
    (problem,) = scan([one])
    assert problem.severity == "warning" and "EXIF rotation" in problem.reason
    assert scan([one], orient=True) == []
    sizes = [next(iter(stream([one], [SPEC], orient=orient))).size for orient in (False, True)]
    assert sizes == [(40, 60), (60, 40)]


@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp", "png"])
def test_of_several_frames_the_first_is_read_and_reported(tmp_path: Path, suffix: str) -> None:
    lossless = {"lossless": True} if suffix == "webp" else {}
    one = put(tmp_path, f"many.{suffix}", encoded(picture(), suffix, **FRAMES, **lossless))
    first = put(tmp_path, f"one.{suffix}", encoded(picture(), suffix, **lossless))
    np.testing.assert_array_equal(tile(one), tile(first))
    (problem,) = scan([one, first])
    assert problem.severity == "warning"
    assert problem.reason.startswith("1 of 2 images hold several frames or pages, of which the first is used")
    assert f"(many.{suffix})" in problem.reason
    notes = [loaded.notes for loaded in stream([one, first], [SPEC])]
    assert notes == [("only the first of several frames",), ()]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_that_is_listed_is_decoded(tmp_path: Path, suffix: str) -> None:
    kind = Image.registered_extensions()[f".{suffix}"]
    mode = {"pgm": "L", "pbm": "1"}.get(suffix, "RGB")
    one = put(tmp_path, f"a.{suffix}", encoded(picture(mode=mode), kind))
    assert scan([one], full=True) == [] and tile(one).std() > 0


def test_suffixes_of_images_that_are_not_read_are_not_listed() -> None:
    assert not set(UNREAD) & set(SUFFIXES)


def test_content_tells_an_image_whatever_its_name(tmp_path: Path) -> None:
    put(tmp_path, "photo", encoded(picture()))
    put(tmp_path, "notes.txt", b"no image")
    assert [looks_like_image(tmp_path / name) for name in ("photo", "notes.txt", "gone")] == [
        True,
        False,
        False,
    ]


def test_the_first_picture_of_a_camera_file_is_read(tmp_path: Path) -> None:
    first, preview = picture(), picture(20, 20, seed=1)
    content = encoded(first, "mpo", save_all=True, append_images=[preview])
    one = put(tmp_path, "camera.jpg", content)
    assert probe(one.image).format == "MPO" and decode(one.image).size == (40, 40)
    assert scan([one], full=True) == []


@pytest.mark.parametrize("size", [(1, 1), (31, 200), (200, 31)])
def test_tiny_images_are_read_and_reported(tmp_path: Path, size: tuple[int, int]) -> None:
    one = put(tmp_path, "tiny.png", picture(*size))
    assert tile(one).shape == (28, 28, 3)
    (problem,) = scan([one])
    assert "1 of 1 images are below 32 pixels" in problem.reason and "tiny.png" in problem.reason
    assert scan([put(tmp_path, "fine.png", picture(32, 32))]) == []


def test_a_mode_without_rgb_form_is_named() -> None:
    for rgb in ("before", "after"):
        with pytest.raises(DatasetError, match=r"odd\.tif: PIL mode La has no RGB form"):
            preprocess(Image.new("La", (9, 9)), Preprocess(28, rgb=rgb), name="odd.tif")


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's own, about the cut tags
def test_a_header_that_breaks_the_parser_is_a_dataset_error(tmp_path: Path) -> None:
    whole = encoded(picture(), "tiff")
    for cut in range(4, 200, 7):
        one = put(tmp_path, "cut.tif", whole[:cut])
        assert len([p for p in scan([one], full=True) if p.severity == "error"]) == 1


# ------------------------------------------------------------------ masks


def anomalous(folder: Path, stem: str, mask: Image.Image | bytes, size: tuple[int, int] = (40, 40)) -> Sample:
    image = put(folder, f"{stem}.png", picture(*size, seed=len(stem)))
    drawn = put(folder, f"{stem}_mask.png", mask)
    return sample(image.image, drawn.image)


def square(value: int = 255, dtype: type = np.uint8) -> Image.Image:
    mask: NDArray[Any] = np.zeros((40, 40), dtype)
    mask[10:20, 10:20] = value
    return Image.fromarray(mask)


def warned(problems: list[Problem], words: str) -> bool:
    return any(p.severity == "warning" and words in p.reason for p in problems)


def test_good_masks_give_no_problem(tmp_path: Path) -> None:
    kinds = {
        "bytes": square(),
        "ids": square(3),
        "deep": square(1, np.uint16),
        "bits": square().convert("1"),
        "colours": square().convert("RGB"),
    }
    samples = [anomalous(tmp_path, name, mask) for name, mask in kinds.items()]
    assert [p for p in scan(samples, full=True) if p.severity != "note"] == []


def test_a_mask_of_another_size_is_found_in_the_header(tmp_path: Path) -> None:
    one = anomalous(tmp_path, "a", square(), size=(80, 80))
    (problem,) = scan([one])
    assert problem.severity == "error" and problem.key == "a.png"
    assert problem.reason == "mask a_mask.png: the mask has 40 x 40 pixels, the image 80 x 80"
    assert 'mask_mismatch = "nearest"' in problem.remedy
    assert scan([one], mismatch="nearest") == []
    wide = anomalous(tmp_path, "b", square(), size=(80, 40))
    assert "aspect" in scan([wide], mismatch="nearest")[0].reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"<html>", "this is a page of HTML"), (None, "no such file")],
)
def test_a_bad_mask_names_image_and_mask(tmp_path: Path, content: bytes | None, reason: str) -> None:
    one = anomalous(tmp_path, "a", content or b"")
    assert one.mask is not None
    if content is None:
        one.mask.unlink()
    (problem,) = scan([one])
    assert problem.key == "a.png" and problem.reason.startswith(f"mask a_mask.png: {reason}")


def test_a_truncated_mask_is_found_by_the_full_scan(tmp_path: Path) -> None:
    noise = encoded(picture(mode="L"))
    samples = [anomalous(tmp_path, "a" * n, square()) for n in range(1, SAMPLED_MASKS + 2)]
    samples[1] = anomalous(tmp_path, "b", noise[: len(noise) // 2])
    assert scan(samples) == []
    assert scan(samples, full=True)[0].reason.startswith("mask b_mask.png: broken image data")
    assert scan(samples[1:2])[0].reason.startswith("mask b_mask.png: broken image data")


def test_empty_masks_are_one_warning_with_their_number(tmp_path: Path) -> None:
    samples = [anomalous(tmp_path, name, square(0)) for name in ("a", "bb", "ccc")]
    (problem,) = scan(samples, full=True)
    assert problem.severity == "warning"
    assert problem.reason.startswith("3 of 3 images have a mask without a defect pixel")
    assert "(a.png, bb.png, ccc.png)" in problem.reason


def test_soft_masks_are_one_warning_with_the_share(tmp_path: Path) -> None:
    soft = np.asarray(square()).copy()
    soft[10:20, 10] = 60
    samples = [anomalous(tmp_path, name, Image.fromarray(soft)) for name in ("a", "bb")]
    (problem,) = scan(samples, full=True)
    assert '2 of 2 images have a mask with soft edges: the rule ">127" would drop 10%' in problem.reason


def test_a_mask_stored_as_jpeg_grows_and_is_reported(tmp_path: Path) -> None:
    values = np.zeros((40, 40), np.uint8)
    values[13:20, 13:20] = 255
    one = anomalous(tmp_path, "a", encoded(Image.fromarray(values), "jpeg", quality=75))
    assert warned(scan([one], full=True), "soft edges")


def test_a_mask_in_the_alpha_channel_is_reported_as_such(tmp_path: Path) -> None:
    mask = Image.new("RGBA", (40, 40))
    mask.putalpha(square())
    one = anomalous(tmp_path, "a", mask)
    for full in (True, False):
        (problem,) = scan([one], full=full)
        assert "alpha channel over one colour, which is read as empty" in problem.reason
        assert 'mask_positive = "alpha>0"' in problem.remedy
        assert scan([one], full=full, positive="alpha>0") == []


@pytest.mark.parametrize(
    ("mode", "colour"), [("RGBA", (255, 255, 255, 0)), ("RGBA", (9, 200, 30, 0)), ("LA", (7, 0))]
)
def test_alpha_is_told_whatever_the_colour_over_it(
    tmp_path: Path, mode: str, colour: tuple[int, ...]
) -> None:
    mask = Image.new(mode, (40, 40), colour)
    mask.putalpha(square())
    for full in (True, False):
        (problem,) = scan([anomalous(tmp_path, "a", mask)], full=full)
        assert "alpha channel over one colour, which is read as all defect" in problem.reason


def inverted(mask: Image.Image) -> Image.Image:
    return Image.fromarray(255 - np.asarray(mask))


def test_masks_that_cover_most_of_every_image_are_told_before_the_run_too(tmp_path: Path) -> None:
    samples = [anomalous(tmp_path, "a" * n, inverted(square())) for n in range(1, 4)]
    for full in (True, False):
        (problem,) = scan(samples, full=full)
        assert problem.severity == "warning"
        assert problem.reason.startswith("3 of 3 images have a mask that covers more than half of the image")
        assert "may be inverted" in problem.reason and "mask_positive" in problem.remedy
    assert scan(samples, positive=[0]) == []


def test_one_large_defect_among_small_ones_is_no_inverted_mask(tmp_path: Path) -> None:
    large, small = anomalous(tmp_path, "a", inverted(square())), anomalous(tmp_path, "bb", square())
    assert scan([large, small], full=True) == scan([large, small]) == []
    other = dataclasses.replace(small, category="other")
    assert warned(scan([large, other]), "1 of 2 images have a mask that covers more than half")


def test_a_few_masks_of_each_category_are_looked_into_evenly_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = anomalous(tmp_path, "a", square())
    samples = [dataclasses.replace(one, key=f"{c}{n:03}", category=c) for c in "xy" for n in range(100)]
    seen: list[str] = []

    def look(path: Path, positive: object, *, name: str, max_pixels: int) -> MaskInfo:
        seen.append(name[:4])
        return inspect_mask(path, name=name)

    monkeypatch.setattr(sys.modules["zsadbench.images.scan"], "inspect_mask", look)
    scan(samples, workers=1)
    assert seen == [f"{c}{n:03}" for c in "xy" for n in range(0, 100, 13)]
    assert len(seen) == 2 * SAMPLED_MASKS


def test_defects_that_vanish_at_a_usual_size_are_told_with_the_remedy(tmp_path: Path) -> None:
    def dot(side: int) -> Image.Image:
        mask = np.zeros((1200, 1200), np.uint8)
        mask[600 : 600 + side, 600 : 600 + side] = 255
        return Image.fromarray(mask)

    samples = [anomalous(tmp_path, "a" * side, dot(side), (1200, 1200)) for side in (1, 3, 12)]
    (problem,) = scan(samples, full=True)
    assert problem.reason == (
        "2 of 3 images have defects of which nothing is left at 240 or 518 pixels (a.png, aaa.png)"
    )
    assert problem.remedy == "evaluate with --mask-resize native, or with a larger --size"
    assert [inspect_mask(s.mask).vanishes for s in samples if s.mask] == [518, 240, 0]


# ------------------------------------------------------------------ a folder of masks


def several(folder: Path, *masks: Image.Image | bytes) -> Sample:
    image = put(folder, "a.png", picture())
    (folder / "a").mkdir()
    for number, mask in enumerate(masks):
        put(folder / "a", f"{number:03}.png", mask)
    return sample(image.image, folder / "a")


def test_the_masks_in_a_folder_are_united(tmp_path: Path) -> None:
    other = np.zeros((40, 40), np.uint8)
    other[30:35, 0:2] = 3
    one = several(tmp_path, square(), Image.fromarray(other))
    (tmp_path / "a/.hidden.png").write_bytes(b"")
    assert one.mask is not None
    mask = read_mask(one.mask)
    assert mask.sum() == 100 + 10 and mask[10:20, 10:20].all() and mask[30:35, 0:2].all()
    assert read_mask(one.mask, ">127").sum() == 100
    np.testing.assert_array_equal(mask_at(one, None), mask)
    assert scan([one], full=True) == []


def test_bad_masks_in_a_folder_are_named(tmp_path: Path) -> None:
    broken: dict[str, list[Image.Image | bytes]] = {
        "holds no mask": [],
        "a/001.png: the file is empty": [square(), b""],
        "differ in size (40 x 40 and 20 x 20)": [square(), square().resize((20, 20))],
        "a/000.png: holds 3 frames": [encoded(picture(mode="L"), "tiff", **FRAMES)],
    }
    for number, (reason, masks) in enumerate(broken.items()):
        (tmp_path / str(number)).mkdir()
        one = several(tmp_path / str(number), *masks)
        (problem,) = scan([one])
        assert problem.severity == "error" and problem.key == "a.png" and reason in problem.reason
        assert one.mask is not None
        with pytest.raises(DatasetError, match=re.escape(reason.removeprefix("a/"))):
            read_mask(one.mask)


def test_masks_of_normal_samples_are_not_opened(tmp_path: Path) -> None:
    image = put(tmp_path, "a.png", picture())
    normal = Sample("a.png", "thing", False, image.image, tmp_path / "absent.png")
    assert scan([normal], full=True) == []


def test_byte_identical_images(tmp_path: Path) -> None:
    samples = [put(tmp_path, f"{i}.png", picture(seed=i % 2)) for i in range(5)]
    (note,) = scan(samples, full=True)
    assert note.severity == "note"
    assert note.reason == "2 groups of byte-identical images, 3 more than needed (0.png, 2.png, 4.png)"
    contradiction = Sample("bad/0.png", "thing", True, samples[0].image, None)
    assert warned(scan([samples[0], contradiction], full=True), "labelled normal and anomalous")


# ------------------------------------------------------------------ real files


def problems_of(data: Path, pattern: str, mask: Callable[[Path], Path | None]) -> list[Problem]:
    paths = sorted(data.glob(pattern))
    return scan([Sample(p.name, "x", bool(mask(p)), p, mask(p)) for p in paths], full=True)


def test_real_brain_images(data: Path) -> None:
    problems = problems_of(data, "brainmri/*/*", lambda path: None)
    assert [(p.severity, p.reason.split(" (")[0]) for p in problems] == [
        (
            "warning",
            "1 of 253 images are partly transparent; alpha is dropped, not blended with a background",
        ),
        ("note", "22 groups of byte-identical images, 25 more than needed"),
    ]
    assert "(no.jpg)" in problems[0].reason


def test_real_head_scans_have_opaque_alpha(data: Path) -> None:
    assert problems_of(data, "headct/head_ct/head_ct/18*.png", lambda path: None) == []


def test_real_magnetic_tiles(data: Path) -> None:
    problems = problems_of(data, "mtd/MT_[UC]*/Imgs/*.jpg", lambda path: path.with_suffix(".png"))
    assert [p.severity for p in problems] == ["warning", "warning"]
    assert problems[0].reason.startswith("4 of 160 images have a mask without a defect pixel")
    assert problems[1].reason.startswith("156 of 160 images have a mask with soft edges")
