"""Saturations of MVTec LOCO, and the defects of a mask in several files at any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kit.factory import save
from zsadbench.errors import DatasetError
from zsadbench.images import defects_at, mask_at
from zsadbench.images.saturation import Saturation, read_saturations
from zsadbench.samples import Sample

CONFIG = [
    {"defect_name": "a", "pixel_value": 255, "saturation_threshold": 40, "relative_saturation": False},
    {"defect_name": "b", "pixel_value": 254, "saturation_threshold": 0.31, "relative_saturation": True},
]


def sample(root: Path, masks: dict[str, Any], config: Any = CONFIG) -> Sample:
    save(root / "image.png", np.zeros((30, 40, 3)))
    for name, mask in masks.items():
        save(root / "masks" / name, mask)
    (root / "defects_config.json").write_text(json.dumps(config))
    return Sample(
        "image.png", "c", True, root / "image.png", root / "masks", saturation=root / "defects_config.json"
    )


def rectangle(rows: slice, columns: slice, value: int) -> Any:
    mask = np.zeros((30, 40), np.uint8)
    mask[rows, columns] = value
    return mask


@pytest.mark.parametrize(
    ("saturation", "area", "pixels"),
    [
        (Saturation(0.5, True), 11, 5),  # rounded down, as in MVTec's evaluation
        (Saturation(1.0, True), 11, 11),
        (Saturation(0.01, True), 11, 1),
        (Saturation(40, False), 11, 11),
        (Saturation(40, False), 900, 40),
    ],
)
def test_how_many_pixels_must_be_found(saturation: Saturation, area: int, pixels: float) -> None:
    assert saturation.pixels(area) == pixels


def test_each_file_is_a_defect_of_its_own(tmp_path: Path) -> None:
    first, second = rectangle(slice(2, 12), slice(3, 13), 255), rectangle(slice(8, 20), slice(5, 30), 254)
    one = sample(tmp_path, {"000.png": first, "001.png": second, "002.png": np.zeros((30, 40))})
    found = defects_at(one, None)
    assert [saturation for _, saturation in found] == [40, int(0.31 * 300)]
    assert np.array_equal(found[0][0], first > 0) and np.array_equal(found[1][0], second > 0)
    assert np.array_equal(np.logical_or(found[0][0], found[1][0]), mask_at(one, None))


@pytest.mark.parametrize("rule", ["bilinear50", "all", "any", "nearest"])
def test_at_another_size_the_share_stays_and_the_mask_holds_all(tmp_path: Path, rule: Any) -> None:
    first, second = rectangle(slice(2, 12), slice(3, 13), 255), rectangle(slice(8, 20), slice(5, 30), 254)
    one = sample(tmp_path, {"000.png": first, "001.png": second})
    for size in ((15, 20), (61, 83), (12, 16)):
        whole = mask_at(one, size, rule)
        for (mask, saturation), area, pixels in zip(
            defects_at(one, size, rule), (100, 300), (40, 93), strict=True
        ):
            assert not (mask & ~whole).any()
            assert saturation == pytest.approx(mask.sum() * pixels / area)
            assert 0 < saturation <= mask.sum()
    speck = sample(
        tmp_path / "speck", {"000.png": rectangle(slice(2, 3), slice(3, 4), 255), "001.png": second}
    )
    assert len(defects_at(speck, (3, 4), "bilinear50")) == 1


def test_what_has_no_saturation_has_no_defects(tmp_path: Path) -> None:
    one = sample(tmp_path, {"000.png": rectangle(slice(2, 12), slice(3, 13), 255)})
    normal = Sample("n.png", "c", False, one.image, None, saturation=one.saturation)
    without = Sample("m.png", "c", True, one.image, one.mask)
    assert defects_at(normal, None) == defects_at(without, None) == []


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    two = rectangle(slice(2, 12), slice(3, 13), 255)
    two[0, 0] = 254
    with pytest.raises(
        DatasetError, match=r"image\.png: mask masks/000\.png: holds 2 values; each defect needs"
    ):
        defects_at(sample(tmp_path / "two", {"000.png": two}), None)
    unknown = rectangle(slice(2, 12), slice(3, 13), 9)
    with pytest.raises(DatasetError, match=r"000\.png: its value 9 is not in .*defects_config\.json"):
        defects_at(sample(tmp_path / "unknown", {"000.png": unknown}), None)
    with pytest.raises(DatasetError, match="the aspect differs"):
        defects_at(sample(tmp_path / "size", {"000.png": np.full((10, 40), 255)}), None)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[",
        "{}]",
        "[1]",
        '{"a": 1}',
        "[" * 5000,
        '[{"pixel_value": 1}]',
        '[{"pixel_value": "1", "saturation_threshold": 1, "relative_saturation": true}]',
        '[{"pixel_value": 1, "saturation_threshold": 1.5, "relative_saturation": true}]',
        '[{"pixel_value": 1, "saturation_threshold": 0, "relative_saturation": false}]',
        '[{"pixel_value": 1, "saturation_threshold": NaN, "relative_saturation": false}]',
        '[{"pixel_value": 1, "saturation_threshold": true, "relative_saturation": false}]',
        '[{"pixel_value": 1, "saturation_threshold": 4, "relative_saturation": 0}]',
        '"' + "x" * (1 << 20) + '"',
    ],
)
def test_another_file_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "defects_config.json"
    path.write_text(content)
    with pytest.raises(DatasetError) as error:
        read_saturations(path)
    assert str(error.value).startswith(f"{path}: no list of defects with") and "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(DatasetError, match="cannot be read"):
        read_saturations(path)


def test_a_colour_or_16_bit_mask_is_read_by_its_values(tmp_path: Path) -> None:
    config = [
        {"defect_name": "a", "pixel_value": 300, "saturation_threshold": 1.0, "relative_saturation": True}
    ]
    one = sample(tmp_path, {}, config)
    (tmp_path / "masks").mkdir()
    Image.fromarray(rectangle(slice(0, 4), slice(0, 5), 1).astype(np.uint16) * 300).save(
        tmp_path / "masks/0.png"
    )
    ((mask, saturation),) = defects_at(one, None)
    assert mask.sum() == saturation == 20
