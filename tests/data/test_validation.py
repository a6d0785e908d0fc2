"""Normal validation images: which a description names, and that none of them is a test image."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.trees import heading, touch, write
from zsadbench.cards import card_paths
from zsadbench.data import describe, load_dataset, load_validation, survey_dataset
from zsadbench.errors import DatasetError

RULE = """
[[samples]]
image = "{class}/{split:train|test}/{specie}/{stem}.png"
normal_when = { specie = ["good"] }
"""
LISTED = """
[[samples]]
class = "a"
table = "l.csv"
columns = { image = "image", split = "split", label = "label" }
image = "{image}"
normal_when = { label = [0] }
"""
TREES = {
    "mvtec": (["carpet/train/good/000.png"], ["carpet/test/good/000.png"]),
    "visa_pytorch": (["candle/train/good/0.JPG"], ["candle/test/good/1.JPG"]),
    "btad": (["01/train/ok/0.bmp"], ["01/test/ok/1.bmp"]),
    "mpdd": (["tubes/train/good/0.png"], ["tubes/test/good/0.png"]),
    "mvtec_loco": (["pushpins/validation/good/000.png"], ["pushpins/test/good/0.png"]),
    "mvtec_ad_2": (["can/validation/good/000_regular.png"], ["can/test_public/good/000_regular.png"]),
    "mvtec_3d": (["bagel/validation/good/rgb/000.png"], ["bagel/test/good/rgb/000.png"]),
    "bmad": (["Brain_AD/valid/good/img/1.png"], ["Brain_AD/test/good/img/1.png"]),
    "dagm": (["Class1/Train/0001.PNG"], ["Class1/Test/0001.PNG"]),
    "goods_ad": (["cigarette_box/train/good/0.jpg"], ["cigarette_box/test/good/0.jpg"]),
}
"""Dataset -> its validation images and its normal test images, by published names."""
OTHERS = ["mvtec_loco/pushpins/train/good/001.png", "mvtec_ad_2/can/train/good/003_regular.png"]
MASKED = {"dagm": ["dagm/Class1/Train/0002.PNG", "dagm/Class1/Train/Label/0002_label.PNG"]}


@pytest.mark.parametrize("name", TREES)
def test_shipped_descriptions_name_their_normal_validation_images(name: str, tmp_path: Path) -> None:
    validation, test = TREES[name]
    touch(tmp_path / name, [*validation, *test])
    touch(tmp_path, [*OTHERS, *MASKED.get(name, [])])
    if name == "mvtec":
        touch(tmp_path / name, ["carpet/train/cut/000.png"])  # no normal image
    dataset = survey_dataset(name, tmp_path, allow_missing=True)
    found = load_validation(name, dataset)
    assert found is not None and [sample.key for sample in found.samples] == validation
    assert not any(sample.anomalous or sample.mask for sample in found.samples)
    assert found.split == describe(name).validation
    assert [sample.key for sample in dataset.samples] == test


def test_a_table_tells_the_split(tmp_path: Path) -> None:
    rows = "candle,train,normal,a.JPG,\ncandle,test,normal,b.JPG,\nfryum,train,normal,c.JPG,\n"
    write(tmp_path / "visa", {"split_csv/1cls.csv": "object,split,label,image,mask\n" + rows})
    touch(tmp_path / "visa", ["a.JPG", "b.JPG", "c.JPG"])
    found = load_validation("visa", load_dataset("visa", tmp_path, allow_missing=True))
    assert found and [sample.key for sample in found.samples] == ["a.JPG"]  # fryum has no test image


def test_every_shipped_validation_split_is_one_that_a_rule_can_give() -> None:
    named = {
        name: description.validation for name in card_paths("datasets") if (description := describe(name))
    }
    assert len([name for name, split in named.items() if split]) >= 17
    for name, split in named.items():
        rules = describe(name).rules
        texts = "".join(
            t.text for r in rules for t in (*r.image, *r.tables, *((r.split,) if r.split else ()))
        )
        texts += "".join(str(r.records) + "".join(r.columns) for r in rules)
        assert not split or split in texts.lower() or "split" in texts, name


def described(root: Path, text: str) -> Path:
    return write(root, {"mine.toml": text + RULE}) / "mine.toml"


def test_without_the_key_or_without_images_there_are_none(tmp_path: Path) -> None:
    touch(tmp_path, ["a/train/good/0.png", "a/test/good/0.png"])
    spec = str(described(tmp_path, heading("none")))
    assert load_validation(spec, load_dataset(spec)) is None
    spec = str(described(tmp_path, heading("none") + 'validation = "validation"\n'))
    found = load_validation(spec, load_dataset(spec))
    assert found is not None and found.samples == ()


@pytest.mark.parametrize("split", ["test", "", "Train", "holdout"])
def test_other_splits_are_refused(split: str, tmp_path: Path) -> None:
    spec = described(tmp_path, heading("none") + f'validation = "{split}"\n')
    with pytest.raises(DatasetError, match=r"mine\.toml:8.*'validation' must be one of train, val, valid"):
        describe(str(spec))


def test_a_validation_image_that_is_a_test_image_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, ["a/train/good/0.png", "a/test/good/0.png"])
    (tmp_path / "a/train/good/1.png").symlink_to(tmp_path / "a/test/good/0.png")
    spec = str(described(tmp_path, heading("none") + 'validation = "train"\n'))
    with pytest.raises(
        DatasetError, match=r"image a/train/good/1\.png is the test image a/test/good/0\.png; corr"
    ):
        load_validation(spec, load_dataset(spec))


def test_problems_of_validation_images_are_told_unless_they_may_be_left_out(tmp_path: Path) -> None:
    touch(tmp_path, ["0.png", "1.png"])
    rows = "image,split,label\n0.png,test,0\n1.png,train,0\n2.png,train,0\n"
    text = heading("none") + 'validation = "train"\n' + LISTED
    spec = str(write(tmp_path, {"mine.toml": text, "l.csv": rows}) / "mine.toml")
    dataset = load_dataset(spec)
    with pytest.raises(DatasetError, match=r"(?s)problems in its validation images.*--skip-bad.*2\.png"):
        load_validation(spec, dataset)
    found = load_validation(spec, dataset, skip_bad=True)
    assert found and [sample.key for sample in found.samples] == ["1.png"]


def test_a_folder_in_mvtec_layout_has_its_training_images(tmp_path: Path) -> None:
    touch(
        tmp_path,
        ["a/train/good/0.png", "a/test/good/0.png", "a/test/bad/0.png", "a/ground_truth/bad/0_mask.png"],
    )
    found = load_validation(str(tmp_path), load_dataset(str(tmp_path)))
    assert found and [sample.key for sample in found.samples] == ["a/train/good/0.png"]


def test_a_folder_in_loco_s_layout_has_its_saturations(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "loco",
        [
            *("a/train/good/0.png", "a/test/good/0.png", "a/test/logical_anomalies/0.png"),
            *("a/ground_truth/logical_anomalies/0/000.png", "a/ground_truth/logical_anomalies/0/001.png"),
            *("b/test/good/0.png", "b/test/logical_anomalies/0.png"),
            *("b/ground_truth/logical_anomalies/0/000.png", "a/defects_config.json"),
        ],
    )
    found = {s.key: s.saturation for s in load_dataset(str(root)).samples if s.anomalous}
    config = root / "a" / "defects_config.json"
    assert found == {"a/test/logical_anomalies/0.png": config, "b/test/logical_anomalies/0.png": None}
    assert not any(s.saturation for s in load_dataset(str(root)).samples if not s.anomalous)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/hostname", "a/../../secret.json", "missing.json"])
def test_a_table_cannot_lead_to_saturations_outside_the_folder(name: str, tmp_path: Path) -> None:
    root = touch(tmp_path / "set", ["0.png", "0_mask.png", "a/b.png"])
    touch(tmp_path, ["secret.json"])
    rows = f"image,mask,file\n0.png,0_mask.png,{name}\n"
    text = heading("optional") + LISTED.replace("l.csv", "m.csv").replace(
        'split = "split", label = "label"', ""
    )
    text = text.replace(
        'columns = { image = "image",  }', 'columns = { image = "image", mask = "mask", file = "file" }'
    )
    text = text.replace(
        "normal_when = { label = [0] }", 'mask = "{mask}"\nsaturation = "{file}"\nlabel = "anomaly"'
    )
    spec = str(write(root, {"mine.toml": text, "m.csv": rows}) / "mine.toml")
    (sample,) = load_dataset(spec).samples
    assert sample.mask == root / "0_mask.png" and sample.saturation is None


def test_saturations_are_those_of_masks(tmp_path: Path) -> None:
    spec = described(tmp_path, heading("none"))
    spec.write_text(spec.read_text() + 'saturation = "{class}/defects_config.json"\n')
    with pytest.raises(
        DatasetError, match="'saturation' is of the defects in masks: a 'mask' template is needed"
    ):
        describe(str(spec))
