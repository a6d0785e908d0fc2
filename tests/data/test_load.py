from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from tests.kit.trees import touch, triples, write
from zsadbench.data.load import list_images, load_dataset, subset, survey_dataset
from zsadbench.errors import DatasetError
from zsadbench.samples import Dataset, Problem

TILES = [f"MT_{kind}/Imgs/{i}.{s}" for kind in ("Free", "Crack") for i in range(3) for s in ("jpg", "png")]


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZSAD_DATA", raising=False)


@pytest.fixture
def several(tmp_path: Path) -> Dataset:
    names = [
        f"{c}/test/{kind}/{i:03}.png"
        for c, n in (("a", 40), ("b", 8))
        for kind in ("good", "hole")
        for i in range(n)
    ]
    masks = [n.replace("test", "ground_truth").replace(".png", "_mask.png") for n in names if "hole" in n]
    return load_dataset(str(touch(tmp_path / "several", names + masks)))


def test_the_data_folder_is_the_dataset_or_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "mtd", TILES)
    direct = load_dataset("mtd", tmp_path / "mtd")
    above = load_dataset("mtd", tmp_path)
    monkeypatch.setenv("ZSAD_DATA", str(tmp_path))
    variable = load_dataset("mtd")
    assert direct.root == above.root == variable.root == tmp_path / "mtd"
    assert direct.samples == above.samples == variable.samples
    monkeypatch.setenv("ZSAD_DATA", str(tmp_path / "mtd"))
    assert load_dataset("mtd").samples == direct.samples


def test_an_absent_dataset_names_places_tree_and_download(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load_dataset("mpdd", tmp_path)
    first, *rest = str(caught.value).splitlines()
    for place in ("mpdd", "mpdd/MPDD", "mpdd/anomaly_dataset", "MPDD", "anomaly_dataset"):
        assert f"{tmp_path}/{place}" in first
    assert rest == [
        "Expected below its folder:",
        "  {class}/{train|test}/{specie}/{stem}.png",
        "  {class}/ground_truth/{specie}/{stem}_mask.png",
        "Download: https://github.com/stepanje/MPDD",
    ]
    with pytest.raises(
        DatasetError, match="Give its folder with --data, or set ZSAD_DATA to a folder that holds"
    ):
        load_dataset("mpdd")


@pytest.mark.parametrize("spec", ["mpd", "no/such/folder"])
def test_unknown_datasets_are_refused(spec: str) -> None:
    with pytest.raises(DatasetError, match=f"'{spec}' is no known dataset, .toml file or folder"):
        load_dataset(spec)


def test_a_description_is_looked_for_beside_its_file_before_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'format = 1\nid = "m"\ntitle = "M"\ndomain = "any"\nmasks = "none"\n[[samples]]\nclass = "x"\n'
    write(tmp_path / "own", {"m.toml": text + 'image = "{stem}.png"\nlabel = "normal"\n'})
    touch(tmp_path / "data/m", ["2.png"])
    monkeypatch.setenv("ZSAD_DATA", str(tmp_path / "data"))
    assert load_dataset(str(tmp_path / "own/m.toml")).samples[0].key == "2.png"
    touch(tmp_path / "own", ["1.png"])
    assert load_dataset(str(tmp_path / "own/m.toml")).samples[0].key == "1.png"
    assert load_dataset(str(tmp_path / "own/m.toml"), tmp_path / "data").samples[0].key == "2.png"


def test_samples_carry_what_the_description_says(tmp_path: Path) -> None:
    found = load_dataset("mtd", touch(tmp_path, TILES))
    sample = found.samples[0]
    assert dataclasses.astuple(sample) == (
        "MT_Crack/Imgs/0.jpg",
        "magnetic_tile",
        True,
        tmp_path / "MT_Crack/Imgs/0.jpg",
        tmp_path / "MT_Crack/Imgs/0.png",
        "Crack",
        {},
        None,
    )
    assert [s.key for s in found.samples] == sorted(s.key for s in found.samples)
    assert found.words == {"magnetic_tile": "magnetic tile"}
    assert (found.masks, found.mask_positive, found.mask_mismatch, found.empty_mask) == (
        "required",
        ">0",
        "error",
        "keep",
    )
    assert found.counts() == {"magnetic_tile": (3, 3)}


def test_samples_stand_in_class_order_then_by_key(tmp_path: Path) -> None:
    touch(tmp_path, [f"{c}/test/good/{i}.png" for c in ("zipper", "carpet", "bottle") for i in (10, 2, 1)])
    found = load_dataset("mvtec", tmp_path, allow_missing=True)
    assert found.categories == ("carpet", "bottle", "zipper")
    assert [s.key for s in found.samples][:4] == [
        "carpet/test/good/1.png",
        "carpet/test/good/10.png",
        "carpet/test/good/2.png",
        "bottle/test/good/1.png",
    ]


def test_the_digest_depends_on_the_list_and_not_on_the_place(tmp_path: Path) -> None:
    one = load_dataset("mtd", touch(tmp_path / "one", TILES))
    two = load_dataset("mtd", touch(tmp_path / "two/mtd", reversed(TILES)).parent)
    assert one.digest == two.digest
    lines = "".join(
        f"MT_{kind}/Imgs/{i}.jpg\tmagnetic_tile\t{label}\t{f'MT_{kind}/Imgs/{i}.png' if label else ''}\n"
        for kind, label in (("Crack", 1), ("Free", 0))
        for i in range(3)
    )
    assert one.digest == hashlib.sha256(lines.encode()).hexdigest()
    assert subset(one, limit=5).digest != one.digest


# Folders without a description


def test_a_folder_in_mvtec_layout_is_found_out(tmp_path: Path) -> None:
    names = [
        f"{c}/{p}"
        for c in ("metal_nut", "cable")
        for p in ("train/good/0.png", "test/good/0.png", "test/cut/0.JPG")
    ]
    touch(
        tmp_path / "My Set", [*names, "metal_nut/ground_truth/cut/0_mask.png", "cable/ground_truth/cut/0.bmp"]
    )
    found = load_dataset(str(tmp_path / "My Set"))
    assert triples(found) == {
        ("cable/test/cut/0.JPG", "cable/ground_truth/cut/0.bmp", 1),
        ("cable/test/good/0.png", "", 0),
        ("metal_nut/test/cut/0.JPG", "metal_nut/ground_truth/cut/0_mask.png", 1),
        ("metal_nut/test/good/0.png", "", 0),
    }
    assert (found.id, found.title, found.masks) == ("my_set", "My Set", "required")
    assert found.words == {"cable": "cable", "metal_nut": "metal nut"}
    assert found.notes == ()


def test_a_folder_in_the_working_directory_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "cups", ["good/1.png", "bad/1.png"])
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("cups").samples) == 2
    monkeypatch.chdir(tmp_path / "cups")
    assert load_dataset(".").words == {"cups": "cups"}


def test_a_folder_of_one_category_is_found_out(tmp_path: Path) -> None:
    found = load_dataset(str(touch(tmp_path / "blue_tube", ["test/ok/1.png", "test/ko/1.png"])))
    assert triples(found) == {("test/ok/1.png", "", 0), ("test/ko/1.png", "", 1)}
    assert (found.words, found.masks) == ({"blue_tube": "blue tube"}, "none")


def test_a_folder_of_good_and_bad_is_found_out(tmp_path: Path) -> None:
    found = load_dataset(
        str(touch(tmp_path / "cups", ["good/1.png", "good/2.jpg", "bad/1.png", "other/1.png"]))
    )
    assert triples(found) == {("good/1.png", "", 0), ("good/2.jpg", "", 0), ("bad/1.png", "", 1)}
    assert found.categories == ("cups",)
    assert found.notes == ("note: folders that the description does not name are not used: other",)


@pytest.mark.parametrize("name", ["meta.json", "full-shot.jsonl"])
def test_a_folder_with_a_shared_list_is_found_out(name: str, tmp_path: Path) -> None:
    text = {
        "meta.json": '{"test": {"nut": [{"img_path": "a.png", "cls_name": "nut", "anomaly": 0}]}}',
        "full-shot.jsonl": '{"image_path": "a.png", "class_name": "nut", "label": 0.0}',
    }[name]
    write(tmp_path, {name: text})
    found = load_dataset(str(touch(tmp_path, ["a.png"])))
    assert triples(found) == {("a.png", "", 0)}
    assert found.categories == ("nut",)


def test_other_folders_are_refused_with_the_known_layouts(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"have no labels \(. \(1\)\): use them with `zsad predict`"):
        load_dataset(str(touch(tmp_path / "flat", ["1.png"])))
    with pytest.raises(DatasetError, match=r"have no labels \(a/b/c \(1\)\)"):
        load_dataset(str(touch(tmp_path / "deep", ["a/b/c/1.png"])))
    with pytest.raises(DatasetError, match="is a folder already; leave out --data"):
        load_dataset(str(touch(tmp_path / "cups", ["good/1.png", "bad/1.png"])), tmp_path)


def test_images_are_listed_for_prediction(tmp_path: Path) -> None:
    touch(
        tmp_path,
        ["in/b.PNG", "in/a.jpg", "in/._a.jpg", "in/notes.txt", "in/below/c.png", "one.webp", "none/x.txt"],
    )
    found, left = list_images([tmp_path / "one.webp", tmp_path / "in"])
    assert found == [tmp_path / name for name in ("one.webp", "in/a.jpg", "in/b.PNG", "in/below/c.png")]
    assert left == []
    with pytest.raises(
        DatasetError, match=r"none: no image in this folder or below it \(looked for png, jpg"
    ):
        list_images([tmp_path / "none"])
    with pytest.raises(DatasetError, match="gone: no such file or folder; check the spelling"):
        list_images([tmp_path / "gone"])


# Parts of a dataset


def test_a_limit_is_shared_out_over_category_and_label(several: Dataset) -> None:
    assert len(several.samples) == 96
    assert subset(several, limit=24).counts() == {"a": (10, 10), "b": (2, 2)}
    assert subset(several, limit=4).counts() == {"a": (1, 1), "b": (1, 1)}
    assert subset(several, limit=3).counts() == {"a": (1, 1), "b": (1, 0)}
    assert subset(several, limit=96) is several
    assert subset(several, limit=1000) is several


@pytest.mark.parametrize("limit", [1, 2, 5, 17, 50, 95])
def test_a_limit_is_kept_exactly_and_in_order(several: Dataset, limit: int) -> None:
    part = subset(several, limit=limit)
    assert len(part.samples) == limit
    assert [several.samples.index(s) for s in part.samples] == sorted(
        several.samples.index(s) for s in part.samples
    )
    assert part.samples == subset(several, limit=limit).samples
    assert part.notes[-1] == f"note: a part of the set: {limit} of 96 samples"


def test_a_limit_takes_samples_spread_over_each_group(several: Dataset) -> None:
    part = subset(several, limit=24)
    kept = [s.key for s in part.samples if s.category == "a" and not s.anomalous]
    assert kept == [f"a/test/good/{i:03}.png" for i in range(0, 40, 4)]


def test_categories_are_chosen(several: Dataset) -> None:
    part = subset(several, categories=["b"])
    assert part.categories == ("b",)
    assert Counter(s.category for s in part.samples) == {"b": 16}
    assert subset(several, categories=["b"], limit=6).counts() == {"b": (3, 3)}
    with pytest.raises(DatasetError, match=r"has no category 'c'. Known: a, b"):
        subset(several, categories=["c"])
    assert subset(several, categories=[]) is several
    with pytest.raises(DatasetError, match="A limit of 0 samples leaves none"):
        subset(several, limit=0)


def test_a_survey_reports_instead_of_raising(tmp_path: Path) -> None:
    touch(tmp_path, [*TILES, "MT_Crack/Imgs/9.jpg"])
    found = survey_dataset("mtd", tmp_path)
    assert [p.severity for p in found.problems] == ["error", "warning"]
    assert "MT_Crack/Imgs/9.jpg" not in [s.key for s in found.samples]
    with pytest.raises(DatasetError, match="has 1 problem; correct"):
        load_dataset("mtd", tmp_path)


def test_a_problem_is_one_line() -> None:
    assert str(Problem("error", "a.png", "is broken", "mend it")) == "error: a.png: is broken; mend it"
    assert str(Problem("note", "", "is odd")) == "note: is odd"


# Size


class Entry:
    """What os.scandir yields, without a file."""

    def __init__(self, name: str, folder: bool) -> None:
        self.name, self.folder = name, folder

    def is_symlink(self) -> bool:
        return False

    def is_dir(self) -> bool:
        return self.folder

    def is_file(self) -> bool:
        return not self.folder


def test_large_folders_are_listed_once_each_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2500
    inside = {
        "": ["nut", "bolt"],
        "nut": ["train", "test", "ground_truth"],
        "bolt": ["train", "test", "ground_truth"],
        "test": ["good", "hole"],
        "ground_truth": ["hole"],
    }
    seen: list[str] = []

    def scandir(path: Path) -> contextlib.nullcontext[list[Entry]]:
        place = path.relative_to(tmp_path).as_posix()
        seen.append(place)
        names = inside.get(path.name if place != "." else "")
        if names is not None:
            return contextlib.nullcontext([Entry(name, True) for name in names])
        form = "{:06}_mask.png" if "ground_truth" in place else "{:06}.png"
        return contextlib.nullcontext([Entry(form.format(i), False) for i in range(count)])

    text = (
        'format = 1\nid = "m"\ntitle = "M"\ndomain = "any"\nmasks = "required"\n[[samples]]\n'
        'image = "{class}/{split:train|test}/{specie}/{stem}.png"\n'
        'mask = "{class}/ground_truth/{specie}/{stem}_mask.png"\nnormal_when = { specie = ["good"] }\n'
    )
    write(tmp_path, {"m.toml": text})
    monkeypatch.setattr(os, "scandir", scandir)
    tracemalloc.start()
    try:
        found = load_dataset(str(tmp_path / "m.toml"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.counts() == {"bolt": (count, count), "nut": (count, count)}
    assert found.notes == ()
    assert len(seen) == len(set(seen))
    assert not any("train" in place for place in seen)
    assert peak < 4 * count * 1500
