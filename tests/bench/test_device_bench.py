"""``zsad bench device`` on the CPU: every part, a budget that runs out, what differs and what breaks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import GOLDENS
from tests.kit import tiny
from tests.kit.terminal import call
from zsadbench.bench import bench_device, device, parts
from zsadbench.bench.device import PARTS
from zsadbench.bench.visa import IMAGES, write_visa
from zsadbench.engine import encoder
from zsadbench.images import transfer


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)


@pytest.fixture(scope="module")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one small file."""
    folder = tmp_path_factory.mktemp("goldens")
    (folder / "musc").mkdir()
    shutil.copy(GOLDENS / "musc" / "musc_parts_s0.npz", folder / "musc")
    return folder


def rows(found: list[dict[str, Any]], part: str) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in found if row["part"] == part}


def test_every_part_has_its_rows_and_the_file_holds_them(
    goldens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "device.json"
    words = ["clip", "anomalyclip", "--smoke", "--device", "cpu", "--goldens", goldens, "--out", out]
    assert call("bench", "device", *words) == 0
    printed = capsys.readouterr()
    assert f"written to {out}" in printed.out and "visa: " in printed.err
    kept = json.loads(out.read_text())
    found = kept["rows"]
    assert list(kept["about"]["seconds"]) == list(PARTS) and kept["about"]["zsadbench"]
    assert {row["state"] for row in found} == {"ok", "measured", "left out"}
    assert rows(found, "goldens fp32")["musc"]["state"] == "ok"
    assert 0 < rows(found, "goldens fp32")["musc"]["value"] <= 1
    assert rows(found, "goldens bf16")["musc"]["state"] == "measured"
    assert list(rows(found, "methods")) == list(rows(found, "overlap"))[:2] == ["clip", "anomalyclip"]
    assert {row["note"] for row in list(rows(found, "overlap").values())[:2]} == {"evidence bit-equal"}
    assert rows(found, "overlap")["all methods"]["note"] == "no proof for this device: miniatures"
    (one, *batches) = rows(found, "towers").values()
    tower = 24 * (2 * 37 * 12 * 128**2 + 4 * 37**2 * 128) + 2 * 36 * 128 * 3 * 14**2 + 2 * 37 * 128 * 96
    assert one["value"] * 1e12 == pytest.approx(tower) and len(batches) == 4
    assert all(row["value"] > 0 for row in found if row["state"] == "measured")
    (category,) = rows(found, "category")
    assert category == "musc relates 6 images"
    assert list(rows(found, "visa")) == ["clip on 24 images", "the pass", "maps and all metrics"]


def test_what_there_is_no_time_for_is_told(goldens: Path) -> None:
    found = bench_device("cpu", smoke=True, goldens=goldens, minutes=1e-9)
    assert [(row["part"], row["state"]) for row in found.rows] == [(name, "left out") for name in PARTS]
    assert not found.failed


def test_goldens_that_are_not_there_and_checkers_that_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = bench_device("cpu", smoke=True, goldens=tmp_path, only=["goldens"]).rows
    assert row["state"] == "left out" and row["note"] == f"{tmp_path}: no <method>/*.npz"
    monkeypatch.setattr("zsadbench.bench.goldens.CHECKOUT", tmp_path)
    (row,) = bench_device("cpu", smoke=True, goldens=GOLDENS, only=["goldens"]).rows
    assert row["note"] == "the checkers are not in a wheel; run this in a checkout"


def test_evidence_that_differs_fails_and_what_breaks_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    download, batches = transfer.Lanes.download, []

    def wrong(lanes: transfer.Lanes, tensors: Any) -> Callable[[], list[Tensor]]:
        batches.append(1)
        first, *rest = tensors
        return download(lanes, [first * (1 + 1e-6) if len(batches) == 3 else first, *rest])

    monkeypatch.setattr(transfer.Lanes, "download", wrong)
    found = bench_device("cpu", smoke=True, only=["methods"], specs=["clip", "musc", "nothing"])
    overlap = rows(found.rows, "overlap")
    assert overlap["clip"]["state"] == "failed" and overlap["clip"]["note"] == "evidence differs in score"
    assert overlap["musc"]["state"] == "ok"
    assert overlap["all methods"]["note"] == "evidence differs: clip; the path stays off"
    assert rows(found.rows, "methods")["nothing"]["note"].startswith("UsageError: unknown method 'nothing'")
    assert len(found.failed) == 3


def test_all_methods_equal_on_their_own_towers_is_the_proof() -> None:
    trial = parts.Trial(torch.device("cpu"), Path(), Path(), False, ())
    trial.equal = dict.fromkeys(parts.all_methods(), True)
    (row,) = device._proof(trial)
    assert row["state"] == "ok" and transfer.proof(trial.where).is_file()
    del trial.equal["clip"]
    (row,) = device._proof(trial)
    assert row["note"] == "no proof for this device: not compared: clip"
    trial.equal["musc"] = False
    (row,) = device._proof(trial)
    assert row["state"] == "failed" and not transfer.proof(trial.where).exists()


def test_generated_pictures_are_as_many_and_as_large_as_visas(tmp_path: Path) -> None:
    assert IMAGES == 2162
    assert write_visa(tmp_path / "few", 3, shrink=32) == 24  # one of each kind at least
    assert 290 < write_visa(tmp_path, 300, shrink=8) < 310
    files = sorted((tmp_path / "pcb3").rglob("*.JPG"))
    assert len({file.read_bytes() for file in files}) == len(files) > 1
    with Image.open(files[0]) as image:
        assert image.size == (1562 // 8, 960 // 8)
