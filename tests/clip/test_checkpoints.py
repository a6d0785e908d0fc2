"""Checkpoints: the round trip, and every way a file can be wrong, in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zsadbench.clip.checkpoints import Provenance, load_checkpoint, read_provenance, save_checkpoint
from zsadbench.errors import MethodError, RecordError, WeightsError

SHAPES = {"fc.0.weight": (3, 4), "fc.0.bias": (3,)}
PROVENANCE = Provenance(
    "clip-ad+",
    {"lr": 1e-4, "backbone": {"name": "ViT-B-16"}},
    "visa",
    ("ab", "cd"),
    5,
    42,
    "",
    {"torch": "2"},
)


def tensors() -> dict[str, Tensor]:
    return {"fc.0.weight": torch.arange(12.0).view(3, 4), "fc.0.bias": torch.tensor([1.0, -2.0, 0.5])}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "linear.safetensors"
    save_checkpoint(path, tensors(), PROVENANCE)
    return path


def test_round_trip(file: Path) -> None:
    loaded = load_checkpoint(file, "clip-ad+", SHAPES)
    assert list(loaded) == list(SHAPES)
    for key, value in tensors().items():
        assert torch.equal(loaded[key], value)
    assert read_provenance(file) == PROVENANCE


def test_equal_checkpoints_are_equal_bytes(file: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "again.safetensors", tensors(), PROVENANCE)
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, {key: value.half() for key, value in tensors().items()}, PROVENANCE)
    assert {value.dtype for value in load_checkpoint(path, "clip-ad+", SHAPES).values()} == {torch.float32}


def test_no_checkpoint_says_how_to_come_by_one() -> None:
    with pytest.raises(MethodError, match=r"zsad train --method april-gan .* zsad checkpoints import"):
        load_checkpoint("", "april-gan", SHAPES)


def test_another_method(file: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"linear\.safetensors: a checkpoint of 'clip-ad\+', not of 'april-gan'"
    ):
        load_checkpoint(file, "april-gan", SHAPES)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (
            {**SHAPES, "fc.0.weight": (3, 8)},
            r"fc\.0\.weight is 3 x 4 in the file, 3 x 8 expected; .*\(ViT-B-16\)",
        ),
        ({"fc.0.weight": (5, 4), "fc.0.bias": (5,)}, r"is 3 x 4 in the file, 5 x 4 expected \(and 1 more\)"),
        ({**SHAPES, "fc.1.bias": (3,)}, r"1 missing, first fc\.1\.bias"),
        ({"fc.0.weight": (3, 4)}, r"1 surplus, first fc\.0\.bias"),
    ],
)
def test_other_shapes(file: Path, shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        load_checkpoint(file, "clip-ad+", shapes)


@pytest.mark.parametrize("kept", [0, 5, 100, -3])
def test_truncated(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(
        WeightsError, match=r"linear\.safetensors: (cannot be read as a checkpoint|the file is empty)"
    ):
        load_checkpoint(file, "clip-ad+", SHAPES)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "epoch_5.pth"
    torch.save({"linear_layers": tensors()}, path)
    with pytest.raises(WeightsError, match="zsad checkpoints import FILE"):
        load_checkpoint(path, "clip-ad+", SHAPES)


@pytest.mark.parametrize(
    "header", [None, {}, {"provenance": "nonsense"}, {"provenance": "[1]"}, {"provenance": "{}"}]
)
def test_safetensors_without_provenance(tmp_path: Path, header: dict[str, str] | None) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(tensors(), path, header)
    with pytest.raises(WeightsError, match="no provenance"):
        load_checkpoint(path, "clip-ad+", SHAPES)


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        (torch.tensor([1, 2, 3]), "holds int64, not real numbers"),
        (torch.tensor([1.0, float("nan"), 3.0]), "infinite or undefined"),
    ],
)
def test_values_that_are_no_weights(tmp_path: Path, bias: Tensor, words: str) -> None:
    path = tmp_path / "odd.safetensors"
    save_checkpoint(path, {**tensors(), "fc.0.bias": bias}, PROVENANCE)
    with pytest.raises(WeightsError, match=words):
        load_checkpoint(path, "clip-ad+", SHAPES)


def test_absent_and_unwritable(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such checkpoint file"):
        load_checkpoint(tmp_path / "none.safetensors", "clip-ad+", SHAPES)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError):
        save_checkpoint(tmp_path / "file" / "x.safetensors", tensors(), PROVENANCE)
