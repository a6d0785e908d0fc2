"""One checkpoint from several datasets: told apart, with the provenance of all, refused on each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load

from tests.cli.test_cli import zsad
from tests.kit import tiny
from tests.kit.factory import make_folder, save
from zsadbench.clip.checkpoints import Provenance, joined, read_provenance, save_checkpoint
from zsadbench.data.load import load_dataset
from zsadbench.errors import UsageError
from zsadbench.files import sha256_of
from zsadbench.inputs import Preprocess
from zsadbench.run.zeroshot import checkpoints_for, marks_of
from zsadbench.training.data import TrainingSet
from zsadbench.training.run import (
    Trained,
    TrainRequest,
    find_training_samples,
    joint_words,
    resolve_joint,
    train,
)
from zsadbench.training.stages import Stage
from zsadbench.training.variations import Mosaic

SETTINGS = {"size": "42", "clusters": "2", "normal": "{}", "anomalous": "damaged {}", "templates": "a {}."}
CLIP = {"backbone": "tiny-l14", "weights": "random", "activation": "gelu"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two datasets that both have a category ``bolt``."""
    root = tmp_path_factory.mktemp("data")
    return [
        make_folder(root / "parts", ("bolt",), each=2),
        make_folder(root / "goods", ("bolt", "cloth"), each=2, side=44),
    ]


@pytest.fixture(autouse=True)
def _one_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsadbench.training.run.load_clip", tiny.load)


def trained(folders: list[Path], out: Path, method: str = "adaclip", **settings: str) -> Trained:
    options: dict[str, Any] = {"epochs": 2, "workers": 1, "quiet": True, "device": "cpu", **CLIP}
    return train(method, [str(one) for one in folders], out, settings=SETTINGS | settings, **options)


@pytest.fixture(scope="module")
def checkpoint(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "both.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "zsadbench.training.run.load_clip", lambda b, device: tiny.clip("tiny-l14", "gelu", "bicubic")
        )
        trained(folders, out)
    return out


def test_provenance_of_both(folders: list[Path], checkpoint: Path) -> None:
    about = read_provenance(checkpoint)
    assert about.dataset == "parts + goods" and about.datasets == ("parts", "goods")
    assert set(about.images) == {sha256_of(path) for one in folders for path in one.rglob("test/*/*.png")}
    assert about.complete and len(about.images) == 12


def test_both_datasets_are_refused(folders: list[Path], checkpoint: Path, tmp_path: Path) -> None:
    for folder in folders:
        data = load_dataset(str(folder))
        with pytest.raises(UsageError, match=f"images of '{data.id}' .* no zero-shot test"):
            checkpoints_for("adaclip", "tiny-l14", data, [checkpoint])
        assert marks_of(checkpoint, data) == ["seen data"]
    other = load_dataset(str(make_folder(tmp_path / "others", ("nut",), each=2, side=50)))
    assert marks_of(checkpoint, other) == []


def test_half_known_images_leave_no_dataset_unmarked(folders: list[Path], tmp_path: Path) -> None:
    """Of an imported checkpoint the images of one set may be known, those of the other not."""
    parts, goods = (load_dataset(str(one)) for one in folders)
    path = tmp_path / "half.safetensors"
    hashes = tuple(parts.hashes.values())
    about = Provenance("adaclip", dataset=joined(["parts", "goods"]), images=hashes, unhashed=8)
    save_checkpoint(path, {}, about)
    assert marks_of(path, parts) == marks_of(path, goods) == ["seen data"]
    other = load_dataset(str(make_folder(tmp_path / "others", ("nut",), each=2, side=50)))
    assert marks_of(path, other) == ["training images unknown"]


def test_an_interrupted_training_equals_an_unbroken_one(
    folders: list[Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = Stage.step, [0]

    def counted(self: Stage, *args: Any) -> dict[str, float]:
        taken[0] += 1
        if taken[0] == 15:  # in the second epoch of twelve images
            raise KeyboardInterrupt
        return real(self, *args)

    out = tmp_path / "both.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "step", counted)
        with pytest.raises(KeyboardInterrupt):
            trained(folders, out)
    trained(folders, out)
    a, b = (load(path.read_bytes()) for path in (out, checkpoint))
    assert a.keys() == b.keys() and all(bool((a[name] == b[name]).all()) for name in a)
    with monkeypatch.context() as patch:  # the same datasets in another order are another training
        taken[0] = 0
        patch.setattr(Stage, "step", counted)
        with pytest.raises(KeyboardInterrupt):
            trained(folders, tmp_path / "c.safetensors")
    with pytest.raises(UsageError, match="an interrupted training with other data"):
        trained(folders[::-1], tmp_path / "c.safetensors")


def test_categories_are_told_apart_and_worded_by_their_dataset(folders: list[Path]) -> None:
    data = tuple(load_dataset(str(one)) for one in folders)
    both = TrainingSet(data, Preprocess(42), "bilinear50")
    assert {sample.category for sample in both.samples} == {"parts/bolt", "goods/bolt", "goods/cloth"}
    assert [both.dataset_of(index).id for index in (0, 3, 4, 11)] == ["parts", "parts", "goods", "goods"]
    assert {s.category for s in TrainingSet(data[:1], Preprocess(42), "nearest").samples} == {"bolt"}
    found = resolve_joint("adaclip", data, TrainRequest(settings=SETTINGS, **CLIP))  # type: ignore[arg-type]
    words = joint_words([one for one, _ in found], data)
    assert words == {"parts/bolt": "bolt", "goods/bolt": "bolt", "goods/cloth": "cloth"}


def test_mosaics_on_one_of_the_datasets(tmp_path: Path) -> None:
    """Four different images of the category; those of the other dataset stay whole."""
    for name in ("a", "b"):
        for number in range(4):
            grey = np.full((20, 20, 3), 60 * number + 30)
            kind = "good" if number % 2 else "hole"
            save(tmp_path / name / "x" / "test" / kind / f"{number}.png", grey)
            if kind == "hole":
                mask = np.full((20, 20), 255)
                save(tmp_path / name / "x" / "ground_truth" / kind / f"{number}_mask.png", mask)
    data = tuple(load_dataset(str(tmp_path / name)) for name in ("a", "b"))
    both = TrainingSet(data, Preprocess(40), "nearest")
    mosaic = Mosaic(1.0, tiles="images", on=("b",))
    assert mosaic(both, 0, np.random.default_rng(0)) is None
    orders = set()
    for seed in range(8):
        example = mosaic(both, 5, np.random.default_rng(seed))
        assert example is not None
        fields = [(slice(r, r + 10), slice(c, c + 10)) for r in (5, 25) for c in (5, 25)]
        tones = [round(float(example.image[0][field].mean()), 3) for field in fields]
        assert len(set(tones)) == 4
        defects = [bool(example.mask[field].all()) for field in fields]
        assert sum(defects) == 2 == sum(bool(example.mask[field].any()) for field in fields)
        orders.add(tuple(tones))
    assert len(orders) > 3


def test_numbers_that_differ_must_be_set_for_all(folders: list[Path], tmp_path: Path) -> None:
    mvtec = make_folder(tmp_path / "mvtec", ("bolt",), each=2)
    data = [find_training_samples(str(one), TrainRequest()) for one in (folders[0], mvtec)]
    with pytest.raises(
        UsageError, match=r"another epochs for each of these datasets \(parts: 15, mvtec: 3\)"
    ):
        resolve_joint("april-gan", data, TrainRequest())
    request = TrainRequest(epochs=2, settings={"mosaic": "0"})
    first, second = resolve_joint("april-gan", data, request)
    assert first[1] == second[1] and first[1].epochs == 2


def test_a_dataset_named_twice_or_not_at_all(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--dataset parts is named twice"):
        trained([folders[0], folders[0]], tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="there is no dataset"):
        trained([], tmp_path / "a.safetensors")


def test_on_the_command_line(folders: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.safetensors"
    words = ["train", "-m", "adaclip", "-d", str(folders[0]), "-d", str(folders[1]), "--out", str(out), "-q"]
    words += [
        "--backbone",
        "tiny-l14",
        "--weights",
        "random",
        "--limit",
        "2",
        "--epochs",
        "1",
        "--workers",
        "1",
    ]
    words += [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    code, _, err = zsad(capfd, *words, "--device", "cpu")
    assert code == 0, err
    code, text, _ = zsad(capfd, "checkpoints", "show", str(out))
    assert code == 0 and "parts + goods" in text and read_provenance(out).datasets == ("parts", "goods")
