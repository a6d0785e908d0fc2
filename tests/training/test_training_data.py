"""What can be learned from: a dataset needs masks, and a defect in one of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.kit.factory import make_folder, save
from zsadbench.data.load import load_dataset, subset
from zsadbench.errors import DatasetError
from zsadbench.samples import Dataset
from zsadbench.training.data import require_masks


def masks(folder: Path, *values: int) -> Dataset:
    """Give the anomalous images masks of one value each, and return the dataset."""
    for number, value in enumerate(values):
        save(folder / f"bolt/ground_truth/hole/{number}_mask.png", np.full((40, 40), value))
    return load_dataset(str(folder))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "parts", ("bolt",), each=3)


def test_one_defect_is_enough(folder: Path) -> None:
    require_masks(load_dataset(str(folder)))
    require_masks(masks(folder, 0, 0, 1))


def test_masks_without_a_defect_are_refused(folder: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"all 3 masks are empty \(mask_positive = '>0'\), so there is no defect"
    ):
        require_masks(masks(folder, 0, 0, 0))


def test_what_is_a_defect_is_the_description_s_word(folder: Path) -> None:
    text = (
        'format = 1\nid = "m"\ntitle = "M"\ndomain = "any"\nmasks = "required"\nmask_positive = {}\n'
        '[[samples]]\nimage = "{{class}}/test/{{specie}}/{{stem}}.png"\n'
        'mask = "{{class}}/ground_truth/{{specie}}/{{stem}}_mask.png"\n'
        'normal_when = {{ specie = ["good"] }}\n'
    )
    masks(folder, 3, 3, 3)
    for rule, good in (('">2"', True), ('">3"', False), ("[3]", True), ("[1, 2]", False)):
        (folder / "m.toml").write_text(text.format(rule))
        dataset = load_dataset(str(folder / "m.toml"))
        if good:
            require_masks(dataset)
        else:
            with pytest.raises(DatasetError, match="masks are empty"):
                require_masks(dataset)


def test_normal_images_alone_are_refused_and_a_folder_of_masks_is_read(folder: Path) -> None:
    for path in list((folder / "bolt/ground_truth/hole").iterdir()):
        parts = path.with_name(path.name.removesuffix("_mask.png"))
        parts.mkdir()
        save(parts / "000.png", np.zeros((40, 40)))
        path.rename(parts / "001.png")
    dataset = load_dataset(str(folder))
    assert all(sample.mask and sample.mask.is_dir() for sample in dataset.samples if sample.anomalous)
    require_masks(dataset)
    with pytest.raises(DatasetError, match=": 1 normal image and no defect to learn from"):
        require_masks(subset(dataset, limit=1))
