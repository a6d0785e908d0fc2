"""Metrics whose threshold normal validation images fix: from the folder to the record, and again."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from tests.kit import tiny
from tests.kit.factory import make_folder, save
from zsadbench import files
from zsadbench.boards import boards, to_csv
from zsadbench.boards.intervals import draws_of
from zsadbench.engine import encoder
from zsadbench.errors import DatasetError, RecordError, UsageError
from zsadbench.method import resolve
from zsadbench.metrics import image_metrics
from zsadbench.records import Record, evidence, read_record
from zsadbench.run.jobs import Request
from zsadbench.run.run import Outcome, execute
from zsadbench.scoring import StoredMaps, validation_of
from zsadbench.scoring.observation import score_run

Go = Callable[..., Outcome]
BOTH = ("image_classf1", "pixel_segf1")
NORMAL = [f"{category}/train/good/{index}.png" for category in ("bolt", "cloth") for index in range(3)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)
    monkeypatch.setattr(evidence, "SLICE", 2)
    monkeypatch.setattr(files, "SETTLING_NS", -(10**15))  # files count as old enough at once


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    root = make_folder(tmp_path / "parts")
    for number, key in enumerate(NORMAL):  # smoother than the test images, so that some of these are called
        save(root / key, np.linspace(90, 110 + number, 4800).reshape(40, 40, 3))
    return root


@pytest.fixture
def go(parts: Path, tmp_path: Path) -> Go:
    def run(
        *methods: str, out: str = "results", stop: threading.Event | None = None, **options: Any
    ) -> Outcome:
        known: dict[str, Any] = {
            "backbone": "tiny-l14",
            "weights": "random",
            "settings": {"size": "42"},
            "out": tmp_path / out,
            "quiet": True,
            "workers": 1,
            "metrics": BOTH,
        }
        return execute(methods or ("clip",), [str(parts)], Request(**known | options), stop)

    return run


def run_dir(record: Record) -> Path:
    return record.path.parents[1]


def reasons(record: Record, category: str = "bolt") -> dict[str, str]:
    found: dict[str, str] = record.categories[category]["reasons"]
    return found


def by_hand(record: Record, category: str) -> tuple[float, float]:
    """Return both metrics from all maps and scores of a category, test and validation, laid side by side."""
    stored = StoredMaps.of(record)
    spec = record.observation["dataset"]["spec"]
    validation = validation_of(spec, stored.dataset)
    resolved = resolve("clip", settings={"size": "42"}, backbone="tiny-l14", weights="random")
    assert validation
    beside = StoredMaps(run_dir(record) / "validation", resolved, validation, stored.rules)
    found = []
    for maps in (beside, stored):
        visited = sorted((row, one, mask) for row, one, mask in maps.reader(category).visit(1))
        values = np.concatenate([one.ravel() for _, one, _ in visited]).astype(np.float64)
        truth = np.concatenate([mask.ravel() for _, _, mask in visited if mask is not None])
        extrema = torch.tensor([[float(one.min()), float(one.max())] for _, one, _ in visited])
        part = maps.part(category)
        scores = maps.rendered(part).image_scores(extrema).double().numpy()
        labels = np.array(["good" not in key for key in part.keys])
        found.append((values, truth, scores, labels))
    (normal, _, normal_scores, _), (values, truth, scores, labels) = found
    at, image_at = (one.mean() + 3 * one.std() for one in (normal, normal_scores))
    return (
        float(f1_score(labels, scores >= image_at, zero_division=0)),
        float(f1_score(truth, values >= at, zero_division=0)),
    )


def test_a_record_holds_them_and_names_the_validation_images(go: Go, parts: Path, encoded: list[str]) -> None:
    (plain,) = go(metrics=()).records
    assert len(encoded) == 12 and "validation" not in plain.content
    assert not set(BOTH) & set(plain.metrics)
    encoded.clear()
    (record,) = go().records
    assert encoded == NORMAL
    for category in ("bolt", "cloth"):
        wanted = by_hand(record, category)
        assert all(0 < value < 1 for value in wanted)
        assert [record.value(category, name) for name in BOTH] == pytest.approx(wanted, abs=1e-9)
        assert record.threshold(category, "pixel_segf1") != record.threshold(category, "image_classf1")
        row = dict(record.categories[category])
        assert {key: row[key] for key in plain.categories[category]} == plain.categories[category]
    said = record.content["validation"]
    assert (said["split"], said["images"], said["failed"]) == ("train", 6, 0)
    assert record.observation == plain.observation and record.group == plain.group
    assert run_dir(record) == run_dir(plain) and record.path == plain.path
    assert record.content["command"][-4:] == ["--metric", "image_classf1", "--metric", "pixel_segf1"]
    encoded.clear()
    assert go().records[0].digest == record.digest and encoded == []
    assert read_record(record.path).edited == ()


def test_score_takes_them_under_another_protocol_without_the_images(go: Go, parts: Path) -> None:
    (record,) = go().records
    shutil.copytree(parts, parts.parent / "kept")
    again = score_run(run_dir(record), "common-1", settings={}, metrics=BOTH)
    assert again.protocol["metrics"] == list(BOTH) and again.protocol["id"] == "common-1"
    assert again.threshold("bolt", "pixel_segf1") != record.threshold("bolt", "pixel_segf1")
    assert [again.value("bolt", name) for name in BOTH] == pytest.approx(by_hand(again, "bolt"), abs=1e-9)
    one = score_run(run_dir(record), "reference", settings={}, metrics=["pixel_segf1"])
    assert one.path == record.path and "image_classf1" not in one.metrics


def test_score_without_their_evidence_names_the_run_that_makes_it(go: Go) -> None:
    (record,) = go(metrics=()).records
    with pytest.raises(
        RecordError, match=r"6 validation images are not observed.*run command with --metric p"
    ):
        score_run(run_dir(record), "reference", settings={}, metrics=["pixel_segf1"])
    (record,) = go().records
    (run_dir(record) / "validation" / "evidence" / "00001.safetensors").write_bytes(b"cut")
    with pytest.raises(RecordError, match="validation images are not observed, or not all of them"):
        score_run(run_dir(record), "reference", settings={}, metrics=BOTH)
    assert go().records[0].digest == record.digest


def test_an_interrupted_pass_over_validation_images_goes_on_where_it_was(
    go: Go, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    write = evidence.EvidenceStore.write

    def stopped(self: evidence.EvidenceStore, number: int, part: Any) -> None:
        write(self, number, part)
        if "validation" in self.folder.parts:
            stop.set()

    with monkeypatch.context() as patch:
        patch.setattr(evidence.EvidenceStore, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            go(stop=stop)
    assert encoded[-2:] == NORMAL[:2]
    encoded.clear()
    (record,) = go().records
    assert encoded == NORMAL[2:]
    assert record.content["categories"] == go(out="fresh").records[0].content["categories"]


def test_a_changed_validation_image_is_observed_anew_and_other_records_follow(
    go: Go, parts: Path, encoded: list[str]
) -> None:
    (first,) = go().records
    other = score_run(run_dir(first), "common-1", settings={}, metrics=BOTH)
    encoded.clear()
    save(parts / NORMAL[3], np.random.RandomState(9).randint(0, 255, (40, 40, 3)))
    outcome = go()
    (second,) = outcome.records
    assert encoded == NORMAL[3:5] and run_dir(second) == run_dir(first)
    assert any(f"1 of 6 validation images changed (first {NORMAL[3]}): observed" in n for n in outcome.notes)
    assert second.content["validation"]["contents"] != first.content["validation"]["contents"]
    assert second.content["validation"]["digest"] == first.content["validation"]["digest"]
    assert second.observation["dataset"] == first.observation["dataset"]
    assert second.threshold("cloth", "pixel_segf1") != first.threshold("cloth", "pixel_segf1")
    assert second.categories["bolt"] == first.categories["bolt"]
    assert any(str(other.path.parent) in note and "scored again" in note for note in outcome.notes)
    followed = read_record(other.path)
    assert followed.content["validation"]["contents"] == second.content["validation"]["contents"]
    assert second.content["categories"] == go(out="fresh").records[0].content["categories"]


def test_a_category_without_validation_images_has_none_with_the_reason(go: Go, parts: Path) -> None:
    shutil.rmtree(parts / "cloth" / "train")
    (record,) = go().records
    assert all(record.value("bolt", name) is not None for name in BOTH)
    assert all(record.value("cloth", name) is None for name in BOTH)
    assert {reasons(record, "cloth")[name] for name in BOTH} == {"no normal validation image (split 'train')"}
    why = "pixel_segf1 is undefined for cloth: no normal validation image (split 'train')"
    assert why in record.content["warnings"]
    shutil.rmtree(parts / "bolt" / "train")
    (record,) = go(out="none").records
    assert record.content["validation"]["images"] == 0 and record.mean("pixel_segf1").value is None


def test_images_that_are_gone_are_no_reason_to_forget_their_evidence(go: Go, parts: Path) -> None:
    (record,) = go().records
    (parts / "cloth" / "train").rename(parts.parent / "elsewhere")
    with pytest.raises(RecordError, match=r"evidence of validation images that are not in .*parts now; give"):
        score_run(run_dir(record), "reference", settings={}, metrics=BOTH)
    (again,) = go().records  # a run takes the folder as it is
    assert again.value("cloth", "pixel_segf1") is None and again.content["validation"]["images"] == 3
    assert again.categories["bolt"] == record.categories["bolt"]
    assert score_run(run_dir(record), "reference", settings={}, metrics=BOTH).digest == again.digest
    shutil.rmtree(parts / "bolt" / "train")
    assert go().records[0].content["validation"]["images"] == 0
    assert not [*(run_dir(record) / "validation" / "evidence").glob("*")]
    (parts.parent / "elsewhere").rename(parts / "cloth" / "train")
    assert go().records[0].categories["cloth"] == record.categories["cloth"]


def test_a_record_that_loses_a_metric_says_so(go: Go) -> None:
    (record,) = go().records
    (plain,) = go(metrics=("image_classf1",)).records
    assert plain.notes == (
        f"{record.path.parent}: no longer holds pixel_segf1; --metric pixel_segf1 adds it again",
    )
    assert go(metrics=("image_classf1",)).records[0].notes == ()


def test_a_description_without_a_split_gives_the_reason(go: Go, parts: Path, tmp_path: Path) -> None:
    lines = 'format = 1\nid = "mine"\ntitle = "Mine"\ndomain = "industrial"\nmasks = "required"\n'
    rule = (
        '[[samples]]\nimage = "{class}/{split:train|test}/{specie}/{stem}.png"\n'
        'mask = "{class}/ground_truth/{specie}/{stem}_mask.png"\nnormal_when = { specie = ["good"] }\n'
    )
    (parts / "mine.toml").write_text(lines + rule)
    request = Request(
        backbone="tiny-l14", weights="random", settings={"size": "42"}, out=tmp_path / "r", quiet=True,
        workers=1, metrics=BOTH,
    )  # fmt: skip
    (record,) = execute(["clip"], [str(parts / "mine.toml")], request).records
    assert reasons(record)["pixel_segf1"] == "the description of the dataset names no validation images"
    assert "validation" not in record.content
    # A validation split that is the test part under another name.
    (parts / "mine.toml").write_text(lines + 'validation = "train"\n' + rule)
    shutil.rmtree(parts / "bolt" / "train")
    (parts / "bolt" / "train").mkdir()
    (parts / "bolt" / "train" / "good").symlink_to(parts / "bolt" / "test" / "good")
    with pytest.raises(DatasetError, match=r"bolt/train/good/0\.png is the test image bolt/test/good/0\.png"):
        execute(["clip"], [str(parts / "mine.toml")], request)


def test_copies_of_test_images_are_told(go: Go, parts: Path) -> None:
    shutil.copy(parts / "bolt" / "test" / "good" / "1.png", parts / NORMAL[0])
    (record,) = go().records
    assert "1 validation images are test images, byte for byte" in record.content["warnings"]


def test_unreadable_validation_images(go: Go, parts: Path, encoded: list[str]) -> None:
    (parts / NORMAL[0]).write_bytes(b"no image")
    with pytest.raises(DatasetError, match=NORMAL[0]):
        go()
    assert encoded == []
    (record,) = go(skip_bad=True).records
    said = record.content["validation"]
    assert (said["images"], said["failed"]) == (5, 1) and record.failed == 0
    assert f"1 validation images could not be read (first {NORMAL[0]})" in record.content["warnings"]
    assert record.value("bolt", "pixel_segf1") is not None
    score_run(run_dir(record), "reference", settings={}, metrics=BOTH)
    (parts / NORMAL[1]).write_bytes(b"no image")
    (record,) = go(skip_bad=True, out="one").records
    assert reasons(record)["image_classf1"] == "a single validation image has no spread"
    assert record.value("bolt", "pixel_segf1") is not None


def test_scores_that_need_test_images_have_no_threshold(go: Go) -> None:
    transductive, related = go("clip-ad", "musc", settings={}).records
    assert "under --protocol common-1 they do not" in reasons(transductive)["image_classf1"]
    assert transductive.value("bolt", "pixel_segf1") is not None
    assert {reasons(related)[name] for name in BOTH} == {
        "the method judges images by the others of their category: a validation image alone has no score"
    }
    assert not (run_dir(related) / "validation").exists() and "validation" not in related.content
    inductive = score_run(run_dir(transductive), "common-1", settings={}, metrics=BOTH)
    assert inductive.value("bolt", "image_classf1") is not None


def test_the_limit_holds_for_validation_images_too(go: Go, encoded: list[str]) -> None:
    (record,) = go(limit=4, categories=("cloth",)).records
    assert {key.partition("/")[0] for key in encoded} == {"cloth"}
    assert record.content["validation"]["images"] == 3
    (record,) = go(limit=1000, out="all").records
    assert record.content["validation"]["images"] == 6  # a limit that cuts nothing
    (record,) = go(limit=2, out="two").records
    assert record.content["validation"]["images"] == 2
    again = score_run(run_dir(record), "reference", settings={}, metrics=BOTH)
    assert again.content["validation"] == record.content["validation"]


def test_an_order_dependent_method_starts_afresh_with_the_validation_images(
    go: Go, encoded: list[str]
) -> None:
    options: dict[str, Any] = {"settings": tiny.FEW | {"size": "42", "steps": "1"}}
    (record,) = go("anoclip+", **options).records
    shutil.rmtree(run_dir(record) / "validation")
    encoded.clear()
    (again,) = go("anoclip+", **options).records
    assert again.digest == record.digest and encoded == NORMAL


def test_boards_show_them_with_intervals(go: Go, parts: Path) -> None:
    make_folder(parts, each=6)
    (record,) = go().records
    (board,) = boards([record])
    assert set(BOTH) <= set(board.metrics)
    assert set(BOTH) <= set(to_csv([board]).splitlines()[0].split(","))
    assert not set(BOTH) & set(boards([go(metrics=(), out="plain").records[0]])[0].metrics)
    draws = draws_of(record, replicates=100)
    for name in BOTH:
        for category in record.categories:
            values = draws.values[category, name]
            assert values.shape == (100,) and (values >= 0).all() and (values <= 1).all()
            assert values.min() - 1e-9 <= (record.value(category, name) or 0) <= values.max() + 1e-9
    with pytest.raises(
        RecordError, match="no record has the metric 'pixel_segf1'; `zsad run --metric pixel_se"
    ):
        boards([go(metrics=(), out="plain").records[0]], metrics=["pixel_segf1"])


def test_rates_at_any_percent_are_metrics_on_request_too(go: Go, parts: Path, encoded: list[str]) -> None:
    make_folder(parts, each=6)
    asked = ("image_pg@40", "image_pb@12.5", "image_pg@5")
    (record,) = go(metrics=asked).records
    assert not set(NORMAL) & set(encoded) and "validation" not in record.content
    assert record.protocol["metrics"] == ["image_pb@12.5", "image_pg@40"]  # at 5 it is always there
    for category in record.categories:
        rows = [row for row in record.images() if row.category == category]
        scores, labels = [row.image_score for row in rows], [row.anomalous for row in rows]
        wanted = image_metrics(scores, labels, asked)
        assert [record.value(category, name) for name in asked] == [wanted[name] for name in asked]
    draws = draws_of(record, replicates=100, pixels=False)
    assert ("bolt", "image_pg@40") in draws.values
    assert boards([record])[0].metrics[-2:] == ("image_pg@40", "image_pb@12.5")


def test_other_metrics_are_refused_before_anything_is_computed(go: Go, encoded: list[str]) -> None:
    with pytest.raises(UsageError, match=r"--metric pixel_seg1: no such metric\. Did you mean 'pixel_segf1'"):
        go(metrics=("pixel_seg1",))
    for name in ("image_pg@101", "image_pb@x", "pixel_spro@0", "pixel_spro@2", "image_ece@5", "mad"):
        with pytest.raises(UsageError, match=f"--metric {name}: no such metric"):
            go(metrics=(name,))
    assert encoded == []
    (record,) = go(metrics=("image_auroc",)).records
    assert "metrics" not in record.protocol


def test_other_evidence_of_the_same_validation_images_is_scored_again(go: Go) -> None:
    (first,) = go().records
    assert go().records[0].kept
    store = evidence.EvidenceStore(run_dir(first) / "validation")
    part = store.read(0)
    changed = {name: value if name == "frame" else value + 0.25 for name, value in part.evidence.items()}
    store.write(0, replace(part, evidence=changed))
    (second,) = go().records
    assert not second.kept
    assert second.threshold("bolt", "image_classf1") != first.threshold("bolt", "image_classf1")
    assert go().records[0].kept


def test_the_folder_says_nothing_that_runs_code(go: Go) -> None:
    (record,) = go().records
    content = json.loads(record.path.read_text())
    assert content["protocol"]["metrics"] == list(BOTH)
    kinds = {path.suffix for path in (run_dir(record) / "validation").rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".csv"}
