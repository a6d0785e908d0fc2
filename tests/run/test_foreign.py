"""Maps of other code bases stand on our boards, under our metrics."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import zsadbench
from tests.kit.factory import make_folder
from zsadbench.errors import DatasetError, RecordError, UsageError
from zsadbench.metrics import evaluate
from zsadbench.run.foreign import read_map, score_maps_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "parts", categories=("bolt",))


def read_grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def maps_for(folder: Path, out: Path, suffix: str) -> dict[str, np.ndarray]:
    """Write a map per image: noise plus a part of the truth."""
    written = {}
    rng = np.random.RandomState(0)
    for image in sorted(folder.rglob("test/*/*.png")):
        key = image.relative_to(folder)
        truth = folder / "bolt" / "ground_truth" / "hole" / f"{image.stem}_mask.png"
        mask = read_grey(truth) / 255 if "hole" in key.parts else np.zeros((40, 40))
        values = (0.6 * rng.rand(40, 40) + 0.4 * mask).astype(np.float32)
        if suffix == ".png":
            values = (values * 60000).astype(np.uint16)
        path = out / key.with_suffix(suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(path, values)
        elif suffix == ".npz":
            np.savez(path, map=values, other=np.zeros(3))
        else:
            cv2.imwrite(str(path), values)
        written[key.as_posix()] = values.astype(np.float32)
    return written


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tiff", ".png"])
def test_every_format_gives_the_metrics_of_its_values(folder: Path, tmp_path: Path, suffix: str) -> None:
    maps = maps_for(folder, tmp_path / "maps", suffix)
    record = score_maps_record(tmp_path / "maps", str(folder), name="theirs", out=tmp_path / "results")
    masks = [
        read_grey(folder / "bolt" / "ground_truth" / "hole" / f"{Path(key).stem}_mask.png") > 0
        if "hole" in key
        else np.zeros((40, 40), bool)
        for key in maps
    ]
    labels = np.array(["hole" in key for key in maps])
    scores = np.array([values.max() for values in maps.values()])
    expected = evaluate(list(maps.values()), masks, labels, scores)
    for name in ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro"):
        assert record.value("bolt", name) == pytest.approx(expected[name], abs=1e-12), name
    assert record.method == "theirs" and "foreign maps" in record.marks


def test_image_scores_may_come_from_a_csv(folder: Path, tmp_path: Path) -> None:
    maps = maps_for(folder, tmp_path / "maps", ".npy")
    lines = [f"{key},{float('hole' in key)}" for key in maps]
    (tmp_path / "scores.csv").write_text("key, score\n" + "\n".join(lines))
    frame = zsadbench.score_maps(
        tmp_path / "maps", str(folder), scores=tmp_path / "scores.csv", out=tmp_path / "results"
    )
    assert frame["image_auroc"].tolist() == [1.0]


def test_what_is_missing_or_wrong_is_named(folder: Path, tmp_path: Path) -> None:
    maps = maps_for(folder, tmp_path / "maps", ".npy")
    first = next(iter(maps))
    path = tmp_path / "maps" / Path(first).with_suffix(".npy")
    keep = path.read_bytes()

    def refused(match: str, **options: object) -> None:
        with pytest.raises(RecordError, match=match):
            score_maps_record(tmp_path / "maps", str(folder), out=tmp_path / "r", **options)  # type: ignore[arg-type]

    path.unlink()
    refused(r"no map for 1 samples: bolt/test/good/0\.png")
    path.write_bytes(keep[:50])
    refused(r"0\.npy: cannot be read as an anomaly map")
    np.save(path, np.full((40, 40), np.nan, np.float32))
    refused(r"0\.npy: the map holds numbers that are not finite")
    np.save(path, np.zeros((3, 40, 40), np.float32))
    refused(r"0\.npy: an anomaly map is one array of numbers \(H, W\); this is float32 \(3, 40, 40\)")
    path.write_bytes(keep)
    (tmp_path / "scores.csv").write_text("key,score\nx,high\n")
    refused(r"scores\.csv: line 2: score 'high' is no number", scores=tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_text("name,score\n")
    refused(r"scores\.csv: needs the columns 'key' and 'score'", scores=tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_text("key,score\nx,1\n")
    refused(r"scores\.csv: no score for 6 samples", scores=tmp_path / "scores.csv")
    with pytest.raises(UsageError, match="unknown protocol"):
        score_maps_record(tmp_path / "maps", str(folder), protocol="mine")
    with pytest.raises(DatasetError, match="no known dataset"):
        score_maps_record(tmp_path / "maps", "nowhere")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RecordError, match=r"a\.npy: cannot be read as an anomaly map"):
        read_map(tmp_path / "a.npy")


def test_another_size_is_brought_to_the_evaluation_size(folder: Path, tmp_path: Path) -> None:
    for key in maps_for(folder, tmp_path / "maps", ".npy"):
        np.save(
            tmp_path / "maps" / Path(key).with_suffix(".npy"), np.arange(16, dtype=np.float32).reshape(4, 4)
        )
    native = score_maps_record(tmp_path / "maps", str(folder), out=tmp_path / "r")
    common = score_maps_record(tmp_path / "maps", str(folder), out=tmp_path / "r", protocol="common-1")
    assert native.protocol["size"] == "native" and common.protocol["size"] == 518
    assert native.value("bolt", "image_auroc") == 0.5


def test_maps_and_scores_beyond_float32_are_ranked_exactly(folder: Path, tmp_path: Path) -> None:
    maps = maps_for(folder, tmp_path / "maps", ".npy")
    wanted = score_maps_record(tmp_path / "maps", str(folder), name="plain", out=tmp_path / "results")
    for key, values in maps.items():
        np.save((tmp_path / "maps" / key).with_suffix(".npy"), values.astype(np.float64) + 1e8)
    lines = [f"{key},{1 - (1 if 'hole' in key else 2) * 1e-10!r}" for key in maps]
    (tmp_path / "scores.csv").write_text("key,score\n" + "\n".join(lines))
    far = score_maps_record(
        tmp_path / "maps", str(folder), name="far", out=tmp_path / "results", scores=tmp_path / "scores.csv"
    )
    assert far.value("bolt", "image_auroc") == 1
    for name in ("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro"):
        assert far.value("bolt", name) == wanted.value("bolt", name), name
    assert {row.image_score for row in far.images()} == {1 - 1e-10, 1 - 2e-10}
