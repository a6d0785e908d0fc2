"""sPRO of a miniature in MVTec LOCO's layout: from files and maps to the record, its draws and its kinds."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.kit import tiny
from tests.kit.factory import save
from zsadbench.boards import boards
from zsadbench.engine import encoder
from zsadbench.errors import DatasetError
from zsadbench.records import Grouping, Record
from zsadbench.run.foreign import score_maps_record
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute
from zsadbench.scoring import by_group, score

IDS = ("pixel_spro", "pixel_spro@0.05")
CONFIG = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 30, "relative_saturation": False},
    {"defect_name": "scratch", "pixel_value": 247, "saturation_threshold": 0.4, "relative_saturation": True},
]
PUSHPINS = "pushpins"


@pytest.fixture
def loco(tmp_path: Path) -> Path:
    """Six normal images and five of each kind of anomaly, the first of which have two overlapping defects."""
    root, random = tmp_path / "mvtec_loco" / PUSHPINS, np.random.RandomState(0)
    for number in range(6):
        save(root / "test" / "good" / f"{number:03}.png", random.randint(80, 160, (40, 50, 3)))
    for kind, value in (("logical_anomalies", 255), ("structural_anomalies", 247)):
        for number in range(5):
            save(root / "test" / kind / f"{number:03}.png", random.randint(80, 160, (40, 50, 3)))
            for file in range(1 + (number == 0)):
                mask = np.zeros((40, 50), np.uint8)
                mask[3 * number + 4 * file : 3 * number + 14, 5 : 15 + 9 * file] = value - 8 * file
                folder = root / "ground_truth" / kind / f"{number:03}"
                save(folder / f"{file:03}.png", np.where(mask == 239, 247, mask))
    (root / "defects_config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def maps(loco: Path, tmp_path: Path) -> Path:
    """Coarse maps, so that scores tie, which find a part of each defect."""
    random = np.random.RandomState(1)
    for image in sorted((loco / "mvtec_loco").rglob("test/*/*.png")):
        values = np.round(random.rand(40, 50), 2)
        folder = loco / "mvtec_loco" / PUSHPINS / "ground_truth" / image.parent.name / image.stem
        for file in folder.glob("*.png") if folder.is_dir() else ():
            values += np.round(0.6 * random.rand(40, 50), 2) * (np.asarray(Image.open(file)) > 0)
        path = tmp_path / "maps" / image.relative_to(loco / "mvtec_loco").with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values.astype(np.float32))
    return tmp_path / "maps"


def by_hand(loco: Path, maps: Path, limit: float, kinds: tuple[str, ...]) -> float:
    """Count as MVTec's evaluation does, at every threshold: each file is a defect."""
    root = loco / "mvtec_loco" / PUSHPINS
    entries: list[tuple[Any, list[tuple[Any, float]]]] = []
    for kind in ("good", *kinds):
        for image in sorted((root / "test" / kind).glob("*.png")):
            own = []
            for file in sorted((root / "ground_truth" / kind / image.stem).glob("*.png")):
                mask = np.asarray(Image.open(file))
                entry = next(e for e in CONFIG if e["pixel_value"] == mask.max())
                area, threshold = int((mask > 0).sum()), float(entry["saturation_threshold"])  # type: ignore[arg-type]
                needed = int(threshold * area) if entry["relative_saturation"] else min(threshold, area)
                own.append((mask > 0, needed))
            entries.append((np.load(maps / PUSHPINS / "test" / kind / f"{image.stem}.npy"), own))
    nothing = np.zeros((40, 50), bool)
    free = [~np.logical_or.reduce([nothing, *(mask for mask, _ in own)]) for _, own in entries]
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.stack([values for values, _ in entries]))[::-1]:
        above = [values >= threshold for values, _ in entries]
        wrong = sum((a & f).sum() for a, f in zip(above, free, strict=True)) / sum(f.sum() for f in free)
        found = [
            min((a & m).sum() / n, 1) for a, (_, own) in zip(above, entries, strict=True) for m, n in own
        ]
        points.append((float(wrong), float(np.mean(found))))
    under = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < limit and x1 > x0:
            end = min(x1, limit)
            under += (end - x0) * (2 * y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    return under / limit


BOTH_KINDS = ("logical_anomalies", "structural_anomalies")


def scored(loco: Path, maps: Path, tmp_path: Path, metrics: tuple[str, ...] = IDS) -> Record:
    return score_maps_record(
        maps, "mvtec_loco", data=loco, categories=[PUSHPINS], out=tmp_path / "r", metrics=metrics
    )


def test_a_record_holds_what_mvtec_s_evaluation_counts(loco: Path, maps: Path, tmp_path: Path) -> None:
    record = scored(loco, maps, tmp_path)
    for name, limit in zip(IDS, (0.3, 0.05), strict=True):
        wanted = by_hand(loco, maps, limit, BOTH_KINDS)
        assert record.value(PUSHPINS, name) == pytest.approx(wanted, abs=1e-9)
        assert record.value(PUSHPINS, name) > record.value(PUSHPINS, name.replace("spro", "aupro"))  # type: ignore[operator]
    (board,) = boards([record])
    assert board.metrics[-2:] == IDS
    plain = scored(loco, maps, tmp_path, ())
    assert not set(IDS) & set(plain.metrics) and "saturations" not in plain.content
    kept = plain.categories[PUSHPINS]
    assert {key: record.categories[PUSHPINS][key] for key in kept} == kept
    assert plain.group == record.group


def test_another_saturation_is_another_number_and_said(loco: Path, maps: Path, tmp_path: Path) -> None:
    first = scored(loco, maps, tmp_path)
    config = loco / "mvtec_loco" / PUSHPINS / "defects_config.json"
    config.write_text(config.read_text().replace("30,", "3,"))
    second = scored(loco, maps, tmp_path)
    assert second.value(PUSHPINS, "pixel_spro") > first.value(PUSHPINS, "pixel_spro")  # type: ignore[operator]
    assert second.content["saturations"] != first.content["saturations"]
    config.write_text("[]")
    with pytest.raises(DatasetError, match=r"000\.png: its value 255 is not in .*defects_config\.json"):
        scored(loco, maps, tmp_path)
    config.unlink()
    (record, none) = scored(loco, maps, tmp_path), "the saturation of some defect is not known"
    assert record.value(PUSHPINS, "pixel_spro") is None and record.reasons("pixel_spro") == [none]
    assert f"pixel_spro is undefined: {none}" in record.content["warnings"]


@pytest.fixture
def run(loco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)
    request = Request(
        data=loco, backbone="tiny-l14", weights="random", settings={"size": "42"}, out=tmp_path / "own",
        quiet=True, workers=1, categories=(PUSHPINS,), metrics=IDS,
    )  # fmt: skip
    (record,) = execute(["clip"], ["mvtec_loco"], request).records
    return record


def test_a_run_has_it_by_kind_and_with_draws(run: Record) -> None:
    whole = run.value(PUSHPINS, "pixel_spro")
    assert whole is not None and 0 < whole < 1
    view = by_group(run, Grouping("kind"))
    assert set(view.categories) == set(BOTH_KINDS)
    kinds = [view.value(kind, "pixel_spro") for kind in BOTH_KINDS]
    assert None not in kinds and kinds[0] != kinds[1]
    (board,) = boards([run], metrics=["pixel_spro"], intervals=True, replicates=100)
    (row,) = board.rows
    interval = row.cell("pixel_spro").interval
    assert interval is not None and interval.low - 1e-9 <= whole <= interval.high + 1e-9


def test_scoring_at_another_size_keeps_the_shares(run: Record) -> None:
    frame = score(run.path.parents[1], protocol="common-1", metrics=["pixel_spro"])
    assert 0 < frame["pixel_spro"].item() < 1
    assert abs(frame["pixel_spro"].item() - (run.value(PUSHPINS, "pixel_spro") or 0)) < 0.1


def test_a_damaged_file_is_told_before_the_first_image(
    loco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "load_clip", lambda *_: pytest.fail("nothing may be loaded"))
    (loco / "mvtec_loco" / PUSHPINS / "defects_config.json").write_text("[1]")
    request = Request(data=loco, out=tmp_path / "own", quiet=True, categories=(PUSHPINS,), metrics=IDS,
                      backbone="tiny-l14", weights="random", settings={"size": "42"})  # fmt: skip
    with pytest.raises(DatasetError, match=r"defects_config\.json: no list of defects"):
        execute(["clip"], ["mvtec_loco"], request)
    assert not (tmp_path / "own").exists()
