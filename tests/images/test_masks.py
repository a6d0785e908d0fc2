"""Masks: what counts as a defect, and the PIL arithmetic that brings it to the evaluation size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from zsadbench.errors import DatasetError
from zsadbench.images.masks import inspect_mask, mask_at, positive_rule, read_mask, size_mismatch
from zsadbench.samples import Sample

GOLDENS = Path(__file__).parents[1] / "goldens"


def save(folder: Path, mask: object, name: str = "mask.png", size: tuple[int, int] | None = None) -> Sample:
    """An anomalous sample whose mask file holds ``mask``, an array or image."""
    image = mask if isinstance(mask, Image.Image) else Image.fromarray(np.asarray(mask))
    image.save(folder / name)
    Image.new("RGB", size or image.size).save(folder / "image.png")
    return Sample("image.png", "thing", True, folder / "image.png", folder / name)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bilinear_equals_anomalyclip(tmp_path: Path, direction: str) -> None:
    golden = np.load(GOLDENS / f"anomalyclip/anomalyclip_preprocess_{direction}.npz")
    size = json.loads(str(golden["meta"]))["size"]
    sample = save(tmp_path, golden["mask"])
    np.testing.assert_array_equal(mask_at(sample, (size, size)), golden["mask_binary"][0] == 1)


def test_nearest_equals_aa_clip(tmp_path: Path) -> None:
    golden = np.load(GOLDENS / "aa-clip/preprocess_s0.npz")
    size = json.loads(str(golden["meta"]))["img_size"]
    sample = save(tmp_path, golden["mask_uint8"])
    np.testing.assert_array_equal(mask_at(sample, (size, size), "nearest"), golden["mask"][0] == 1)


@pytest.mark.parametrize("size", [(20, 20), (64, 64), (33, 50)])
def test_both_rules_equal_torchvision(tmp_path: Path, size: tuple[int, int]) -> None:
    values = (np.random.default_rng(0).random((41, 57)) < 0.3).astype(np.uint8)
    sample = save(tmp_path, values)
    binary = Image.fromarray(values * 255)
    resized = transforms.ToTensor()(transforms.Resize(size)(binary))[0].numpy() > 0.5
    np.testing.assert_array_equal(mask_at(sample, size, "bilinear50"), resized)
    nearest = transforms.Resize(size, transforms.InterpolationMode.NEAREST)(Image.fromarray(values))
    np.testing.assert_array_equal(mask_at(sample, size, "nearest"), np.asarray(nearest) != 0)
    assert mask_at(sample, size).any() and not np.array_equal(mask_at(sample, size), np.asarray(nearest) != 0)


@pytest.mark.parametrize("size", [(20, 20), (64, 64), (33, 50)])
def test_all_and_any_count_pixels_that_are_wholly_or_at_all_anomalous(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    values = np.zeros((41, 57), np.uint8)
    values[8:30, 11:40] = 1
    sample = save(tmp_path, values)
    share = transforms.ToTensor()(transforms.Resize(size)(Image.fromarray(values * 255)))[0].numpy()
    np.testing.assert_array_equal(mask_at(sample, size, "all"), share == 1)
    np.testing.assert_array_equal(mask_at(sample, size, "any"), share > 0)
    counts = [np.count_nonzero(mask_at(sample, size, rule)) for rule in ("all", "bilinear50", "any")]
    assert 0 < counts[0] < counts[1] < counts[2]


def test_native_keeps_the_size_of_the_image(tmp_path: Path) -> None:
    values = np.zeros((6, 9), np.uint8)
    values[2, 3:5] = 1
    sample = save(tmp_path, values)
    for mask in (mask_at(sample, None), mask_at(sample, (50, 50), "native")):
        np.testing.assert_array_equal(mask, values == 1)


def test_a_normal_sample_has_zeros_and_its_file_is_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (9, 6)).save(tmp_path / "image.png")
    normal = Sample("image.png", "thing", False, tmp_path / "image.png", tmp_path / "absent.png")
    for size, shape in (((4, 7), (4, 7)), (None, (6, 9))):
        mask = mask_at(normal, size)
        assert mask.shape == shape and mask.dtype == np.bool_ and not mask.any()
    assert mask_at(normal, None, image_size=(3, 2)).shape == (3, 2)


def test_an_anomalous_sample_without_mask_is_never_zeros(tmp_path: Path) -> None:
    bare = Sample("image.png", "thing", True, tmp_path / "image.png", None)
    with pytest.raises(DatasetError, match=r"image\.png: anomalous but without a mask"):
        mask_at(bare, (4, 4))


@pytest.mark.parametrize(
    ("positive", "expected"),
    [(">0", [0, 1, 1, 1]), (">127", [0, 0, 0, 1]), (">1", [0, 0, 1, 1]), ([1, 200], [0, 1, 0, 1])],
)
def test_positive_rules(tmp_path: Path, positive: str | list[int], expected: list[int]) -> None:
    sample = save(tmp_path, np.array([[0, 1, 2, 200]], np.uint8))
    assert mask_at(sample, None, positive=positive).astype(int).tolist() == [expected]


@pytest.mark.parametrize("positive", [">", "<3", "alpha", [], ["a"], [0.5]])
def test_a_rule_that_is_none_is_refused(positive: object) -> None:
    with pytest.raises(DatasetError, match="mask_positive"):
        positive_rule(positive)  # type: ignore[arg-type]


def palette_mask(folder: Path, indices: list[list[int]], colours: list[tuple[int, int, int]]) -> Path:
    image = Image.fromarray(np.array(indices, np.uint8)).convert("L")
    image = image.copy()
    paletted = Image.new("P", image.size)
    paletted.putdata([value for row in indices for value in row])
    paletted.putpalette([channel for colour in colours for channel in colour])
    paletted.save(folder / "palette.png")
    return folder / "palette.png"


BLACK, RED, WHITE = (0, 0, 0), (255, 0, 0), (255, 255, 255)


@pytest.mark.parametrize(
    ("colours", "positive", "expected"),
    [
        ([BLACK, RED], ">0", [0, 1, 1]),
        ([BLACK, BLACK], ">0", [0, 1, 1]),
        ([BLACK, (0, 0, 1)], ">0", [0, 1, 1]),
        ([WHITE, BLACK], ">0", [1, 0, 0]),
        ([BLACK, RED], [1], [0, 1, 1]),
        ([WHITE, BLACK], [1], [0, 1, 1]),
    ],
)
def test_palette_masks(
    tmp_path: Path, colours: list[tuple[int, int, int]], positive: str | list[int], expected: list[int]
) -> None:
    path = palette_mask(tmp_path, [[0, 1, 1]], colours)
    assert Image.open(path).mode == "P"
    assert read_mask(path, positive).astype(int).tolist() == [expected]


def test_sixteen_bit_masks_are_compared_at_full_depth(tmp_path: Path) -> None:
    sample = save(tmp_path, np.array([[0, 1, 255, 256, 40000]], np.uint16))
    assert mask_at(sample, None).tolist() == [[False, True, True, True, True]]
    assert mask_at(sample, None, positive=">255").tolist() == [[False, False, False, True, True]]


def test_bilevel_and_colour_masks(tmp_path: Path) -> None:
    values = np.array([[0, 255, 0]], np.uint8)
    for image in (Image.fromarray(values).convert("1"), Image.fromarray(values).convert("RGB")):
        for positive in (">0", ">127"):
            assert mask_at(save(tmp_path, image), None, positive=positive).tolist() == [[False, True, False]]


def test_alpha_is_ignored_unless_asked_for(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, 1, 3] = 9
    sample = save(tmp_path, rgba)
    assert not mask_at(sample, None).any()
    assert mask_at(sample, None, positive="alpha>0").tolist() == [[False, True, False]]
    opaque = save(tmp_path, rgba[..., :3])
    with pytest.raises(DatasetError, match="no alpha channel"):
        mask_at(opaque, None, positive="alpha>0")


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    values = np.zeros((10, 20), np.uint8)
    values[:5] = 255
    sample = save(tmp_path, values, size=(40, 20))
    with pytest.raises(
        DatasetError, match=r"image\.png: mask mask\.png: the mask has 20 x 10 .* 40 x 20; .*nearest"
    ):
        mask_at(sample, (20, 40))
    mask = mask_at(sample, None, mismatch="nearest")
    assert mask.shape == (20, 40) and mask[:10].all() and not mask[10:].any()
    square = save(tmp_path, values, size=(20, 20))
    with pytest.raises(DatasetError, match="aspect differs by more than 1 %"):
        mask_at(square, None, mismatch="nearest")


def test_the_aspect_may_differ_by_one_percent() -> None:
    assert size_mismatch((100, 200), (101, 202), "nearest") is None
    assert size_mismatch((100, 200), (200, 402), "nearest") is None
    assert size_mismatch((100, 200), (200, 405), "nearest") is not None
    assert size_mismatch((200, 100), (100, 200), "nearest") is not None


def test_inspect_tells_soft_edges_from_class_ids(tmp_path: Path) -> None:
    soft = save(tmp_path, np.array([[0, 40, 100, 200, 255]], np.uint8), "soft.png")
    ids = save(tmp_path, np.array([[0, 1, 2, 3, 4]], np.uint8), "ids.png")
    assert soft.mask and ids.mask
    assert inspect_mask(soft.mask).grey == pytest.approx(0.5)
    assert inspect_mask(ids.mask).grey == 0
    assert inspect_mask(ids.mask, ">4").empty and not inspect_mask(ids.mask).empty
    assert inspect_mask(ids.mask).size == (1, 5)


@pytest.fixture
def tiles(data: Path) -> Path:
    return data / "mtd"


def test_real_soft_masks(tiles: Path) -> None:
    masks = sorted(tiles.glob("MT_Crack/Imgs/*.png"))
    assert len(masks) == 57
    wide, narrow = (sum(int(read_mask(m, p).sum()) for m in masks) for p in (">0", ">127"))
    assert wide / narrow == pytest.approx(1.48, abs=0.005)


def test_real_empty_masks(tiles: Path) -> None:
    empty = {m.stem for m in tiles.glob("MT_Uneven/Imgs/*.png") if inspect_mask(m).empty}
    numbers = ["exp3_num_45042", "exp4_num_124690", "exp4_num_352527", "exp4_num_45057"]
    assert empty == set(numbers)
