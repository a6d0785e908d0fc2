"""Nothing is tested on what was trained on: by hashes, and by the id where not all are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.kit.factory import make_folder
from zsadbench.clip.checkpoints import Provenance, describe, read_provenance, save_checkpoint
from zsadbench.data.load import load_dataset
from zsadbench.errors import UsageError
from zsadbench.run.zeroshot import SEEN, UNKNOWN, checkpoints_for, marks_of, refuse_seen
from zsadbench.samples import Dataset


@pytest.fixture
def parts(tmp_path: Path) -> Dataset:
    return load_dataset(str(make_folder(tmp_path / "parts", ("bolt",), each=2)))


def saved(folder: Path, provenance: Provenance) -> Path:
    path = folder / "mine.safetensors"
    save_checkpoint(path, {"a": torch.zeros(1)}, provenance)
    return path


def test_the_id_decides_where_no_hash_is_known(parts: Dataset, tmp_path: Path) -> None:
    path = saved(tmp_path, Provenance("anomalyclip", dataset="parts"))
    with pytest.raises(
        UsageError, match=r"trained on 'parts', which of its images is not known.*--allow-seen"
    ):
        refuse_seen(path, parts)
    with pytest.raises(UsageError, match="no zero-shot test"):
        checkpoints_for("anomalyclip", "tiny-l14", parts, [path])
    assert checkpoints_for("anomalyclip", "tiny-l14", parts, [path], allow_seen=True) == [path]
    assert marks_of(path, parts) == [SEEN]
    other = replace(parts, id="others")
    refuse_seen(path, other)
    assert marks_of(path, other) == [UNKNOWN]


def test_the_id_decides_where_only_a_part_is_known(parts: Dataset, tmp_path: Path) -> None:
    """None of the known hashes is tested, but the others may be."""
    path = saved(tmp_path, Provenance("anomalyclip", dataset="parts", images=("another",), unhashed=3))
    with pytest.raises(UsageError, match="which of its images is not known"):
        refuse_seen(path, parts)
    assert marks_of(path, replace(parts, id="others")) == [UNKNOWN]


def test_hashes_alone_decide_where_all_are_known(parts: Dataset, tmp_path: Path) -> None:
    path = saved(tmp_path, Provenance("anomalyclip", dataset="parts", images=("another",)))
    refuse_seen(path, parts)
    assert marks_of(path, parts) == []
    seen = tuple(parts.hashes.values())[:1]
    path = saved(tmp_path, Provenance("anomalyclip", dataset="elsewhere", images=seen, unhashed=5))
    with pytest.raises(UsageError, match="trained on 1 of the 4 images of 'parts'"):
        refuse_seen(path, parts)


def test_a_checkpoint_of_that_dataset_is_not_chosen_from_the_folder(parts: Dataset, tmp_path: Path) -> None:
    saved(tmp_path, Provenance("anomalyclip", dataset="parts"))
    environ = {"ZSAD_CHECKPOINTS": str(tmp_path)}
    with pytest.raises(Exception, match="needs a checkpoint"):
        checkpoints_for("anomalyclip", "tiny-l14", parts, [], environ=environ)
    assert checkpoints_for("anomalyclip", "tiny-l14", replace(parts, id="x"), [], environ=environ)


def test_a_header_of_before_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, Provenance("clip-ad+", images=("a", "b")))
    assert read_provenance(path).complete and read_provenance(path).unhashed == 0
    assert describe(path)["made by"] == "zsad train"
    path = saved(tmp_path, Provenance("clip-ad+", images=("a",), unhashed=7, source="epoch_15.pth"))
    assert describe(path)["made by"] == "import of epoch_15.pth"
    assert describe(path)["images"] == "1 known, 7 unknown"
