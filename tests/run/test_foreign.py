"""Maps of other code bases stand on our boards, under our metrics."""

from __future__ import annotations

import io
import itertools
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import zsadbench
from tests.kit.factory import make_folder
from zsadbench.errors import DatasetError, RecordError, UsageError
from zsadbench.images.mapfiles import _transposed, read_map, shape_of
from zsadbench.metrics import evaluate
from zsadbench.run.foreign import score_maps_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "parts", categories=("bolt",))


def read_grey(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def maps_for(folder: Path, out: Path, suffix: str, masks: bool = True) -> dict[str, np.ndarray]:
    """Write a map per image: noise plus a part of the truth."""
    written = {}
    rng = np.random.RandomState(0)
    for image in sorted(folder.rglob("test/*/*.png")):
        key = image.relative_to(folder)
        truth = folder / "bolt" / "ground_truth" / "hole" / f"{image.stem}_mask.png"
        mask = read_grey(truth) / 255 if masks and "hole" in key.parts else np.zeros((40, 40))
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
    refused(r"0\.npy: an anomaly map is one array of real numbers \(H, W\); this is float32 \(3, 40, 40\)")
    path.write_bytes(keep)
    (tmp_path / "scores.csv").write_text("key,score\nx,high\n")
    refused(r"scores\.csv: line 2: score 'high' is no finite number", scores=tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_text("name,score\n")
    refused(r"scores\.csv: needs the columns 'key' and 'score'", scores=tmp_path / "scores.csv")
    (tmp_path / "scores.csv").write_text("key,score\nx,1\n")
    refused(r"scores\.csv: no score for 6 samples", scores=tmp_path / "scores.csv")
    with pytest.raises(UsageError, match="unknown protocol"):
        score_maps_record(tmp_path / "maps", str(folder), protocol="mine")
    with pytest.raises(DatasetError, match="no known dataset"):
        score_maps_record(tmp_path / "maps", "nowhere")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    objects = np.array([[Evil(tmp_path / "ran")] * 2] * 2, dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", map=objects)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(RecordError, match=rf"{name}: an anomaly map .* this is Python objects \(2, 2\)"):
            read_map(tmp_path / name)
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def claiming(shape: tuple[int, ...], dtype: str = "<f4", held: bytes = b"\0" * 64) -> bytes:
    """Return a numpy file whose header says more than it holds."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + held


def zipped(content: bytes, *, name: str = "map.npy") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def png(width: int, height: int) -> bytes:
    """Return the beginning of a PNG file of 8-bit grey."""
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def tiff(width: int, height: int) -> bytes:
    """Return a TIFF file of 32-bit reals without pixels."""
    tags = [(256, width), (257, height), (258, 32), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    tags += [(279, 4), (339, 3)]
    entries = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.npy", claiming((10**6, 10**6)), "is more than 178,956,970 pixels"),
        ("a.npy", claiming((10**4, 10**4)), r"claims 400,000,000 bytes of \(10000, 10000\), but holds"),
        ("a.npz", zipped(claiming((10**6, 10**6))), "is more than 178,956,970 pixels"),
        ("a.npz", zipped(claiming((10**4, 10**4))), "claims 400,000,000 bytes"),
        ("a.npz", zipped(claiming((2**40, 2**40), held=bytes(10**6))), "is more than"),
        ("a.png", png(10**9, 10**9), "is more than 178,956,970 pixels"),
        ("a.png", png(10**4, 10**4), "no whole PNG or TIFF image"),
        ("a.tiff", tiff(10**6, 10**6), "is more than 178,956,970 pixels"),
        ("a.tiff", tiff(10**4, 0), r"this is \(0, 10000\)"),
        ("a.npy", b"", "the file is empty"),
        ("a.npz", b"", "the file is empty"),
        ("a.tiff", b"", "the file is empty"),
        ("a.npy", b"no array", "cannot be read as an anomaly map"),
        ("a.npz", b"no archive", "cannot be read as an anomaly map"),
        ("a.npz", zipped(b"no array"), "cannot be read as an anomaly map"),
        ("a.npz", zipped(b"")[:-30], "cannot be read as an anomaly map"),
        ("a.png", b"<html>", "a page of HTML or XML, not the file"),
        ("a.tiff", b"II*\0\x08\0\0\0", "cannot be read as an anomaly map"),
        ("a.npy", claiming((0, 40)), r"this is float32 \(0, 40\)"),
        ("a.npy", claiming((40,)), r"this is float32 \(40,\)"),
        ("a.npy", claiming((2, 2), "<c8"), r"this is complex64 \(2, 2\)"),
        ("a.npy", claiming((2, 2), "<U4"), r"this is <U4 \(2, 2\)"),
        ("a.npy", claiming((2, 2), "|V4"), r"this is \|V4 \(2, 2\)"),
        ("a.npy", claiming((2, 2), "<m8[s]"), r"this is timedelta64\[s\] \(2, 2\)"),
    ],
    ids=itertools.count(),  # archives hold the time they were made
)
def test_a_file_is_judged_by_its_header(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(RecordError, match=words) as caught:
            read_map(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable() and "pickle" not in str(caught.value)


def test_a_zip_with_two_arrays_names_the_map(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    with pytest.raises(RecordError, match="it holds a, b; name the array 'map'"):
        read_map(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz")
    with pytest.raises(RecordError, match="it holds nothing"):
        read_map(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tiff", ".png"])
def test_the_header_says_what_is_read(suffix: str, tmp_path: Path) -> None:
    values, path = np.arange(15, dtype=np.uint16).reshape(3, 5), tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, values.astype(">f2")[None, :, :, None])
    elif suffix == ".npz":
        np.savez_compressed(path, np.asfortranarray(values))
    else:
        cv2.imwrite(str(path), values)
    assert shape_of(path) == (3, 5) and np.array_equal(read_map(path), values)
    if suffix == ".tiff":
        for kind in (np.float32, np.float64):
            cv2.imwrite(str(path), values.astype(kind))
            assert shape_of(path) == (3, 5) and np.array_equal(read_map(path), values)
        Image.fromarray(values.astype(np.float32)).save(path, big_tiff=True)
        assert shape_of(path) == (3, 5) and np.array_equal(read_map(path), values)


def wide(folder: Path) -> Path:
    """Make every picture of a folder 40 high and 60 wide."""
    for path in folder.rglob("*.png"):
        Image.open(path).resize((60, 40), Image.Resampling.NEAREST).save(path)
    return folder


@pytest.mark.parametrize(
    ("shape", "refused"),
    [((60, 40), True), ((37, 25), True), ((40, 60), False), ((37, 37), False), ((25, 37), False)],
)
def test_maps_on_their_side_are_refused(
    shape: tuple[int, int], refused: bool, folder: Path, tmp_path: Path
) -> None:
    wide(folder)
    for key in maps_for(folder, tmp_path / "maps", ".npy", masks=False):
        np.save((tmp_path / "maps" / key).with_suffix(".npy"), np.random.RandomState(0).rand(*shape))
    if not refused:
        score_maps_record(tmp_path / "maps", str(folder), out=tmp_path / "r")
        return
    words = rf"{shape[0]} x {shape[1]} \(rows x columns\) lies on its side: the image bolt/test/.* is 40 x 60"
    with pytest.raises(RecordError, match=words):
        score_maps_record(tmp_path / "maps", str(folder), out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_nearly_square_maps_tell_no_side(tmp_path: Path) -> None:
    assert not _transposed((224, 225), (501, 500)) and _transposed((500, 501), (501, 500))


def test_two_samples_share_no_map(folder: Path, tmp_path: Path) -> None:
    good = folder / "bolt" / "test" / "good"
    Image.open(good / "0.png").save(good / "0.jpg")
    maps_for(folder, tmp_path / "maps", ".npy")
    words = r"0\.npy: would be the map of bolt/test/good/0\.jpg and of bolt/test/good/0\.png; name maps after"
    with pytest.raises(RecordError, match=words):
        score_maps_record(tmp_path / "maps", str(folder), out=tmp_path / "r")
    for name in ("0.png", "0.jpg"):
        np.save(tmp_path / "maps" / "bolt" / "test" / "good" / f"{name}.npy", np.eye(40))
    score_maps_record(tmp_path / "maps", str(folder), out=tmp_path / "r")


def test_images_are_not_taken_for_their_maps(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    with pytest.raises(RecordError, match="no map for 6 samples"):
        score_maps_record(folder, str(folder), out=tmp_path / "r")
    with pytest.raises(RecordError, match="nowhere: no such folder of maps"):
        score_maps_record(tmp_path / "nowhere", str(folder), out=tmp_path / "r")


@pytest.mark.parametrize("head", ["Key,Score", " KEY ; x , score", "score,key"])
def test_scores_are_read_as_people_write_them(head: str, folder: Path, tmp_path: Path) -> None:
    maps, path = maps_for(folder, tmp_path / "maps", ".npy"), tmp_path / "scores.csv"
    rows = [(".\\" + key.replace("/", "\\"), float("hole" in key)) for key in maps]
    text = "".join(f"{s},{k}\n" if head == "score,key" else f"{k},{s}\n" for k, s in rows)
    path.write_text(f"{head}\n{text}", encoding="utf-8-sig")
    if ";" in head:
        with pytest.raises(RecordError, match="needs the columns 'key' and 'score'; has"):
            score_maps_record(tmp_path / "maps", str(folder), scores=path, out=tmp_path / "r")
        return
    record = score_maps_record(tmp_path / "maps", str(folder), scores=path, out=tmp_path / "r")
    assert record.value("bolt", "image_auroc") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("key,score\nx,nan\n", "line 2: score 'nan' is no finite number"),
        ("key,score\nx,1\nx,2\n", "line 3: 'x' has another score before"),
        ("key,score\nx\n", "line 2: score None is no finite number"),
        ("key,score\n" + "x" * 200_000 + ",1\n", "cannot be read"),
        ("", "has None"),
    ],
)
def test_scores_that_cannot_be_meant_are_refused(text: str, words: str, folder: Path, tmp_path: Path) -> None:
    maps_for(folder, tmp_path / "maps", ".npy")
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(RecordError, match=words):
        score_maps_record(tmp_path / "maps", str(folder), scores=tmp_path / "scores.csv", out=tmp_path / "r")


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a\0b", "é" * 101])
def test_a_name_is_one_folder(name: str, folder: Path, tmp_path: Path) -> None:
    maps_for(folder, tmp_path / "maps", ".npy")
    with pytest.raises(UsageError, match="--name"):
        score_maps_record(tmp_path / "maps", str(folder), name=name, out=tmp_path / "r")


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


def test_maps_without_those_of_validation_images_have_no_fixed_threshold(
    folder: Path, tmp_path: Path
) -> None:
    maps_for(folder, tmp_path / "maps", ".npy")
    record = score_maps_record(tmp_path / "maps", str(folder), out=tmp_path / "r", metrics=("pixel_segf1",))
    assert record.value("bolt", "pixel_segf1") is None and record.value("bolt", "pixel_f1max")
    assert record.reasons("pixel_segf1") == [
        "maps of other code come without maps of normal validation images"
    ]
