"""From records and their evidence to draws: the right images, maps and masks, kept and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit import tiny, toy
from tests.kit.factory import make_folder
from zsadbench.boards import boards, intervals
from zsadbench.boards.intervals import Draws, draws_of
from zsadbench.engine import encoder
from zsadbench.errors import RecordError
from zsadbench.metrics import SEVEN, PixelMetrics
from zsadbench.metrics.bootstrap import resample
from zsadbench.records.records import Record, find_records, read_record
from zsadbench.run.foreign import score_maps
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute
from zsadbench.scoring import StoredMaps
from zsadbench.scoring.code import UserMethods
from zsadbench.scoring.observation import score_run

DRAWS = 120


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of a toy method on two categories of 6 + 6 and one of 3 + 3 images."""

    root = tmp_path_factory.mktemp("run")
    make_folder(root / "data" / "parts", each=6)
    make_folder(root / "data" / "parts", ("nut",), each=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "load_clip", tiny.load)
        request = Request(settings={"gain": "-1"}, out=root / "results", quiet=True, workers=1)
        execute([toy.write(root)], [str(root / "data" / "parts")], request)
    yield root / "results"


@pytest.fixture
def record(source: Path, tmp_path: Path) -> Record:
    """A copy of the run's record, with its evidence, that a test may spoil."""
    shutil.copytree(source, tmp_path / "results")
    (found,), _ = find_records([tmp_path / "results"])
    return found


def users(record: Record) -> UserMethods:
    spec = record.observation["method"].get("spec")
    return UserMethods((spec,) if spec else ())


def draws(record: Record, **options: Any) -> Draws:
    return draws_of(record, replicates=DRAWS, workers=1, users=users(record), **options)


def test_every_metric_of_large_enough_categories_is_drawn(record: Record) -> None:
    found = draws(record)
    metrics = {metric for _, metric in found.values}
    assert metrics == {*record.metrics, "mad"} - {"image_ece"}  # its scores are no probabilities
    assert {category for category, _ in found.values} == {"bolt", "cloth"}
    assert all(each.shape == (DRAWS,) for each in found.values.values())
    assert found.notes == (
        "no interval with fewer than 5 normal or anomalous images, nor for a mean with such a category: nut",
        "rough interval, fewer than 20 normal or anomalous images: bolt, cloth",
    )


def test_draws_are_metrics_of_the_drawn_maps_and_masks(record: Record) -> None:
    found = draws(record)
    reader = StoredMaps.of(record, users=users(record)).reader("cloth")
    rows = sorted(range(12), key=lambda row: reader.maps.keys[row])
    assert found.images["cloth"].keys == tuple(reader.maps.keys[row] for row in rows)
    weights = resample("cloth", found.images["cloth"].labels, DRAWS)
    for draw in (0, DRAWS - 1):
        metrics = PixelMetrics(aupimo=None)
        for column, row in enumerate(rows):
            one, mask = reader.read(row)
            for copy in range(int(weights[draw, column])):
                metrics.update(one, mask, f"{row}#{copy}")
        for name, value in metrics.compute().items():
            if name != "pixel_f1max_threshold":
                drawn = found.values["cloth", name][draw]
                assert drawn == pytest.approx(value, abs=1e-3), name


def test_mad_is_drawn_with_its_seven_metrics(record: Record) -> None:
    found = draws(record)
    seven = [found.values["bolt", metric] for metric in SEVEN]
    assert np.array_equal(found.values["bolt", "mad"], np.mean(seven, axis=0))
    options: Any = {"by": "category", "intervals": True, "replicates": DRAWS, "users": users(record)}
    (board,) = boards([record], metrics=["mad", "rank"], **options)
    bolt, cloth, nut = (row.cell("mad") for row in board.rows)
    assert bolt.interval == pytest.approx(np.percentile(np.mean(seven, axis=0), [2.5, 97.5]), abs=1e-15)
    bounds = np.mean([np.percentile(each, [2.5, 97.5]) for each in seven], axis=0)
    assert bolt.interval and max(abs(bounds - bolt.interval)) > 1e-4  # not the mean of their bounds
    assert cloth.interval and bolt.interval.low < (bolt.value or 0) < bolt.interval.high
    assert nut.value is not None and nut.interval is None
    assert board.rows[0].cell("average_rank").interval is None
    assert any(note.startswith("An average rank has no interval") for note in board.notes)
    observation = {**record.observation, "method": {**record.observation["method"], "id": "other"}}
    other = replace(record, content={**record.content, "observation": observation})
    (pairs,) = boards([record, other], metrics=["mad", "rank"], sort="rank", paired=True, **options)
    assert {(pair.metric, pair.difference, pair.p) for pair in pairs.comparisons} == {
        ("mad", 0.0, 1.0),
        ("mad", 0.0, None),
    }
    assert pairs.ranked_by == "mad" and {row.cell("average_rank").value for row in pairs.rows} == {1.5}


def test_draws_are_kept_beside_the_record(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    first = draws(record, say=told.append)
    assert len(told) == 2 and "maps of bolt are made again" in told[0]
    file = record.path.parent / f"bootstrap-{DRAWS}.npz"
    content = file.read_bytes()
    monkeypatch.setattr(intervals, "_count", None)
    again = draws(record, say=told.append)
    assert len(told) == 2
    for place, values in first.values.items():
        assert np.array_equal(values, again.values[place]), place
    monkeypatch.undo()
    file.unlink()
    draws(record)
    assert file.read_bytes() == content


@pytest.mark.parametrize("spoil", [b"", b"PK\x03\x04 damaged", None])
def test_kept_draws_of_something_else_are_made_anew(record: Record, spoil: bytes | None) -> None:
    wanted = draws(record)
    file = record.path.parent / f"bootstrap-{DRAWS}.npz"
    if spoil is None:  # of another record
        with np.load(file) as archive:
            about, values = json.loads(bytes(archive["about"])), archive["draws"]
        about["record"] = "0" * 64
        np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), draws=values / 2)
    else:
        file.write_bytes(spoil)
    again = draws(record)
    for place, each in wanted.values.items():
        assert np.array_equal(each, again.values[place]), place


def test_image_metrics_need_no_evidence(record: Record) -> None:
    shutil.rmtree(record.path.parents[1] / "evidence")
    assert {metric for _, metric in draws(record, pixels=False).values} == {
        "image_auroc",
        "image_ap",
        "image_f1max",
        "image_fpr95",
        "image_pg@5",
        "image_pb@5",
    }
    found = draws(record)
    assert not any(metric.startswith("pixel") for _, metric in found.values)
    assert "no interval of pixel metrics" in found.notes[-1]
    assert "slice of evidence is missing" in found.notes[-1]


def test_evidence_that_gives_other_numbers_is_refused(record: Record) -> None:
    evidence = sorted((record.path.parents[1] / "evidence").iterdir())
    evidence[1].write_bytes(evidence[0].read_bytes())
    found = draws(record)
    assert not any(metric.startswith("pixel") for _, metric in found.values)
    assert "no interval of pixel metrics" in found.notes[-1]


def test_scores_that_do_not_give_the_record_are_refused(record: Record) -> None:
    file = record.path.parent / "images.csv"
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join([lines[0], *(line.replace(",0,", ",1,", 1) for line in lines[1:3]), *lines[3:]])
    )
    with pytest.raises(RecordError, match=r"images\.csv: its scores of 'bolt' are not those"):
        draws(record)
    file.write_text("\n".join(line for line in lines if "nut" not in line))
    with pytest.raises(RecordError, match="'nut'"):
        draws(record)


def test_legacy_aupro_has_no_interval(record: Record) -> None:
    legacy = score_run(record.path.parents[1], "legacy200", settings={}, workers=1, users=users(record))
    found = draws(legacy)
    assert ("bolt", "pixel_auroc") in found.values and ("bolt", "pixel_aupro") not in found.values
    assert "AUPRO from 200 thresholds has no interval" in found.notes


def test_another_protocol_draws_its_own_maps(record: Record) -> None:
    options: dict[str, Any] = {"size": 30, "workers": 1, "users": users(record)}
    other = score_run(record.path.parents[1], "reference", settings={"sigma": 9.0}, **options)
    plain, changed = draws(record), draws(read_record(other.path))
    for each, said in ((plain, record), (changed, other)):
        drawn = each.values["bolt", "pixel_ap"]
        assert drawn.min() <= (said.value("bolt", "pixel_ap") or 0) <= drawn.max()
    assert not np.array_equal(plain.values["bolt", "pixel_ap"], changed.values["bolt", "pixel_ap"])


def test_foreign_maps_have_intervals_of_image_metrics(source: Path, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "parts", ("bolt",), each=5)
    for number, path in enumerate(sorted(data.rglob("test/*/*.png"))):
        target = tmp_path / "maps" / path.relative_to(data).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, np.full((40, 40), number, np.float32) + np.arange(40))
    score_maps(tmp_path / "maps", str(data), name="theirs", out=tmp_path / "out", workers=1)
    (theirs,), _ = find_records([tmp_path / "out"])
    found = draws(theirs)
    assert ("bolt", "image_auroc") in found.values
    assert found.notes[-1].startswith("no interval of pixel metrics of theirs")
    assert found.notes[-1].endswith("maps of other code, scored here; they are not stored")
