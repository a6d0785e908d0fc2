"""Records: written whole, read exactly, refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit.boardkit import observation, protocol, row, save
from zsadbench.errors import RecordError
from zsadbench.files import write_atomic
from zsadbench.records import records
from zsadbench.records.files import EDITED, RecordWarning
from zsadbench.records.observations import read_observation, write_observation
from zsadbench.records.records import Record, find_records, load_records, read_record, write_record
from zsadbench.records.tables import read_images, read_masks

SAMPLES = Path(__file__).parent / "stored"


_IMAGE = {
    "key": "tile/0.png",
    "category": "tile",
    "anomalous": 1,
    "image_score": 0.75,
    "map_min": 0.0,
    "map_max": 1.0,
}


def _content(**changes: Any) -> dict[str, Any]:
    known = {"observation": observation(), "protocol": protocol(), "metric_version": 1}
    return {**known, "categories": [row()], **changes}


def test_a_record_of_schema_1_loads_for_ever() -> None:
    record = read_record(SAMPLES / "schema-1.json")
    assert (record.method, record.backbone) == ("anoclip@tiled", "ViT-B-16/openai")
    assert (record.dataset, record.protocol_label, record.seed) == ("mtd", "reference-1", 3)
    assert record.mean("image_auroc") == (0.6875, 2, 2)
    assert record.mean("pixel_aupro") == (0.625, 1, 2)
    assert record.value("tile", "pixel_aupro@0.05") == 0.125
    assert record.reasons("pixel_aupro") == ["the dataset has no masks"]
    assert record.marks == ["1 failed"]
    assert record.metrics[-3:] == ["pixel_iou", "pixel_aupro", "pixel_aupro@0.05"]


def test_a_newer_schema_is_refused_with_the_remedy() -> None:
    with pytest.raises(RecordError, match=r"schema-3\.json: has schema 3, .* up to 2; install a newer"):
        read_record(SAMPLES / "schema-3.json")


def test_a_truncated_record_is_refused_with_the_remedy() -> None:
    with pytest.raises(RecordError, match=r"truncated\.json: cut short or damaged .*`zsad score`"):
        read_record(SAMPLES / "truncated.json")


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    exact = 0.1 + 0.2  # has no short decimal form
    written = save(tmp_path, observation(), row("tile", exact), row("wood", None, image_ap=1 / 3))
    read = read_record(written.path)
    assert read == written
    assert read.value("tile", "pixel_ap") == exact
    assert read.value("wood", "image_ap") == 1 / 3
    assert written.path.parent.name == "reference"
    (image,) = read.images()
    assert (image.key, image.anomalous, image.image_score, image.map_max) == ("tile/0.png", True, 0.75, None)
    lines = (written.path.parent / "categories.csv").read_text().splitlines()
    assert lines[0].startswith("category,normal,anomalous,failed,image_auroc,")
    assert lines[1].split(",")[4] == repr(exact)
    assert lines[2].split(",")[4:6] == ["", repr(1 / 3)]
    assert "reasons" not in lines[0]


def test_numpy_values_are_written_as_numbers(tmp_path: Path) -> None:
    record = save(tmp_path, observation(), row("tile", np.float64(0.25), normal=np.int64(3)))
    assert record.categories["tile"]["normal"] == 3
    assert json.loads(record.path.read_text())["categories"][0]["image_ap"] == 0.25


def test_the_digest_covers_numbers_and_rules_but_not_time(tmp_path: Path) -> None:
    first = save(tmp_path / "a", observation(), row(value=0.5))
    later = save(tmp_path / "b", observation(), row(value=0.5), created="2027-01-01T00:00:00+00:00")
    other = save(tmp_path / "c", observation(), row(value=0.5000001))
    rules = save(tmp_path / "d", observation(), row(value=0.5), rules=protocol(connectivity=4))
    assert first.digest == later.digest
    assert len({first.digest, other.digest, rules.digest}) == 3


CLAIMS = {
    "a number": ("categories", 0, "image_auroc", 0.9),
    "the method": ("observation", "method", "id", "winclip"),
    "a parameter": ("observation", "method", "parameters", "tau", 0.5),
    "a mark": ("observation", "marks", []),
    "the contents": ("observation", "dataset", "contents", "ab" * 32),
    "the weights": ("observation", "backbone", "sha256", "cd" * 32),
    "the selection": ("observation", "dataset", "selection", "limit", 7),
    "failed images": ("observation", "failed", [{"key": "a", "reason": "b"}]),
    "the seed": ("observation", "seed", 4),
    "the environment": ("observation", "environment", "dtype", "bf16"),
    "the protocol": ("protocol", "size", 64),
    "the masks": ("masks", "ef" * 32),
    "a warning": ("warnings", []),
    "the time": ("created", "2027-01-01T00:00:00+00:00"),
    "the digest of a table": ("tables", "images.csv", "ab" * 32),
    "the metric version": ("metric_version", 2),
    "a key more": ("also", 1),
    "the seal": ("seal", "ab" * 32),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_record_claims_is_sealed_and_a_broken_seal_is_a_mark(tmp_path: Path, claim: str) -> None:
    seen = observation(parameters={"tau": 0.1}, marks=["seen data"])
    content = _content(observation=seen, masks="ab" * 32 + "cd", warnings=["tile: few images"])
    whole = write_record(tmp_path, "reference", content, [_IMAGE])
    changed = json.loads(whole.path.read_text())
    *places, last, value = CLAIMS[claim]
    target = changed
    for place in places:
        target = target[place]
    target[last] = value
    whole.path.write_text(json.dumps(changed))
    record = read_record(whole.path)
    assert record.edited[0] == "record.json" and EDITED in record.marks
    assert record.mean("image_ap") == (0.5, 1, 1)
    assert find_records([tmp_path])[0] == [record]
    with pytest.warns(RecordWarning, match=r"record\.json: record\.json.* changed after it was written"):
        assert load_records([tmp_path]) == [record]


@pytest.mark.parametrize("name", ["images.csv", "categories.csv"])
def test_the_tables_beside_a_record_are_sealed_too(tmp_path: Path, name: str) -> None:
    record = save(tmp_path, observation(), row())
    path = record.path.parent / name
    content = path.read_text()
    path.write_text(content.replace("tile", "Tile"))
    assert read_record(record.path).edited == (name,)
    path.unlink()
    assert read_record(record.path).edited == (name,)
    path.write_text(content)
    assert read_record(record.path).edited == () and EDITED not in read_record(record.path).marks


def test_a_record_of_schema_1_is_checked_by_its_own_rule(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    content = (SAMPLES / "schema-1.json").read_text()
    path.write_text(content)
    assert read_record(path).marks == ["1 failed"] and read_record(path).masks_digest == "unknown"
    path.write_text(content.replace(": 0.625", ": 0.5", 1))
    with pytest.raises(RecordError, match="was changed after it was written"):
        read_record(path)


def test_a_record_never_stands_over_tables_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, observation(), row(value=0.5)).path
    real = write_atomic

    def until_the_record(target: Path, content: bytes) -> None:
        if target.name == "record.json":
            raise KeyboardInterrupt
        real(target, content)

    monkeypatch.setattr(records, "write_atomic", until_the_record)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, observation(), row(value=0.5))
    assert read_record(path).edited == ()  # the same again: the old one is still true
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, observation(), row(value=0.25))
    assert not path.exists()


def test_records_of_other_masks_are_another_group(tmp_path: Path) -> None:
    digests = ["ab" * 32, "cd" * 32, None]
    made = [
        write_record(tmp_path / str(n), "reference", _content(**({"masks": d} if d else {})), [_IMAGE])
        for n, d in enumerate(digests)
    ]
    assert len({record.group for record in made}) == 3
    assert made[0].group.differences(made[1].group) == ["masks digest abababababab instead of cdcdcdcdcdcd"]
    assert made[2].masks_digest == "unknown" == read_record(SAMPLES / "schema-1.json").group.masks_digest


def test_the_digests_of_masks_stand_beside_the_images(tmp_path: Path) -> None:
    other = {**_IMAGE, "key": "tile/1.png", "mask_sha256": ""}
    record = write_record(tmp_path, "reference", _content(), [{**_IMAGE, "mask_sha256": "ab"}, other])
    assert read_masks(record.path.parent) == {"tile/0.png": "ab"}
    assert [image.key for image in record.images()] == ["tile/0.png", "tile/1.png"]
    assert read_masks(save(tmp_path, observation(), row()).path.parent) == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, r"pixel_ap of 'tile' is 1\.5, not null or within \[0, 1\]"),
        (-0.1, r"is -0\.1"),
        (True, "is True"),
        ("0.5", "is '0.5'"),
        (float("nan"), "cannot be written as JSON"),
    ],
)
def test_a_metric_outside_its_range_is_never_written(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        save(tmp_path, observation(), row(pixel_ap=value))
    assert not list(tmp_path.rglob("record.json"))


def test_a_threshold_may_have_any_size(tmp_path: Path) -> None:
    record = save(tmp_path, observation(), row(image_f1max_threshold=-3.5))
    assert "image_f1max_threshold" not in record.metrics
    assert record.categories["tile"]["image_f1max_threshold"] == -3.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": []}, "has no category"),
        ({"categories": [row("a"), row("a")]}, "category 'a' stands there twice"),
        ({"categories": [{"image_ap": 0.5}]}, r"'categories\.0\.category' is missing"),
        ({"metric_version": "1"}, "'metric_version' is '1', not int"),
        ({"protocol": {"id": "x"}}, r"'protocol\.version' is missing"),
        ({"observation": {"observation": "a"}}, r"'observation\.method' is missing"),
    ],
)
def test_a_record_with_a_wrong_key_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        write_record(tmp_path, "reference", _content(**change), [])
    assert not list(tmp_path.rglob("*.json"))


def test_an_image_row_without_a_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="a row has no 'image_score'"):
        write_record(tmp_path, "reference", _content(), [{"key": "a", "category": "tile", "anomalous": 0}])


def test_image_keys_survive_commas_quotes_and_unicode(tmp_path: Path) -> None:
    key = 'tile/"ä, 1\n.png'
    known = {"category": "tile", "anomalous": False, "image_score": 0.1, "map_min": 0, "map_max": 1}
    (image,) = write_record(tmp_path, "reference", _content(), [{"key": key, **known}]).images()
    assert (image.key, image.anomalous, image.image_score) == (key, False, 0.1)


def test_a_damaged_table_of_images_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, observation(), row()).path.parent
    (folder / "images.csv").write_text("key,category,anomalous,image_score,map_min,map_max\na,b,maybe,1,,\n")
    with pytest.raises(RecordError, match=r"images\.csv: line 2 cannot be read"):
        read_images(folder)
    (folder / "images.csv").write_text("key,category\n")
    with pytest.raises(RecordError, match=r"images\.csv: the column 'anomalous' is missing"):
        read_images(folder)


def test_observations_are_written_and_read(tmp_path: Path) -> None:
    content = observation("winclip", weights="random")
    write_observation(tmp_path / "run", content)
    read = read_observation(tmp_path / "run")
    assert len(read.pop("seal")) == 64
    assert read == {**content, "schema": 2}


@pytest.mark.parametrize(
    ("old", "new"), [('"id": "winclip"', '"id": "clip"'), ('"samples": 8', '"samples": 9')]
)
def test_an_observation_changed_by_hand_is_marked(tmp_path: Path, old: str, new: str) -> None:
    write_observation(tmp_path, observation("winclip", marks=["seen data"]))
    path = tmp_path / "observation.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert read_observation(tmp_path)["marks"] == ["seen data", EDITED]


def test_observations_are_checked(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"not the folder of a run, it has no observation\.json"):
        read_observation(tmp_path)
    broken = observation()
    del broken["dataset"]["digest"]
    with pytest.raises(RecordError, match=r"the key 'dataset\.digest' is missing"):
        write_observation(tmp_path, broken)
    (tmp_path / "observation.json").write_text("[1]")
    with pytest.raises(RecordError, match="not a JSON object"):
        read_observation(tmp_path)
    (tmp_path / "observation.json").write_text('{"observation": "a"}')
    with pytest.raises(RecordError, match="has no schema number"):
        read_observation(tmp_path)


def test_folders_are_searched_and_broken_records_told(tmp_path: Path) -> None:
    good = save(tmp_path, observation("clip"), row())
    broken = save(tmp_path, observation("winclip"), row()).path
    broken.write_text(broken.read_text()[:200])
    found, problems = find_records([tmp_path, good.path, tmp_path / "mtd"])
    assert found == [good]
    assert len(problems) == 1
    assert str(broken) in problems[0]
    with pytest.warns(RecordWarning, match="cut short"):
        assert load_records([tmp_path]) == [good]


def test_paths_that_hold_no_record_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nowhere: no such folder; name one that `zsad run` wrote"):
        find_records([tmp_path / "nowhere"])
    (tmp_path / "leaderboard.csv").write_text("")
    with pytest.raises(RecordError, match=r"leaderboard\.csv: not a record"):
        find_records([tmp_path / "leaderboard.csv"])
    assert find_records([tmp_path]) == ([], [])


def _record(**changes: Any) -> Record:
    return Record(Path("record.json"), _content(observation=observation(**changes)))


def test_marks_come_from_what_was_done() -> None:
    flags = {"transductive": True, "order_dependent": True}
    marked = _record(
        flags=flags, about={"selection": {"limit": 24}, "skipped": ["a", "b"]}, marks=["seen data"]
    )
    assert marked.marks == ["transductive", "order-dependent", "subset", "2 skipped", "seen data"]
    assert _record(weights="random:7", complete=False).marks == ["random weights", "incomplete"]
    assert _record().marks == []


def test_inductive_scores_take_the_transductive_mark_away(tmp_path: Path) -> None:
    seen = observation(flags={"transductive": True})
    assert save(tmp_path, seen, rules=protocol()).marks == ["transductive"]
    assert save(tmp_path, seen, rules=protocol("common-1")).marks == []
    assert save(tmp_path, seen, rules=protocol("legacy200")).marks == ["transductive", "legacy"]
    assert save(tmp_path, seen, rules=protocol("custom", size=64)).marks == ["transductive", "custom"]


def test_random_weights_are_one_backbone_whatever_their_seed() -> None:
    assert _record(weights="random:7").backbone == _record(weights="random").backbone == "ViT-B-16/random"


def test_the_seed_is_found_where_it_was_given() -> None:
    assert _record().seed is None
    assert _record(seed=3, weights="random:7").seed == 3
    assert _record(parameters={"seed": 5}).seed == 5
    assert _record(weights="random:7").seed == 7
    assert _record(weights="random").seed == 0


def test_the_rules_of_a_group_are_those_all_methods_share(tmp_path: Path) -> None:
    small = save(tmp_path, observation("a"), rules=protocol(size=240))
    large = save(tmp_path, observation("b"), rules=protocol(size=518))
    assert small.group == large.group
    assert small.rules.startswith("240 px, masks bilinear50, image scores reference")
    custom = [save(tmp_path, observation("a"), rules=protocol("custom", size=size)) for size in (240, 518)]
    assert custom[0].group != custom[1].group
    assert custom[0].group.differences(custom[1].group)[0].startswith("rules 240 px")
    assert save(tmp_path, observation("a"), metric_version=2).group != small.group
