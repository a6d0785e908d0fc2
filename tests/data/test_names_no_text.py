"""File names that are no UTF-8 text: named, left out when asked, and never the end of a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import zsadbench
from tests.kit.factory import make_folder
from zsadbench.data.load import list_images, load_dataset, survey_dataset
from zsadbench.errors import DatasetError
from zsadbench.files import contents_digest, digest_of
from zsadbench.scoring import score_run

WORDS = "its name is not UTF-8 text; rename it, or leave it out with --skip-bad"


def odd(path: Path, name: bytes) -> Path:
    """Return the path of ``name`` in the folder ``path``."""
    return Path(os.fsdecode(os.fsencode(path) + b"/" + name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "parts", each=2)


def test_an_image_is_named_and_left_out(folder: Path) -> None:
    good = folder / "bolt" / "test" / "good"
    shutil.copy(good / "0.png", odd(good, b"caf\xe9.png"))
    (odd(good, b"notes\xff.txt")).write_text("no image")
    with pytest.raises(DatasetError, match=r"bolt/test/good/caf\\xe9\.png: " + WORDS) as caught:
        load_dataset(str(folder))
    assert "has 1 problem" in str(caught.value)
    str(caught.value).encode()
    kept = load_dataset(str(folder), skip_bad=True)
    assert len(kept.samples) == 8 and kept.digest
    assert len(list_images([good])[0]) == 3  # for predict a name is only a name


def test_folders_of_categories_and_defects_are_named(folder: Path) -> None:
    (folder / "cloth").rename(odd(folder, b"tissu\xe9"))
    (folder / "bolt/test/hole").rename(odd(folder, b"bolt/test/trou\xe9"))
    found = survey_dataset(str(folder))
    assert {p.key for p in found.problems if p.severity == "error"} == {r"tissu\xe9", r"bolt/test/trou\xe9"}
    assert len(load_dataset(str(folder), skip_bad=True).samples) == 2


def test_the_dataset_itself_may_have_such_a_name(folder: Path, tmp_path: Path) -> None:
    root = odd(tmp_path, b"pi\xe8ces")
    folder.rename(root)
    options = {"backbone": "tiny-l14", "weights": "random", "settings": {"size": "28"}, "quiet": True}
    frame = zsadbench.run("clip", str(root), out=tmp_path / "r", workers=1, **options)
    (run_dir,) = {path.parent for path in (tmp_path / "r").rglob("observation.json")}
    again = score_run(run_dir, "common-1", settings={})
    assert len(frame) == len(again.categories) == 2


def test_digests_take_any_text() -> None:
    texts = ["caf\udce9", "\ud800", "é"]
    assert len({digest_of(texts[:n]) for n in range(4)}) == 4
    assert len({contents_digest({text: "0"}) for text in texts}) == 3
