"""Colours, scale bars and tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsadbench.errors import DatasetError, UsageError
from zsadbench.images.loader import to_rgb
from zsadbench.views import overlay
from zsadbench.views.tiles import MAX_TILES, fades, parse_roi, spans, tiling


def lightness(colours: np.ndarray) -> np.ndarray:
    """Return CIE L* of sRGB colours (N, 3)."""
    c = colours / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


def test_the_colours_grow_lighter_all_the_way() -> None:
    steps = np.diff(lightness(overlay.palette()))
    assert overlay.palette().shape == (256, 3)
    assert steps.min() > -0.2 and lightness(overlay.palette()[[0, 255]]) == pytest.approx([15, 91], abs=2)


def test_heat_spans_the_scale_and_clips_outside() -> None:
    palette = overlay.palette()
    values = np.array([[-5.0, 0.0, 1.0, 2.0, 99.0]], np.float32)
    coloured = overlay.heat(values, (0.0, 2.0))[0]
    np.testing.assert_array_equal(coloured, palette[[0, 0, 128, 255, 255]])
    np.testing.assert_array_equal(overlay.heat(values, (3.0, 3.0))[0], palette[[0] * 5])


def test_large_maps_are_coloured_like_small_ones() -> None:
    values = np.random.RandomState(0).rand(2 * overlay.BAND + 7, 3).astype(np.float32)
    rows = np.concatenate([overlay.heat(values[i : i + 1], (0, 1)) for i in range(len(values))])
    np.testing.assert_array_equal(overlay.heat(values, (0, 1)), rows)


def test_an_overlay_changes_its_region_only() -> None:
    photo = Image.fromarray(np.random.RandomState(0).randint(0, 255, (20, 30, 3)).astype(np.uint8))
    picture = np.asarray(overlay.overlay(photo, np.ones((5, 6), np.float32), (0.0, 1.0), (10, 8)))
    changed = (picture != np.asarray(photo)).any(axis=2)
    inside = np.zeros((20, 30), bool)
    inside[8:13, 10:16] = True
    assert not changed[~inside].any() and changed[inside].mean() > 0.9
    grey = np.asarray(photo.convert("L"), float)[8:13, 10:16, None]
    expected = (1 - overlay.OPACITY) * grey + overlay.OPACITY * overlay.palette()[255]
    np.testing.assert_allclose(picture[8:13, 10:16], expected, atol=1)


def test_the_scale_bar_goes_where_the_map_is_lowest() -> None:
    values = np.ones((200, 240), np.float32)
    values[:100, :120] = 0
    picture = Image.new("RGB", (240, 200), "white")
    assert overlay.draw_scale(picture, values, (0.25, 0.75))
    changed = (np.asarray(picture) != 255).any(axis=2)
    assert changed[:100, :120].any() and not changed[100:].any() and not changed[:, 120:].any()
    bar = {tuple(pixel) for pixel in np.asarray(picture)[:100, :120].reshape(-1, 3).tolist()}
    ends = [tuple(overlay.palette()[end].tolist()) for end in (0, 255)]
    assert bar.issuperset(ends)


@pytest.mark.parametrize("size", [(1, 1), (40, 40), (20, 900)])
def test_a_small_picture_gets_no_scale_bar(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size[::-1], "white")
    assert not overlay.draw_scale(picture, np.zeros(size, np.float32), (0, 1))
    assert (np.asarray(picture) == 255).all()


def test_sixteen_bits_become_eight_over_their_full_range() -> None:
    deep = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))
    assert np.asarray(to_rgb(deep))[0, :, 0].tolist() == [0, 1, 255]


def test_a_png_holds_its_texts(tmp_path: Path) -> None:
    overlay.write_png(tmp_path / "a.png", Image.new("RGB", (2, 3)), {"Scale": "0.0 to 1.0", "Score": "0.5"})
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (2, 3) and image.info["Scale"] == "0.0 to 1.0"


@pytest.mark.parametrize(("length", "tile", "overlap"), [(1000, 300, 0.25), (301, 300, 0.5), (777, 64, 0.0)])
def test_spans_cover_everything_with_the_overlap_asked_for(length: int, tile: int, overlap: float) -> None:
    found = spans(5, 5 + length, tile, overlap)
    assert found[0][0] == 5 and found[-1][1] == 5 + length
    assert {end - start for start, end in found} == {tile}
    steps = np.diff([start for start, _ in found])
    assert (steps > 0).all() and steps.max() <= np.ceil(tile * (1 - overlap))
    fewer = (length - tile) / (tile * (1 - overlap))
    assert len(found) == 1 + np.ceil(fewer)


def test_a_short_axis_is_one_span() -> None:
    assert spans(3, 100, 200, 0.25) == ((3, 100),)


@pytest.mark.parametrize("ramp", [0.0, 10.0, 40.0])
def test_weights_sum_to_one_everywhere(ramp: float) -> None:
    parts = spans(0, 333, 80, 0.3)
    total = np.zeros(333)
    for (start, end), weight in zip(parts, fades(parts, ramp), strict=True):
        assert weight.min() >= 0
        total[start:end] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_blended_tiles_show_no_seam() -> None:
    """Tiles that disagree by 1 fade into each other: no step between pixels is near 1."""
    tiles = tiling((200, 260), None, 100, 0.25, "x")
    maps = [np.full((100, 100), number % 2, np.float32) for number in range(len(tiles.boxes))]
    whole = tiles.blend(maps)
    assert whole.shape == (200, 260) and whole.min() == 0 and whole.max() == pytest.approx(1)
    assert max(np.abs(np.diff(whole, axis=axis)).max() for axis in (0, 1)) < 0.1
    hard = tiling((200, 260), None, 100, 0.0, "x")
    steps = hard.blend([np.full((100, 100), n % 2, np.float32) for n in range(len(hard.boxes))])
    assert np.abs(np.diff(steps, axis=1)).max() >= 0.5  # without overlap there are seams to see


def test_tiles_of_one_picture_blend_to_that_picture() -> None:
    picture = np.random.RandomState(0).rand(90, 130).astype(np.float32)
    tiles = tiling((120, 150), (20, 30, 150, 120), 40, 0.25, "x")
    cut = (picture[t - 30 : b - 30, x - 20 : r - 20] for x, t, r, b in tiles.boxes)
    np.testing.assert_allclose(tiles.blend(cut), picture, atol=1e-6)


def test_a_region_outside_and_too_many_tiles_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"b\.png: the region 90,0,20,10 leaves the image of 100 x 50"):
        tiling((50, 100), (90, 0, 110, 10), None, 0.25, "b.png")
    with pytest.raises(DatasetError, match=f"more than {MAX_TILES}; give a larger --tile"):
        tiling((3000, 3000), None, 10, 0.5, "b.png")


def test_a_region_is_four_whole_numbers() -> None:
    assert parse_roi("10, 20,30,40") == (10, 20, 40, 60)
    for text in ("1,2,3", "a,b,c,d", "1,2,3.5,4"):
        with pytest.raises(UsageError, match="four whole numbers"):
            parse_roi(text)
    for text in ("-1,2,3,4", "0,0,0,5"):
        with pytest.raises(UsageError, match="1 or more"):
            parse_roi(text)
