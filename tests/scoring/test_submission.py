"""A run on MVTec AD 2's private parts becomes what the benchmark server takes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.kit.factory import save
from tests.kit.terminal import call
from zsadbench.data.load import load_dataset
from zsadbench.errors import RecordError, UsageError
from zsadbench.images import half_tiff
from zsadbench.records import Record, find_records
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute
from zsadbench.scoring import StoredMaps, export_submission
from zsadbench.scoring.submission import FILES

SIDES = (40, 56)


def make(root: Path) -> None:
    for place, category in enumerate(("can", "vial")):
        names = [f"validation/good/{i:03}_regular.png" for i in range(2)]
        names += [f"test_private/{i:03}_regular.png" for i in range(2)]
        names += [f"test_private_mixed/{i:03}_mixed.png" for i in range(2)]
        for seed, name in enumerate(names):
            rng = np.random.RandomState(10 * place + seed)
            save(root / category / name, rng.randint(60, 200, (*SIDES, 3)))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    root = tmp_path_factory.mktemp("private")
    make(root / "data/mvtec_ad_2_private")
    request = Request(
        data=root / "data",
        backbone="tiny-b16p",
        weights="random",
        out=root / "results",
        allow_missing=True,
        quiet=True,
        workers=1,
        device="cpu",
    )
    execute(["clip"], ["mvtec_ad_2_private"], request)
    ((found,), _) = find_records([root / "results"])
    return found


def read_half(path: Path) -> NDArray[np.float16]:
    """Read a TIFF by its tags, apart from the code that writes it."""
    content = path.read_bytes()
    order, magic, start = struct.unpack("<2sHI", content[:8])
    assert (order, magic) == (b"II", 42)
    (count,) = struct.unpack_from("<H", content, start)
    tags = {}
    for entry in range(count):
        tag, kind, number, value = struct.unpack_from("<HHII", content, start + 2 + 12 * entry)
        assert number == 1 and kind in (3, 4)
        tags[tag] = value
    assert list(tags) == sorted(tags)
    assert (tags[258], tags[277], tags[339], tags[278]) == (16, 1, 3, tags[257])
    strip = content[tags[273] : tags[273] + tags[279]]
    assert tags[273] + tags[279] == len(content)
    values = zlib.decompress(strip) if tags[259] == 8 else strip
    return np.frombuffer(values, "<f2").reshape(tags[257], tags[256])


def test_a_half_tiff_holds_its_values(tmp_path: Path) -> None:
    values = np.random.RandomState(0).normal(size=(5, 7)).astype(np.float16)
    for compress in (False, True):
        (tmp_path / "one.tiff").write_bytes(half_tiff(values, compress=compress))
        assert np.array_equal(read_half(tmp_path / "one.tiff"), values)


def test_maps_and_masks_are_those_of_the_run(record: Record, tmp_path: Path) -> None:
    found = export_submission(record, tmp_path / "sub")
    written = sorted(path.relative_to(tmp_path / "sub").as_posix() for path in tmp_path.rglob("*.*"))
    names = [f"test_private/{i:03}_regular" for i in range(2)]
    names += [f"test_private_mixed/{i:03}_mixed" for i in range(2)]
    assert written == sorted(
        f"{folder}/{category}/{name}.{suffix}"
        for folder, suffix in (("anomaly_images", "tiff"), ("anomaly_images_thresholded", "png"))
        for category in ("can", "vial")
        for name in names
    )
    for one in found:
        reader = StoredMaps.of(record).reader(one.category)
        maps = {}
        for row, key in enumerate(reader.maps.keys):
            small = reader.maps.render(row, reader.size(row) or reader.maps.own_size(row))
            maps[key] = cv2.resize(small.astype(np.float64), SIDES[::-1], interpolation=cv2.INTER_LINEAR)
        normal = np.concatenate([maps[key].ravel() for key in maps if "/validation/" in key])
        assert one.threshold == pytest.approx(normal.mean() + 3 * normal.std(), rel=1e-12)
        assert np.log2(one.scale) % 1 == 0
        above = []
        for name in names:
            wanted = maps[f"{one.category}/{name}.png"]
            half = read_half(tmp_path / f"sub/anomaly_images/{one.category}/{name}.tiff")
            assert np.array_equal(half, (wanted * one.scale).astype(np.float16))
            assert 0 < abs(half).max() <= 1
            with Image.open(tmp_path / f"sub/anomaly_images_thresholded/{one.category}/{name}.png") as mask:
                assert mask.mode == "L"
                assert np.array_equal(np.asarray(mask), np.where(wanted > one.threshold, 255, 0))
            above.append(float((wanted > one.threshold).mean()))
        assert one.share == pytest.approx(np.mean(above), abs=1e-12)
        few = f"{one.category}: test_private has 2 of {FILES[one.category]}, test_private_mixed has 2 of "
        assert one.missing.startswith(few)


def test_the_command_writes_and_says_what_the_server_misses(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record.path.parents[1]
    assert call("export-submission", run, "--out", tmp_path / "sub", "--compress") == 0
    told = capsys.readouterr()
    assert told.out.splitlines()[0].split() == ["category", "threshold", "above", "it", "files"]
    assert [line.split()[0] for line in told.out.splitlines()[1:]] == ["can", "vial"]
    assert "incomplete, the server refuses it: can: test_private has 2 of 321" in told.err
    assert read_half(tmp_path / "sub/anomaly_images/can/test_private/000_regular.tiff").shape == SIDES
    assert call("export-submission", run, "--out", tmp_path / "sub") == 2
    assert "holds a submission already" in capsys.readouterr().err


def test_a_run_on_other_data_is_refused(record: Record, tmp_path: Path) -> None:
    said = {**record.observation, "dataset": {**record.observation["dataset"], "id": "mvtec_ad_2"}}
    other = Record(record.path, {**record.content, "observation": said})
    with pytest.raises(UsageError, match="zsad run --dataset mvtec_ad_2_private"):
        export_submission(other, tmp_path / "sub")


def test_a_category_without_validation_images_has_no_threshold(tmp_path: Path) -> None:
    make(tmp_path / "mvtec_ad_2_private")
    for path in (tmp_path / "mvtec_ad_2_private/vial/validation/good").iterdir():
        path.unlink()
    request = Request(
        data=tmp_path,
        backbone="tiny-b16p",
        weights="random",
        out=tmp_path / "results",
        allow_missing=True,
        categories=("vial",),
        quiet=True,
        workers=1,
        device="cpu",
    )
    execute(["clip"], ["mvtec_ad_2_private"], request)
    ((found,), _) = find_records([tmp_path / "results"])
    with pytest.raises(RecordError, match="'vial' has no validation image in this run"):
        export_submission(found, tmp_path / "sub")


def test_the_private_parts_have_the_counts_of_the_server(tmp_path: Path) -> None:
    make(tmp_path)
    found = load_dataset("mvtec_ad_2_private", tmp_path, allow_missing=True)
    assert found.counts() == {"can": (6, 0), "vial": (6, 0)}
    assert found.expect is not None
    validation = {"can": 46, "fabric": 43, "fruit_jelly": 37, "rice": 35}
    validation |= {"sheet_metal": 19, "vial": 41, "wallplugs": 33, "walnuts": 48}
    wanted = {name: (2 * FILES[name] + count, 0) for name, count in validation.items()}
    assert dict(found.expect.categories) == wanted
    assert found.expect.total == (sum(count for count, _ in wanted.values()), 0)
