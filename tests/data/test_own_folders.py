"""Folders as people name them: found out, or asked about with the command that answers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.kit.trees import Triple, touch, triples
from zsadbench.cli.datasets import app
from zsadbench.data.load import load_dataset
from zsadbench.errors import DatasetError


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZSAD_DATA", raising=False)


def labels(*names: str) -> set[Triple]:
    """Return what a set without masks lists: names that end in ``!`` are anomalous."""
    return {(name.removesuffix("!"), "", int(name.endswith("!"))) for name in names}


PLAIN = {
    "OK and NG": ("OK/1.png", "NG/1.png!"),
    "Good and Bad": ("Good/1.png", "Bad/1.jpg!"),
    "normal and defect": ("normal/1.png", "defect/1.png!"),
    "pass and fail": ("pass/1.png", "fail/1.png!"),
    "PASS and FAILED": ("PASS/1.png", "FAILED/1.png!"),
    "normal_dir and abnormal_dir": ("normal_dir/1.png", "abnormal_dir/1.png!"),
    "non-defective and defective": ("non-defective/1.png", "defective/1.png!"),
    "numbered": ("0_OK/1.png", "1_NOK/1.png!"),
    "io and nio": ("iO/1.png", "niO/1.png!"),
    "test in capitals": ("Test/Good/1.png", "Test/crack/1.png!"),
    "both splits in capitals": ("Test/Good/1.png", "Test/crack/1.png!"),
    "validation only": ("val/ok/1.png", "val/scratch/1.png!"),
    "categories of ok and nok": ("nut/ok/1.png", "nut/nok/1.png!", "bolt/ok/1.png", "bolt/nok/2.png!"),
    "one level more": ("data/OK/1.png", "data/NG/1.png!"),
    "one level more with test": ("dataset/test/good/1.png", "dataset/test/hole/1.png!"),
    "lines and parts": (
        "line1/nut/ok/1.png",
        "line1/nut/ng/1.png!",
        "line2/cap/ok/1.png",
        "line2/cap/ng/1.png!",
    ),
    "kinds of defects": ("OK/1.png", "NG/crack/1.png!", "NG/dent/1.png!"),
    "views": ("OK/cam1/1.png", "OK/cam2/1.png", "NG/cam1/1.png!"),
    "images below": ("good/images/1.png", "bad/images/1.png!"),
    "split before category": ("test/nut/good/1.png", "test/nut/hole/1.png!", "test/cap/good/1.png"),
}


@pytest.mark.parametrize("names", PLAIN.values(), ids=PLAIN)
def test_usual_names_are_found_out(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = touch(tmp_path / "shelf", [name.removesuffix("!") for name in names])
    touch(folder, ["Train/Good/9.png"] if (folder / "Test").is_dir() else [])
    found = load_dataset(str(folder))
    assert triples(found) == labels(*names)
    assert not [note for note in found.notes if "not used" in note]


def test_categories_are_named_after_the_folders_that_mean_something(tmp_path: Path) -> None:
    def categories(*names: str) -> tuple[str, ...]:
        root = tmp_path / str(len(list(tmp_path.iterdir()))) / "shelf"
        return load_dataset(str(touch(root, names))).categories

    assert categories("OK/1.png", "NG/1.png") == ("shelf",)
    assert categories("data/OK/1.png", "data/NG/1.png") == ("shelf",)
    assert categories("nut/ok/1.png", "nut/nok/1.png") == ("nut",)
    assert categories("a/nut/ok/1.png", "a/nut/ng/1.png", "b/nut/ok/1.png", "b/nut/ng/1.png") == (
        "a_nut",
        "b_nut",
    )
    assert categories("mask/test/good/1.png", "mask/test/hole/1.png", "cap/test/good/1.png") == (
        "cap",
        "mask",
    )


MASKED = {
    "beside the labels": {"OK/1.png": "", "NG/1.png": "masks/1.png"},
    "by label": {"good/1.png": "", "bad/1.jpg": "ground_truth/bad/1.png"},
    "images and masks below": {"good/images/1.png": "", "bad/images/1.png": "bad/masks/1.png"},
    "images and masks above": {"images/good/1.png": "", "images/bad/1.png": "masks/bad/1_gt.png"},
    "a folder per label": {"ok/1.png": "", "ng/1.png": "ng_mask/1.png"},
    "Ground Truth in capitals": {"Test/OK/1.png": "", "Test/cut/1.png": "GroundTruth/cut/1_mask.png"},
    "in the same folder": {"good/1.png": "", "bad/1.png": "bad/1_mask.png", "bad/2.png": "bad/2_mask.png"},
    "twins": {"ok/1.jpg": "", "ng/1.jpg": "ng/1.png", "ng/2.jpg": "ng/2.png"},
    "categories": {
        "nut/ok/1.png": "",
        "nut/ng/1.png": "nut/annotations/1.png",
        "cap/ok/1.png": "",
        "cap/ng/1.png": "cap/annotations/1.png",
    },
    "the tree of VisA": {
        "nut/Data/Images/Normal/0001.JPG": "",
        "nut/Data/Images/Anomaly/001.JPG": "nut/Data/Masks/Anomaly/001.png",
        "cap/Data/Images/Normal/0001.JPG": "",
        "cap/Data/Images/Anomaly/001.JPG": "cap/Data/Masks/Anomaly/001.png",
    },
    "a defect called after a label": {
        "test/good/1.png": "",
        "test/wrong_label/1.png": "ground_truth/wrong_label/1.png",
    },
}


@pytest.mark.parametrize("pairs", MASKED.values(), ids=MASKED)
def test_masks_are_paired_and_never_defects(pairs: dict[str, str], tmp_path: Path) -> None:
    folder = touch(tmp_path / "shelf", [name for pair in pairs.items() for name in pair if name])
    found = load_dataset(str(folder))
    assert triples(found) == {(image, mask, int(bool(mask))) for image, mask in pairs.items()}
    assert found.masks == "required"


def test_a_mask_folder_whose_names_do_not_fit_is_left_out_and_told(tmp_path: Path) -> None:
    names = ["normal_dir/image0.png", "abnormal_dir/image3.png", "mask_dir/mask3.png"]
    folder = touch(tmp_path / "H", names)
    for options in ([], ["--normal", "normal_dir"]):
        result = CliRunner().invoke(
            app, ["new", str(folder), "--out", str(tmp_path / "H.toml"), "--force", *options]
        )
        assert "1 normal and 1 anomalous test images, 0 of them with a mask" in result.output
        assert "no mask is used: none of those in mask_dir is named like an image" in result.output
        found = load_dataset(str(tmp_path / "H.toml"), folder)
        assert triples(found) == labels("normal_dir/image0.png", "abnormal_dir/image3.png!")
    bare = load_dataset(str(folder))
    assert "warning: no mask is used" in bare.notes[0]


def test_one_mask_is_never_shared_by_two_images(tmp_path: Path) -> None:
    found = load_dataset(str(touch(tmp_path / "s", ["ok/1.png", "ng/a/1.png", "ng/b/1.png", "masks/1.png"])))
    assert triples(found) == labels("ok/1.png", "ng/a/1.png!", "ng/b/1.png!")
    assert "no mask is used" in found.notes[0]


def test_masks_of_another_category_or_label_are_never_taken(tmp_path: Path) -> None:
    names = ["a/ok/1.png", "a/ng/1.png", "b/ok/1.png", "b/ng/1.png", "b/masks/1.png"]
    found = load_dataset(str(touch(tmp_path / "s", names)), skip_bad=True)
    assert triples(found) == {
        ("a/ok/1.png", "", 0),
        ("b/ok/1.png", "", 0),
        ("b/ng/1.png", "b/masks/1.png", 1),
    }


def test_images_beside_masks_are_anomalous_where_the_mask_says_so(tmp_path: Path) -> None:
    some = touch(tmp_path / "some", ["images/1.png", "images/2.png", "masks/2.png"])
    assert triples(load_dataset(str(some))) == {("images/1.png", "", 0), ("images/2.png", "masks/2.png", 1)}


def test_a_list_goes_before_names_that_mean_less_than_mvtec(tmp_path: Path) -> None:
    folder = touch(tmp_path / "s", ["nut/Normal/1.png", "nut/Anomaly/1.png"])
    (folder / "meta.json").write_text('{"test": {"nut": [{"img_path": "nut/Normal/1.png", "anomaly": 0}]}}')
    assert len(load_dataset(str(folder)).samples) == 1
    touch(folder, ["good/1.png", "bad/1.png"])
    assert len(load_dataset(str(folder)).samples) == 2


# What names do not tell is asked for


def answer(folder: Path) -> str:
    """Return the message of a refused folder, after the command that it names was carried out."""
    with pytest.raises(DatasetError) as caught:
        load_dataset(str(folder))
    message = str(caught.value)
    command = re.search(r"`zsad datasets (.*?)`", message)
    assert command, message
    result = CliRunner().invoke(app, shlex.split(command[1]))
    assert result.exit_code == 0, result
    assert f"Wrote {folder}/" in result.output
    return message


def test_the_message_names_a_command_that_ends_in_a_file_that_works(tmp_path: Path) -> None:
    folder = touch(tmp_path / "my parts", ["aa bb/1.png", "aa bb/2.png", "zz/1.png", "masks/1.png"])
    message = answer(folder)
    assert "Which folder holds normal images? There are aa bb (2), zz (1)." in message
    found = load_dataset(str(folder / "my_parts.toml"))
    assert triples(found) == {("aa bb/1.png", "", 0), ("aa bb/2.png", "", 0), ("zz/1.png", "masks/1.png", 1)}


def test_a_defect_beside_good_images_is_asked_about(tmp_path: Path) -> None:
    folder = touch(tmp_path / "s", ["good/1.png", "crack/1.png", "dent/1.png"])
    assert "--normal good" in answer(folder)
    assert triples(load_dataset(str(folder / "s.toml"))) == labels(
        "good/1.png", "crack/1.png!", "dent/1.png!"
    )


MISSING = {
    "only normal": (
        ["good/1.png"],
        "good",
        "only normal images (good (1)); put anomalous ones into a folder beside",
    ),
    "another name": (
        ["a/1.png", "b/1.png"],
        "c",
        "no folder of images is called 'c'; there are a (1), b (1).",
    ),
    "too deep": (
        ["a/b/c/d/n/1.png", "a/b/c/e/n/1.png"],
        "a",
        "'a' has no folder of anomalous images beside it",
    ),
    "nothing": (["readme.txt"], "", "no image in this folder or below it (looked for png, jpg"),
    "flat": (["1.png", "2.png"], "", "The images have no labels (. (2)): use them with `zsad predict`"),
    "training only": (["train/good/1.png"], "", "all images lie in a training part (train/good (1))"),
    "braces": (["a{b}/1.png", "ok/1.png"], "", "folders with '{', '}' or '|' in their names"),
}


@pytest.mark.parametrize(("names", "normal", "words"), MISSING.values(), ids=MISSING)
def test_what_is_missing_is_said(names: list[str], normal: str, words: str, tmp_path: Path) -> None:
    folder = touch(tmp_path / "s", names)
    result = CliRunner().invoke(app, ["new", str(folder), *(["--normal", normal] if normal else [])])
    assert isinstance(result.exception, DatasetError)
    assert words in str(result.exception)
    assert not (folder / "s.toml").exists()
    if not normal:
        with pytest.raises(DatasetError, match=re.escape(words)):
            load_dataset(str(folder))
