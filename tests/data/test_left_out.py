"""No image is left out without a word, and a part of a set can be used without the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from tests.kit.trees import heading, touch, triples, write
from zsadbench.data.load import list_images, load_dataset, survey_dataset
from zsadbench.errors import DatasetError

TREE = ("part/test/good/0.png", "part/test/crack/0.png", "part/ground_truth/crack/0_mask.png")


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZSAD_DATA", raising=False)


def notes(folder: Path, names: Sequence[str], spec: str = "") -> list[str]:
    """Return what is said of images that are not used."""
    touch(folder, [*TREE, *names])
    found = load_dataset(spec or str(folder))
    assert len(found.samples) == 2
    return [note for note in found.notes if "not used" in note]


UNMATCHED = {
    "deeper": (
        ["part/test/crack/cam1/0.png", "part/test/crack/cam1/1.png"],
        "2 images such as part/test/crack/cam1/0",
    ),
    "much deeper": (["part/test/good/a/b/c/0.jpg"], "1 image such as part/test/good/a/b/c/0.jpg"),
    "beside the folders": (
        ["part/test/0.png", "1.png"],
        "1 image such as 1.png, 1 image such as part/test/0.png",
    ),
    "beside the masks": (
        ["part/ground_truth/crack/x/0.png"],
        "1 image such as part/ground_truth/crack/x/0.png",
    ),
    "unread suffix": (
        ["part/test/good/1.heic", "part/test/good/2.TGA"],
        "2 images such as part/test/good/1.heic",
    ),
}


@pytest.mark.parametrize(("names", "words"), UNMATCHED.values(), ids=UNMATCHED)
def test_images_that_no_rule_matches_are_counted_and_named(
    names: list[str], words: str, tmp_path: Path
) -> None:
    (note,) = notes(tmp_path, names)
    assert note.startswith("warning: not used, ") and words in note


def test_an_image_without_a_suffix_is_told_by_its_content(tmp_path: Path) -> None:
    touch(tmp_path, TREE)
    Image.new("L", (9, 9)).save(tmp_path / "part/test/good/photo", "png")
    (tmp_path / "part/test/good/notes").write_text("no image")
    (note,) = notes(tmp_path, [])
    assert "1 image such as part/test/good/photo; convert them to PNG or correct the suffix" in note


def test_a_description_of_one_suffix_tells_the_others(tmp_path: Path) -> None:
    toml = (
        heading("none")
        + '[[samples]]\nclass = "x"\nimage = "{specie}/{stem}.png"\nnormal_when = { specie = ["ok"] }\n'
    )
    write(tmp_path, {"m.toml": toml})
    touch(tmp_path, ["ok/1.png", "ng/1.png", "ng/2.jpg"])
    (note,) = load_dataset(str(tmp_path / "m.toml")).notes
    assert "not used, because no rule matches: 1 image such as ng/2.jpg" in note
    write(tmp_path, {"m.toml": toml.replace("[[", 'exclude = ["*.JPG"]\n[[')})
    assert load_dataset(str(tmp_path / "m.toml")).notes == ()


def test_a_folder_beside_one_that_the_description_names_is_told(tmp_path: Path) -> None:
    toml = heading("none") + '[[samples]]\nclass = "x"\nimage = "photos/{stem}.png"\nlabel = "anomaly"\n'
    write(tmp_path, {"m.toml": toml})
    touch(
        tmp_path, ["photos/1.png", "more photos/1.png", "masks/1.png", "train set/1.png", "notes/readme.txt"]
    )
    assert (
        "note: folders that the description does not name are not used: more photos"
        in load_dataset(str(tmp_path / "m.toml")).notes
    )


QUIET = {
    "another split": ["part/train/good/0.png", "part/train/good/deep/0.png"],
    "masks of normal images": ["part/ground_truth/good/0_mask.png"],
    "hidden": ["part/test/good/.cache/0.png", "part/test/good/._0.png"],
    "no images": ["part/test/good/readme.txt", "part/license.txt", "part/test/good/Thumbs.db"],
}


@pytest.mark.parametrize("names", QUIET.values(), ids=QUIET)
def test_what_belongs_there_is_no_problem(names: list[str], tmp_path: Path) -> None:
    assert notes(tmp_path, names) == []


def test_images_beside_the_listed_ones_are_told(tmp_path: Path) -> None:
    toml = (
        heading("none")
        + '[[samples]]\ntable = "list.csv"\ncolumns = { class = "class", image = "file", split = "split" }\n'
        + 'image = "{image}"\nlabel = "normal"\n[classes]\nnut = "nut"\n'
    )
    rows = "class,file,split\nnut,in/a.png,test\nnut,in/b.png,train\nbolt,in/c.png,test\n"
    write(tmp_path, {"m.toml": toml, "list.csv": rows})
    touch(tmp_path, ["in/a.png", "in/b.png", "in/c.png", "in/d.png", "in/more/e.png", "elsewhere/f.png"])
    found = [note for note in load_dataset(str(tmp_path / "m.toml")).notes if "no rule" in note]
    assert len(found) == 1 and "1 image such as in/d.png" in found[0]


# Folders of masks


LOCO = (
    heading("required")
    + '[[samples]]\nimage = "{class}/test/{specie}/{stem}.png"\n'
    + 'mask = "{class}/ground_truth/{specie}/{stem}/"\n'
    + 'normal_when = { specie = ["good"] }\n'
)
MASKS = [
    "box/test/good/0.png",
    "box/test/bad/0.png",
    "box/ground_truth/bad/0/000.png",
    "box/ground_truth/bad/0/001.png",
]


@pytest.mark.parametrize("toml", [LOCO, ""], ids=["described", "found out"])
def test_a_folder_of_masks_belongs_to_an_image(toml: str, tmp_path: Path) -> None:
    folder = touch(tmp_path / "L", MASKS)
    write(folder, {"m.toml": toml} if toml else {})
    found = load_dataset(str(folder / "m.toml") if toml else str(folder))
    assert triples(found) == {
        ("box/test/good/0.png", "", 0),
        ("box/test/bad/0.png", "box/ground_truth/bad/0", 1),
    }
    assert found.notes == () and found.masks == "required"


def test_folders_of_masks_may_be_missing_empty_or_too_many(tmp_path: Path) -> None:
    folder = touch(tmp_path / "L", [*MASKS, "box/test/bad/1.png", "box/ground_truth/bad/2/000.png"])
    (folder / "box/ground_truth/bad/1").mkdir()
    write(folder, {"m.toml": LOCO})
    found = survey_dataset(str(folder / "m.toml"))
    assert [str(problem).split(";")[0] for problem in found.problems] == [
        "warning: box/ground_truth/bad/2: a mask without its image",
        "error: box/test/bad/1.png: has no mask (tried box/ground_truth/bad/1/)",
    ]


def test_a_table_may_name_a_folder_of_masks(tmp_path: Path) -> None:
    row = '{"img_path": "a.png", "mask_path": "gt/a", "cls_name": "nut", "anomaly": 1}'
    write(tmp_path, {"meta.json": f'{{"test": {{"nut": [{row}]}}}}'})
    touch(tmp_path, ["a.png", "gt/a/0.png", "gt/a/1.png"])
    assert triples(load_dataset("meta_json", tmp_path)) == {("a.png", "gt/a", 1)}


def test_only_a_mask_may_be_a_folder(tmp_path: Path) -> None:
    block = '[[samples]]\nlabel = "normal"\nclass = "x"\nimage = "{stem}/"\n'
    write(tmp_path, {"m.toml": heading("none") + block})
    with pytest.raises(DatasetError, match=r"m.toml:11: 'image' ends in '/': only a mask may be a folder"):
        load_dataset(str(tmp_path / "m.toml"))


# Categories of a set that is not complete


def test_a_category_is_used_where_others_are_missing_or_broken(tmp_path: Path) -> None:
    touch(
        tmp_path, ["carpet/test/good/0.png", "carpet/test/hole/0.png", "carpet/ground_truth/hole/0_mask.png"]
    )
    touch(tmp_path, ["grid/test/bent/0.png"])  # has no mask
    with pytest.raises(DatasetError, match="no test sample of class grid, leather"):
        load_dataset("mvtec", tmp_path)
    found = load_dataset("mvtec", tmp_path, categories=["carpet"])
    assert found.categories == ("carpet",) and len(found.samples) == 2
    assert [str(problem).split(";")[0] for problem in found.problems] == [
        "note: a part of the set: only carpet",
        "warning: class carpet: 1 normal and 1 anomalous images, the full set has 28 and 89",
    ]
    with pytest.raises(DatasetError, match="no test sample of class wood; complete the download"):
        load_dataset("mvtec", tmp_path, categories=["carpet", "wood"])
    with pytest.raises(DatasetError, match=r"has no category 'carpets'\. Did you mean 'carpet'\?"):
        load_dataset("mvtec", tmp_path, categories=["carpets"])


def test_a_category_of_its_own_rule_needs_no_other_rule(tmp_path: Path) -> None:
    blocks = "".join(
        f'[[samples]]\nclass = "{name}"\nimage = "{name}/{{stem}}.png"\nlabel = "normal"\n'
        for name in ("a", "b")
    )
    write(tmp_path, {"m.toml": heading("none") + blocks})
    touch(tmp_path, ["a/1.png"])
    spec = str(tmp_path / "m.toml")
    with pytest.raises(DatasetError, match="matches nothing"):
        load_dataset(spec)
    assert load_dataset(spec, categories=["a"]).categories == ("a",)


# What predict is given


def test_images_below_a_folder_are_listed_and_the_rest_is_said(tmp_path: Path) -> None:
    names = [
        "b.png",
        "test/good/1.png",
        "test/crack/1.png",
        "ground_truth/crack/1.png",
        "x.heic",
        "notes.txt",
    ]
    touch(tmp_path / "in", names)
    Image.new("L", (9, 9)).save(tmp_path / "in/test/photo", "png")
    found, left = list_images([tmp_path / "in"])
    assert [path.relative_to(tmp_path / "in").as_posix() for path in found] == [
        "b.png",
        "test/crack/1.png",
        "test/good/1.png",
    ]
    root = tmp_path / "in"
    assert left == [
        f"{root}: not looked into, because they are called like masks: ground_truth",
        f"{root}: not read: 1 image such as x.heic, 1 image such as test/photo; "
        "convert them to PNG, or correct the suffix",
    ]
    with pytest.raises(
        DatasetError, match=r"no image in this folder or below it .*not read: 1 image such as 1\.tga"
    ):
        list_images([touch(tmp_path / "raw", ["1.tga"])])


def test_links_in_a_circle_are_listed_once(tmp_path: Path) -> None:
    touch(tmp_path, ["in/a/1.png"])
    (tmp_path / "in/a/again").symlink_to(tmp_path / "in")
    (tmp_path / "in/b").symlink_to(tmp_path / "in/a")
    assert list_images([tmp_path / "in"])[0] == [tmp_path / "in/a/1.png"]
