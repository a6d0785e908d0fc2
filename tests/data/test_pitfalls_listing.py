"""Bad inputs that show while a dataset is listed: each has one wanted behaviour."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from tests.kit.trees import heading, touch, triples, write
from zsadbench.data.load import load_dataset, survey_dataset
from zsadbench.errors import DatasetError
from zsadbench.samples import Dataset

TREE = (
    heading("required")
    + """
[[samples]]
image = "{class}/{split:train|test}/{specie}/{stem}.{ext}"
mask = "{class}/ground_truth/{specie}/{stem}_mask.png"
normal_when = { specie = ["good"] }
"""
)
TABLE = (
    heading("optional")
    + """
[[samples]]
table = "list.csv"
columns = { class = "class", image = "file", mask = "mask", label = "label", split = "split" }
image = "{image}"
mask = "{mask}"
normal_when = { label = ["ok", 0] }
anomaly_when = { label = ["bad", 1] }
"""
)
FILES = ["nut/test/good/0.png", "nut/test/hole/0.png", "nut/ground_truth/hole/0_mask.png"]
HEAD = "class,file,mask,label,split\n"
ROW = "nut,a.png,,ok,test\n"


def tree(root: Path, *more: str, toml: str = TREE) -> str:
    """Make a small good tree with some files more and return the path of its description."""
    write(root, {"mine.toml": toml})
    touch(root, [*FILES, *more])
    return str(root / "mine.toml")


def table(root: Path, text: str, *files: str) -> str:
    """Make a table with its images and return the path of its description."""
    write(root, {"mine.toml": TABLE, "list.csv": text})
    touch(root, files or ["a.png", "b.png"])
    return str(root / "mine.toml")


def refused(spec: str, skip_bad: bool = False) -> str:
    with pytest.raises(DatasetError) as caught:
        load_dataset(spec, skip_bad=skip_bad)
    return str(caught.value)


def keys(dataset: Dataset) -> list[str]:
    return [sample.key for sample in dataset.samples]


# Pairing of images and masks


def test_missing_mask_names_image_and_every_path_tried(tmp_path: Path) -> None:
    spec = tree(tmp_path, "nut/test/hole/1.png")
    message = refused(spec)
    assert (
        "error: nut/test/hole/1.png: has no mask (tried nut/ground_truth/hole/1_mask.png); add the mask"
        in message
    )
    assert keys(load_dataset(spec, skip_bad=True)) == ["nut/test/good/0.png", "nut/test/hole/0.png"]


def test_missing_mask_and_a_stray_one_are_both_reported_and_never_paired(tmp_path: Path) -> None:
    message = refused(tree(tmp_path, "nut/test/hole/1.png", "nut/ground_truth/hole/2_mask.png"))
    assert "error: nut/test/hole/1.png: has no mask" in message
    assert "warning: nut/ground_truth/hole/2_mask.png: a mask without its image" in message


def test_surplus_mask_is_a_warning(tmp_path: Path) -> None:
    found = load_dataset(tree(tmp_path, "nut/ground_truth/hole/00_mask.png"))
    (note,) = found.notes
    assert note.startswith("warning: nut/ground_truth/hole/00_mask.png: a mask without its image; check the")
    assert len(found.samples) == 2


def test_unpadded_numbers_are_paired_by_name(tmp_path: Path) -> None:
    more = [
        f"nut/{place}"
        for i in (1, 2, 10)
        for place in (f"test/hole/{i}.png", f"ground_truth/hole/{i}_mask.png")
    ]
    found = load_dataset(tree(tmp_path, *more))
    for image, mask, label in triples(found):
        assert mask == (image.replace("test", "ground_truth").replace(".png", "_mask.png") if label else "")
    assert len(found.samples) == 5


def test_empty_mask_can_be_refused_or_dropped(tmp_path: Path) -> None:
    spec = tree(tmp_path, "nut/test/hole/1.png")
    for i, value in enumerate((0, 9)):
        Image.new("L", (3, 2), value).save(tmp_path / f"nut/ground_truth/hole/{i}_mask.png")
    assert len(load_dataset(spec).samples) == 3
    write(tmp_path, {"mine.toml": TREE.replace("[[", 'empty_mask = "error"\n[[')})
    assert "error: nut/test/hole/0.png: its mask nut/ground_truth/hole/0_mask.png has no pos" in refused(spec)
    write(tmp_path, {"mine.toml": TREE.replace("[[", 'empty_mask = "drop"\n[[')})
    found = load_dataset(spec)
    assert keys(found) == ["nut/test/good/0.png", "nut/test/hole/1.png"]
    assert found.notes[0].startswith("warning: nut/test/hole/0.png: left out: its mask")


@pytest.mark.parametrize(
    "record", [{"mask_path": ""}, {"mask_path": None}, {}], ids=["empty", "null", "no key"]
)
def test_anomalous_record_without_a_mask(record: dict[str, str | None], tmp_path: Path) -> None:
    touch(tmp_path, ["a.png", "b.png"])
    base = {"img_path": "a.png", "cls_name": "nut", "specie_name": "hole", "anomaly": 1}
    good = {"img_path": "b.png", "mask_path": "", "cls_name": "nut", "specie_name": "good", "anomaly": 0}
    write(tmp_path, {"meta.json": json.dumps({"test": {"nut": [base | record, good]}})})
    found = load_dataset("meta_json", tmp_path)
    assert triples(found) == {("a.png", "", 1), ("b.png", "", 0)}
    assert found.notes == ("note: no part in pixel metrics, for want of a mask: 1 anomalous image, a.png",)
    toml = (Path(__file__).parents[2] / "datasets" / "meta_json.toml").read_text()
    write(tmp_path, {"strict.toml": toml.replace('"optional"', '"required"')})
    assert "error: a.png: has no mask (none is given in meta.json test nut[0])" in refused(
        str(tmp_path / "strict.toml")
    )


def test_masks_taken_for_images_are_refused_with_the_remedy(tmp_path: Path) -> None:
    toml = TREE[: TREE.index("image =")] + (
        'class = "nut"\nimage = "{specie}/{stem}.png"\nmask = "{specie}/{stem}_mask.png"\n'
        'normal_when = { specie = ["good"] }\n'
    )
    write(tmp_path, {"mine.toml": toml})
    touch(tmp_path, ["good/0.png", "hole/0.png", "hole/0_mask.png"])
    spec = str(tmp_path / "mine.toml")
    assert (
        "error: masks are taken for images: hole/0_mask.png; name them in `exclude`, for example"
        in refused(spec)
    )
    write(tmp_path, {"mine.toml": toml.replace("[[samples]]", 'exclude = ["*_MASK.png"]\n[[samples]]')})
    assert triples(load_dataset(spec)) == {("good/0.png", "", 0), ("hole/0.png", "hole/0_mask.png", 1)}


def test_a_label_file_behind_a_bad_link_makes_no_image_normal(tmp_path: Path) -> None:
    touch(
        tmp_path,
        ["Class1/Test/0.PNG", "Class1/Test/1.PNG", "Class1/Test/2.PNG", "Class1/Test/Label/2_label.PNG"],
    )
    (tmp_path / "Class1/Test/Label/1_label.PNG").symlink_to("gone")
    with pytest.raises(DatasetError, match="a link that leads nowhere"):
        load_dataset("dagm", tmp_path)
    assert triples(load_dataset("dagm", tmp_path, skip_bad=True)) == {
        ("Class1/Test/0.PNG", "", 0),
        ("Class1/Test/2.PNG", "Class1/Test/Label/2_label.PNG", 1),
    }


def test_masks_of_normal_images_are_never_used(tmp_path: Path) -> None:
    found = load_dataset(tree(tmp_path, "nut/ground_truth/good/0_mask.png"))
    assert ("nut/test/good/0.png", "", 0) in triples(found)
    assert found.notes == ()


def test_folders_that_only_look_like_masks_are_not_used(tmp_path: Path) -> None:
    names = [f"{kind}/{part}/1.png" for kind in ("COVID", "Normal") for part in ("images", "masks")]
    touch(tmp_path, [*names, "Lung_Opacity/images/1.png", "Viral Pneumonia/images/1.png"])
    found = load_dataset("covid19", tmp_path)
    assert triples(found) == {("COVID/images/1.png", "", 1), ("Normal/images/1.png", "", 0)}
    assert "not used: Lung_Opacity, Viral Pneumonia" in found.notes[0]


# Tables


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "TEST"), ("train", "test")])
def test_split_names_of_meta_json_in_any_case(names: tuple[str, str], tmp_path: Path) -> None:
    touch(tmp_path, ["a.png", "b.png"])
    records = [
        {"img_path": p, "mask_path": "", "cls_name": "nut", "specie_name": "", "anomaly": 0}
        for p in ("a.png", "b.png")
    ]
    write(tmp_path, {"meta.json": json.dumps({n: {"nut": [r]} for n, r in zip(names, records, strict=True)})})
    assert keys(load_dataset("meta_json", tmp_path)) == ["b.png"]
    assert keys(load_dataset("meta_json", tmp_path, split="train")) == ["a.png"]


def test_unknown_class_gets_words_from_its_name(tmp_path: Path) -> None:
    touch(tmp_path, ["a.png"])
    record = {"img_path": "a.png", "mask_path": "", "cls_name": "w", "specie_name": "", "anomaly": 0}
    write(tmp_path, {"meta.json": json.dumps({"test": {"blue_widget": [record]}})})
    assert load_dataset("meta_json", tmp_path).words == {"blue_widget": "blue widget"}


UNSAFE = {
    "leaves the root": ("../secret.png", "has a '..' part and could leave the dataset's folder"),
    "leaves the root later": ("sub/../../secret.png", "has a '..' part"),
    "absolute": ("/home/me/data/a.png", "is absolute; make it relative to the dataset's folder by removing"),
    "drive letter": ("C:/data/a.png", "is absolute; make it relative"),
    "Windows separators": ("nut\\a.png", "has a backslash; write the path with '/'"),
}


@pytest.mark.parametrize(("path", "words"), UNSAFE.values(), ids=UNSAFE)
def test_unsafe_paths_of_a_table_are_refused_and_named(path: str, words: str, tmp_path: Path) -> None:
    message = refused(table(tmp_path / "set", f"{HEAD}nut,{path},,ok,test\n{ROW}", "a.png", "../secret.png"))
    assert f"error: list.csv:2: the image path '{path}' {words}" in message
    masked = refused(table(tmp_path / "set", f"{HEAD}nut,a.png,{path},bad,test\n", "a.png", "../secret.png"))
    assert f"error: list.csv:2: the mask path '{path}' {words}" in masked


def test_listed_but_absent_files_are_named_with_their_line(tmp_path: Path) -> None:
    spec = table(tmp_path, f"{HEAD}{ROW}nut,gone.png,,ok,test\nnut,b.png,gone_mask.png,bad,test\n")
    message = refused(spec)
    assert "error: gone.png: listed in list.csv:3, but there is no such file" in message
    assert "error: b.png: has no mask (tried gone_mask.png)" in message
    found = load_dataset(spec, skip_bad=True)
    assert keys(found) == ["a.png"]
    assert [p.key for p in found.problems if p.severity == "error"] == ["gone.png", "b.png"]


HARMLESS = {
    "BOM": "\ufeff" + HEAD + ROW,
    "spaces": " class , file,mask ,label,  split\n nut , a.png ,, ok , test \n",
    "CRLF": (HEAD + ROW).replace("\n", "\r\n"),
    "empty lines": HEAD + "\n" + ROW + "\n,,,,\n",
    "one more column": HEAD.strip() + ",note\n" + ROW.strip() + ",seen\n",
    "no last newline": HEAD + ROW.strip(),
    "quotes and case of the split": HEAD + 'nut,"a.png",,"ok",TEST\n',
}


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_harmless_forms_of_csv_are_read(text: str, tmp_path: Path) -> None:
    found = load_dataset(table(tmp_path, text))
    assert [(s.key, s.category, s.anomalous) for s in found.samples] == [("a.png", "nut", False)]


BROKEN_CSV = {
    "short row": (HEAD + ROW + "nut,b.png\n", "list.csv:3: 2 cells, but the header has 5"),
    "long row": (HEAD + ROW + "nut,b.png,,ok,test,more\n", "list.csv:3: 6 cells, but the header has 5"),
    "missing column": (HEAD.replace("label", "labels") + ROW, "list.csv:1: no column 'label'"),
    "endless cell": (HEAD + 'nut,"a.png,,ok,test\n' + "x" * 200_000, "not valid csv (field larger than"),
    "empty image": (HEAD + "nut,,,ok,test\n", "error: list.csv:2: the field 'image' is empty"),
    "empty class": (HEAD + ",a.png,,ok,test\n", "error: list.csv:2: the class is empty"),
}


@pytest.mark.parametrize(("text", "words"), BROKEN_CSV.values(), ids=BROKEN_CSV)
def test_broken_csv_is_refused_with_file_and_line(text: str, words: str, tmp_path: Path) -> None:
    assert words in refused(table(tmp_path, text))


BROKEN_JSON = {
    "json syntax": ("meta.json", '{"test": {"nut": [}}', "meta.json:1: not valid JSON"),
    "too deep": ("meta.json", "[" * 100_000, "meta.json:1: not valid JSON (nested too deeply)"),
    "too long": ("meta.json", "1" * 5000, "meta.json:1: not valid JSON (a number is too long)"),
    "other keys": (
        "meta.json",
        '{"evaluate": {}}',
        "no key fits `records` of the description; the keys are evaluate",
    ),
    "no classes": ("meta.json", '{"test": []}', "meta.json test: an object with keys is expected, not list"),
    "no list": ("meta.json", '{"test": {"nut": {}}}', "a list of records is expected, not dict"),
    "no object": (
        "meta.json",
        '{"test": {"nut": ["a.png"]}}',
        "nut[0]: a record must be an object with keys, not str",
    ),
    "jsonl syntax": ("full-shot.jsonl", '\n{"image_path": \n', "full-shot.jsonl:2: not valid JSON"),
}


@pytest.mark.parametrize(("name", "text", "words"), BROKEN_JSON.values(), ids=BROKEN_JSON)
def test_broken_json_is_refused_with_its_place(name: str, text: str, words: str, tmp_path: Path) -> None:
    write(tmp_path, {name: text})
    with pytest.raises(DatasetError) as caught:
        load_dataset("meta_json" if name == "meta.json" else "aaclip_jsonl", tmp_path)
    assert words in str(caught.value)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    spec = table(tmp_path, HEAD)
    (tmp_path / "list.csv").write_bytes(HEAD.encode() + b"nu\xe9,a.png,,ok,test\n")
    assert "list.csv: not UTF-8 text" in refused(spec)


@pytest.mark.parametrize("label", ["anomolous", "2", ""])
def test_unknown_labels_are_listed(label: str, tmp_path: Path) -> None:
    message = refused(table(tmp_path, f"{HEAD}{ROW}nut,b.png,,{label},test\nnut,c.png,,{label},test\n"))
    assert (
        f"error: list.csv:3: unknown label '{label}' (and in 1 more); correct it; known are ok, 0, bad, 1"
        in message
    )


@pytest.mark.parametrize("label", ["0", "0.0", "ok", "1", "1.0", "bad"])
def test_labels_are_compared_as_numbers(label: str, tmp_path: Path) -> None:
    found = load_dataset(table(tmp_path, f"{HEAD}nut,a.png,,{label},test\n"))
    assert found.samples[0].anomalous is (label in ("1", "1.0", "bad"))


def test_truth_values_of_json_are_labels(tmp_path: Path) -> None:
    touch(tmp_path, ["a.png", "b.png"])
    records = [{"img_path": path, "anomaly": path == "b.png"} for path in ("a.png", "b.png")]
    write(tmp_path, {"meta.json": json.dumps({"test": {"nut": records}})})
    assert triples(load_dataset("meta_json", tmp_path)) == {("a.png", "", 0), ("b.png", "", 1)}


def test_numbers_that_cannot_be_padded_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"labels.csv": "id, hemorrhage\n0, 1\nx1, 0\n"})
    touch(tmp_path, ["head_ct/000.png"])
    with pytest.raises(
        DatasetError, match=r"error: labels.csv:3: 'x1' of 'id' is not a whole number; correct"
    ):
        load_dataset("headct", tmp_path)


def test_rows_of_classes_that_are_not_listed_are_noted(tmp_path: Path) -> None:
    spec = table(tmp_path, f"{HEAD}{ROW}bolt,b.png,,ok,test\n")
    write(tmp_path, {"mine.toml": TABLE.replace("[[samples]]", '[classes]\nnut = "nut"\n\n[[samples]]')})
    found = load_dataset(spec)
    assert keys(found) == ["a.png"]
    assert found.notes[0] == "note: list.csv: not used: 1 image of classes that are not in [classes]: bolt"


def test_unknown_folders_of_a_closed_list_of_anomalies_are_refused(tmp_path: Path) -> None:
    toml = TREE + 'anomaly_when = { specie = ["dent"] }\n'
    message = refused(tree(tmp_path, toml=toml))
    assert "error: nut/test/hole/0.png: unknown label 'hole'; correct it; known are good, dent" in message


def test_rules_of_another_split_are_not_used(tmp_path: Path) -> None:
    toml = (
        TREE + '\n[[samples]]\nsplit = "train"\nclass = "nut"\nimage = "more/{stem}.png"\nlabel = "normal"\n'
    )
    spec = tree(tmp_path, "more/1.png", toml=toml)
    assert keys(load_dataset(spec)) == FILES[:2]
    assert "more/1.png" in keys(load_dataset(spec, split="train", allow_missing=True))


def test_masks_that_decide_labels_must_be_there_and_readable(tmp_path: Path) -> None:
    touch(tmp_path, ["test/1.png", "test/2.png", "test/3.png", "test/3_GT.png"])
    Image.new("L", (2, 2), 1).save(tmp_path / "test/1_GT.png")
    with pytest.raises(DatasetError) as caught:
        load_dataset("ksdd2", tmp_path)
    assert "error: test/2.png: has no mask (tried test/2_GT.png)" in str(caught.value)
    assert "error: test/3_GT.png: " in str(caught.value)
    assert keys(load_dataset("ksdd2", tmp_path, skip_bad=True)) == ["test/1.png"]


def test_one_image_under_two_labels_is_an_error(tmp_path: Path) -> None:
    spec = table(tmp_path, f"{HEAD}{ROW}nut,a.png,,bad,test\nnut,b.png,,ok,test\n")
    assert (
        "error: a.png: listed under two labels or classes (list.csv:2 and list.csv:3); keep the right one"
        in refused(spec)
    )
    assert keys(load_dataset(spec, skip_bad=True)) == ["b.png"]


def test_one_image_twice_or_in_two_splits_is_a_warning(tmp_path: Path) -> None:
    found = load_dataset(table(tmp_path, f"{HEAD}{ROW}{ROW}nut,b.png,,ok,test\nnut,b.png,,ok,train\n"))
    assert keys(found) == ["a.png", "b.png"]
    assert found.notes[:2] == (
        "warning: a.png: listed 2 times, used once",
        "warning: b.png: listed in split 'train' as well",
    )


def test_rows_of_an_unusual_split_are_counted(tmp_path: Path) -> None:
    found = load_dataset(table(tmp_path, f"{HEAD}{ROW}nut,b.png,,ok,tset\n"))
    assert found.notes[0].startswith("warning: list.csv: not used: 1 row of an unusual split 'tset';")


# Links


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    spec = tree(tmp_path, "shelf/5.png")
    (tmp_path / "nut/test/good/9.png").symlink_to("../../../shelf/5.png")
    assert "nut/test/good/9.png" in keys(load_dataset(spec))


def test_links_that_leave_the_folder_are_refused_unless_allowed(tmp_path: Path) -> None:
    spec = tree(tmp_path / "set")
    touch(tmp_path, ["outside/7.png"])
    (tmp_path / "set/nut/test/good/9.png").symlink_to(tmp_path / "outside/7.png")
    (tmp_path / "set/bolt").symlink_to(tmp_path / "outside")
    message = refused(spec)
    assert "error: nut/test/good/9.png: a link that leaves the dataset's folder" in message
    assert "error: bolt: a link that leaves the dataset's folder" in message
    assert "allow it with --follow-outside" in message
    assert "nut/test/good/9.png" in keys(load_dataset(spec, follow_outside=True))


def test_dangling_links_are_errors(tmp_path: Path) -> None:
    spec = tree(tmp_path)
    (tmp_path / "nut/test/good/9.png").symlink_to("gone.png")
    (tmp_path / "nut/test/good/8.png").symlink_to("8.png")
    message = refused(spec)
    assert "error: nut/test/good/9.png: a link that leads nowhere" in message
    assert "error: nut/test/good/8.png: a link that leads nowhere" in message


def test_a_loop_of_folders_is_not_followed(tmp_path: Path) -> None:
    spec = tree(tmp_path)
    (tmp_path / "nut/test/again").symlink_to("../..")
    found = load_dataset(spec)
    assert keys(found) == FILES[:2]
    assert found.notes == ("note: nut/test/again: a link back to a folder above it, not followed",)


def test_a_linked_folder_that_is_listed_already_is_not_listed_again(tmp_path: Path) -> None:
    spec = tree(tmp_path)
    (tmp_path / "all_nuts").symlink_to("nut")
    found = load_dataset(spec)
    assert found.categories == ("nut",)
    assert found.notes == ("note: all_nuts: a link to a folder that is already listed, not followed",)


def test_one_file_linked_under_two_labels_is_an_error(tmp_path: Path) -> None:
    spec = tree(tmp_path)
    (tmp_path / "nut/test/good/9.png").symlink_to("../hole/0.png")
    assert "nut/test/hole/0.png: is the same file as nut/test/good/9.png, under two labels" in refused(spec)
    assert keys(load_dataset(spec, skip_bad=True)) == ["nut/test/good/0.png"]


# Names and folders


def test_suffixes_in_any_case(tmp_path: Path) -> None:
    more = [
        "nut/test/good/1.PNG",
        "nut/test/good/2.JPEG",
        "nut/test/hole/3.Jpg",
        "nut/ground_truth/hole/3_mask.PNG",
    ]
    found = load_dataset(tree(tmp_path, *more))
    assert len(found.samples) == 5
    assert ("nut/test/hole/3.Jpg", "nut/ground_truth/hole/3_mask.PNG", 1) in triples(found)


@pytest.mark.parametrize(
    "name",
    [
        "nut/test/good/Thumbs.db",
        "nut/test/good/.DS_Store",
        "nut/test/good/desktop.ini",
        "nut/test/good/._0.png",
        "nut/test/.ipynb_checkpoints/0.png",
        ".hidden/test/good/0.png",
        "__MACOSX/nut/test/good/0.png",
        "nut/test/good/readme.txt",
        "meta.json",
    ],
)
def test_foreign_and_hidden_names_are_ignored(name: str, tmp_path: Path) -> None:
    found = load_dataset(tree(tmp_path, name))
    assert keys(found) == FILES[:2]
    assert found.notes == ()


def test_unexpected_folders_are_not_labelled_but_noted(tmp_path: Path) -> None:
    touch(tmp_path, ["yes/y1.jpg", "no/n1.jpg", "pred/p1.jpg", "masks/m1.jpg"])
    found = load_dataset("br35h", tmp_path)
    assert triples(found) == {("yes/y1.jpg", "", 1), ("no/n1.jpg", "", 0)}
    assert found.notes[0] == "note: folders that the description does not name are not used: masks, pred"


def test_folders_that_are_no_listed_class_are_noted(tmp_path: Path) -> None:
    toml = TREE.replace("[[samples]]", '[classes]\nnut = "nut"\n\n[[samples]]')
    found = load_dataset(tree(tmp_path, "bolt/test/good/0.png", toml=toml))
    assert found.categories == ("nut",)
    assert found.notes == ("note: folders that the description does not name are not used: bolt",)


def test_images_of_a_class_made_of_several_captures_must_be_listed(tmp_path: Path) -> None:
    toml = TREE.replace(
        "[[samples]]", '[classes]\nnut_hole = "nut"\n\n[[samples]]\nclass = "{class}_{specie}"'
    )
    found = load_dataset(tree(tmp_path, toml=toml))
    assert keys(found) == ["nut/test/hole/0.png"]
    assert any(
        "not used: 1 image of classes that are not in [classes]: nut_good" in note for note in found.notes
    )


def test_names_in_unicode_and_with_spaces(tmp_path: Path) -> None:
    root = tmp_path / "Prüfstücke 日本"
    name = "nut/test/good/grün 1 – kopie" + "x" * 180 + ".png"
    found = load_dataset(tree(root, name))
    assert name in keys(found)


def test_names_of_macos_archives_are_paired_and_keyed_in_composed_form(tmp_path: Path) -> None:
    apart, composed = (unicodedata.normalize(form, "grün") for form in ("NFD", "NFC"))
    assert apart != composed
    spec = tree(tmp_path, f"nut/test/hole/{apart}.png", f"nut/ground_truth/hole/{composed}_mask.png")
    found = load_dataset(spec)
    (sample,) = [s for s in found.samples if composed in s.key]
    assert sample.image.name == f"{apart}.png"
    assert sample.mask is not None and sample.mask.exists() and sample.image.exists()
    listed = load_dataset(table(tmp_path / "t", f"{HEAD}nut,{composed}.png,,ok,test\n", f"{apart}.png"))
    assert keys(listed) == [f"{composed}.png"]


def test_names_that_differ_only_by_case_are_noted(tmp_path: Path) -> None:
    found = load_dataset(tree(tmp_path, "nut/test/good/a.png", "nut/test/good/A.png"))
    assert len(found.samples) == 4
    assert found.notes == (
        "note: nut/test/good/a.png: differs from nut/test/good/A.png only by case: one is lost on some disks",
    )


def test_a_tree_that_is_there_twice_is_used_once(tmp_path: Path) -> None:
    names = ["yes/Y1.jpg", "no/1 no.jpeg"]
    touch(tmp_path / "brainmri", [*names, *(f"brain_tumor_dataset/{name}" for name in names)])
    assert keys(load_dataset("brainmri", tmp_path)) == ["no/1 no.jpeg", "yes/Y1.jpg"]
    touch(tmp_path / "nested", [f"brain_tumor_dataset/{name}" for name in names])
    nested = load_dataset("brainmri", tmp_path / "nested")
    assert nested.root == tmp_path / "nested/brain_tumor_dataset"
    assert keys(nested) == ["no/1 no.jpeg", "yes/Y1.jpg"]


def test_a_listed_class_without_samples_is_an_error_unless_allowed(tmp_path: Path) -> None:
    toml = TREE.replace("[[samples]]", '[classes]\nbolt = "bolt"\nnut = "nut"\n\n[[samples]]')
    spec = tree(tmp_path, toml=toml)
    assert "error: no test sample of class bolt; complete the download, or use --allow-missing" in refused(
        spec
    )
    assert "no test sample of class bolt" in refused(spec, skip_bad=True)
    found = load_dataset(spec, allow_missing=True)
    assert found.categories == ("nut",)
    assert found.notes[0].startswith("warning: no test sample of class bolt")


def test_no_samples_at_all_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"mine.toml": TREE})
    touch(tmp_path, ["nut/train/good/0.png"])
    assert "No test image of dataset 'mine' found." in refused(str(tmp_path / "mine.toml"))


def test_nothing_usable_is_an_error_even_when_bad_files_are_skipped(tmp_path: Path) -> None:
    spec = table(tmp_path, f"{HEAD}nut,gone.png,,ok,test\n")
    assert "has no usable sample" in refused(spec, skip_bad=True)


def test_classes_with_one_label_are_noted(tmp_path: Path) -> None:
    found = load_dataset(tree(tmp_path, "bolt/test/good/0.png"))
    assert found.notes == ("note: only normal images, so no image AUROC: bolt",)


def test_other_counts_than_published_are_warned_about_per_class(tmp_path: Path) -> None:
    expect = (
        "[expect]\nnormal = 4\nanomaly = 1\n\n[expect.categories]\nnut = [1, 1]\nbolt = [3, 0]\n\n[[samples]]"
    )
    found = load_dataset(tree(tmp_path, "bolt/test/good/0.png", toml=TREE.replace("[[samples]]", expect)))
    assert [note for note in found.notes if "the full set" in note] == [
        "warning: in all: 2 normal and 1 anomalous images, the full set has 4 and 1",
        "warning: class bolt: 1 normal and 0 anomalous images, the full set has 3 and 0",
    ]


def test_a_folder_without_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tree(tmp_path)
    real = os.scandir

    def scandir(path: str | Path) -> os._ScandirIterator[str]:
        if str(path).endswith("hole") and "test" in str(path):
            raise PermissionError(13, "Permission denied")
        return real(str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    assert "error: nut/test/hole: the folder cannot be read (Permission denied)" in refused(spec)


def test_all_problems_are_listed_at_once_and_long_lists_are_cut(tmp_path: Path) -> None:
    spec = tree(tmp_path, *(f"nut/test/hole/{i}.png" for i in range(1, 31)))
    message = refused(spec)
    assert message.count("has no mask") == 20
    assert "has 30 problems; correct them, or leave bad files out with --skip-bad:" in message
    assert "... and 10 more" in message
    assert len(survey_dataset(spec).problems) == 30
