"""Files that changed after they were observed: noticed, observed or scored again, and said."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.kit import tiny, toy
from tests.kit.factory import make_folder, save
from zsadbench import files
from zsadbench.boards.compare import boards
from zsadbench.boards.gate import gate
from zsadbench.boards.text import to_csv
from zsadbench.data import load_dataset
from zsadbench.engine import encoder
from zsadbench.errors import RecordError
from zsadbench.method import override, resolve
from zsadbench.records import contents, evidence
from zsadbench.records.files import sealed
from zsadbench.records.records import Record, find_records, read_record, record_digest
from zsadbench.run.jobs import Request
from zsadbench.run.run import Outcome, execute
from zsadbench.samples import Dataset, Sample
from zsadbench.scoring import StoredMaps, basis, observation
from zsadbench.scoring.observation import score_run

Go = Callable[..., Outcome]
IMAGE, MASK = "bolt/test/hole/0.png", "bolt/ground_truth/hole/0_mask.png"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)
    monkeypatch.setattr(evidence, "SLICE", 2)
    monkeypatch.setattr(files, "SETTLING_NS", -(10**15))  # files count as old enough at once


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "parts")


@pytest.fixture
def go(parts: Path, tmp_path: Path) -> Go:
    def run(
        *methods: str, out: str = "results", stop: threading.Event | None = None, **options: Any
    ) -> Outcome:
        known: dict[str, Any] = {
            "backbone": "tiny-l14",
            "weights": "random",
            "settings": {"size": "42"} | (tiny.FEW | {"steps": "1"} if "anoclip+" in methods else {}),
            "out": tmp_path / out,
            "quiet": True,
            "workers": 1,
        }
        return execute(methods or ("clip",), [str(parts)], Request(**known | options), stop)

    return run


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are read only to be hashed."""
    names: list[str] = []
    real = files.hash_file

    def watch(path: Path) -> str:
        names.append("/".join(path.parts[-4:]))
        return real(path)

    monkeypatch.setattr(contents, "hash_file", watch)
    return names


def invert(path: Path) -> None:
    """Change a picture in place and keep its size and times, as `touch -r` does."""
    before = path.stat()
    with Image.open(path) as image:
        changed = ImageOps.invert(image.convert("L") if "mask" in path.name else image.convert("RGB"))
    changed.save(path)
    size = path.stat().st_size
    if size < before.st_size:
        path.write_bytes(path.read_bytes() + bytes(before.st_size - size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The categories whose maps are rendered for numbers, as they come."""
    names: list[str] = []
    real = StoredMaps.scored

    def watch(self: StoredMaps, category: str, *given: Any) -> Any:
        names.append(category)
        return real(self, category, *given)

    monkeypatch.setattr(StoredMaps, "scored", watch)
    return names


def run_dir(record: Record) -> Path:
    return record.path.parents[1]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def slices(record: Record) -> dict[str, bytes]:
    return tree(run_dir(record) / "evidence")


def claims(record: Record) -> tuple[Any, ...]:
    return (record.content["categories"], record.observation["dataset"]["contents"], record.masks_digest)


def test_a_changed_image_is_observed_again_in_a_folder_of_its_own(
    go: Go, parts: Path, encoded: list[str]
) -> None:
    (first,) = go().records
    kept = tree(run_dir(first))
    encoded.clear()
    invert(parts / IMAGE)
    outcome = go()
    (second,) = outcome.records
    assert run_dir(second) != run_dir(first) and tree(run_dir(first)) == kept
    assert second.observation["family"] == first.observation_digest
    assert len(encoded) == 2 and IMAGE in encoded  # its slice
    (note,) = (note for note in outcome.notes if "changed" in note)
    assert note == (
        f"1 of 12 images changed (first {IMAGE}) since {run_dir(first)} was observed: observed again in "
        f"{run_dir(second)}; the old one stays"
    )
    (fresh,) = go(out="fresh").records
    assert slices(second) == slices(fresh) and claims(second) == claims(fresh)
    assert claims(second) != claims(first)
    assert second.group != first.group
    assert read_record(first.path) == first and not first.edited


def test_every_state_of_the_images_is_found_again(go: Go, parts: Path, encoded: list[str]) -> None:
    (first,) = go().records
    invert(parts / IMAGE)
    (second,) = go().records
    encoded.clear()
    assert [record.digest for record in go().records] == [second.digest]
    original = parts.parent / "kept.png"
    shutil.copy(parts / IMAGE, original)
    make_folder(parts)  # as it was
    assert claims(go().records[0]) == claims(first)
    shutil.copy(original, parts / IMAGE)
    assert claims(go().records[0]) == claims(second)
    assert encoded == []
    invert(parts / "bolt" / "test" / "good" / "0.png")
    (third,) = go().records
    assert len(encoded) == 2  # the other slices come from both earlier observations
    assert claims(third) == claims(go(out="fresh").records[0])
    assert len({run_dir(record) for record in (first, second, third)}) == 3


def test_methods_of_one_run_all_notice(go: Go, parts: Path) -> None:
    first = go("clip", "winclip").records
    invert(parts / IMAGE)
    second = go("clip", "winclip").records
    assert [claims(record) for record in second] == [
        claims(record) for record in go("clip", "winclip", out="fresh").records
    ]
    assert {run_dir(record) for record in first}.isdisjoint(run_dir(record) for record in second)
    assert all(len(board.rows) == 2 for board in boards([*first, *second]))


def test_an_order_dependent_method_observes_the_whole_category_again(
    go: Go, parts: Path, encoded: list[str]
) -> None:
    go("anoclip+")
    encoded.clear()
    invert(parts / IMAGE)
    (record,) = go("anoclip+").records
    assert len(encoded) == 6 and {key.partition("/")[0] for key in encoded} == {"bolt"}
    assert slices(record) == slices(go("anoclip+", out="fresh").records[0])


def test_an_image_changed_between_interrupt_and_repeat_is_observed_again(go: Go, parts: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        go(stop=stop)
    invert(parts / "bolt" / "test" / "good" / "0.png")
    outcome = go()
    assert any("1 of 12 images changed" in note and "interrupted" in note for note in outcome.notes)
    (record,) = outcome.records
    (fresh,) = go(out="fresh").records
    assert slices(record) == slices(fresh) and claims(record) == claims(fresh)
    assert run_dir(record).name == run_dir(fresh).name and "family" not in record.observation


def test_unchanged_files_are_not_read_again(go: Go, parts: Path, read: list[str]) -> None:
    (first,) = go().records
    assert len(read) == 6 and all("_mask" in name for name in read)  # images are hashed as they are decoded
    read.clear()
    go()
    score_run(run_dir(first), "common-1", settings={})
    assert read == []
    go(verify=True)
    assert len(read) == 18
    read.clear()
    os.utime(parts / IMAGE)
    assert not [note for note in go().notes if "changed" in note]
    assert read == [f"parts/{IMAGE}".removeprefix("parts/")]
    read.clear()
    go()
    assert read == []


def test_a_memory_of_files_that_is_wrong_or_gone_costs_time_only(
    go: Go, parts: Path, read: list[str]
) -> None:
    (first,) = go().records
    memory = run_dir(first) / "files.csv"
    read.clear()
    for content in ("", "kind,key\n", memory.read_text().replace("image,bolt", "image,nut"), "\0", None):
        memory.unlink() if content is None else memory.write_text(content)
        outcome = go()
        assert [record.digest for record in outcome.records] == [first.digest]
        assert not [note for note in outcome.notes if "changed" in note]
    lines = memory.read_text().splitlines(keepends=True)
    memory.write_text("".join(line[:-65] + "ab" * 32 + "\n" if IMAGE in line else line for line in lines))
    assert (
        go().records[0].digest == first.digest
    )  # it says that the image is another one, the image itself does not


def test_a_file_that_changed_a_moment_ago_is_not_trusted(
    go: Go, parts: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SETTLING_NS", 10**15)
    go()
    read.clear()
    go()
    assert len(read) == 18


def test_a_copied_dataset_is_read_once_and_observed_no_more(
    go: Go, parts: Path, encoded: list[str], read: list[str]
) -> None:
    (first,) = go().records
    shutil.copytree(parts, parts.parent / "copy")
    shutil.rmtree(parts)
    shutil.move(parts.parent / "copy", parts)
    encoded.clear()
    read.clear()
    assert claims(go().records[0]) == claims(first)
    assert encoded == [] and len(read) == 18
    go()
    assert len(read) == 18


def test_a_changed_mask_is_scored_again_and_stands_in_another_column(
    go: Go, parts: Path, encoded: list[str]
) -> None:
    (first,) = go().records
    old = go("winclip").records
    encoded.clear()
    save(parts / MASK, np.full((40, 40), 255))
    outcome = go()
    (second,) = outcome.records
    assert encoded == [] and run_dir(second) == run_dir(first)
    assert second.notes == (
        f"{second.path.parent}: 1 masks changed since it was scored (first {IMAGE}): scored again",
    )
    assert second.observation == first.observation
    assert second.masks_digest != first.masks_digest and second.digest != first.digest
    assert second.value("bolt", "pixel_auroc") != first.value("bolt", "pixel_auroc")
    assert second.group.differences(old[0].group)[0].startswith("masks digest")
    assert len(boards([second, *old])) == 2
    again = score_run(run_dir(old[0]), "reference", settings={})
    assert again.notes[0].endswith("scored again") and len(boards([second, again])) == 1
    assert not go().records[0].notes


def test_a_record_under_which_nothing_changed_is_kept(go: Go, parts: Path, scored: list[str]) -> None:
    first = go("clip", "winclip").records
    results = parts.parent / "results"
    written = {file: (file.read_bytes(), file.stat().st_ino) for file in results.rglob("*.*")}
    scored.clear()
    for options in ({}, {"verify": True}, {"workers": 2}, {"batch_size": 3}):
        outcome = go("clip", "winclip", **options)
        assert outcome.records == first and scored == []
        assert outcome.notes == ["2 of 2 records are kept: what they were scored from is the same"]
    assert {file: (file.read_bytes(), file.stat().st_ino) for file in results.rglob("*.*")} == written
    (common,) = go(protocol="common-1").records
    assert scored == ["bolt", "cloth"] and not common.kept and read_record(first[0].path) == first[0]
    assert go(protocol="common-1").records[0].kept
    again = score_run(run_dir(first[0]), "reference", settings={})  # which was asked for
    assert len(scored) == 4 and (again.digest, again.kept) == (first[0].digest, False)


def other_evidence(record: Record, parts: Path, patch: pytest.MonkeyPatch) -> None:
    """Put other evidence of the same images in place, sound in itself."""
    store = evidence.EvidenceStore(run_dir(record))
    part = store.read(1)
    store.write(1, dataclasses.replace(part, evidence={k: v.flip(0) for k, v in part.evidence.items()}))


def other_numbers(record: Record, parts: Path, patch: pytest.MonkeyPatch) -> None:
    """Change a number of a record by hand."""
    content = json.loads(record.path.read_text())
    content["categories"][0]["image_auroc"] = 0.99
    record.path.write_text(json.dumps(content))


def other_claims(record: Record, parts: Path, patch: pytest.MonkeyPatch) -> None:
    """Make another record of it, sealed."""
    content = json.loads(record.path.read_text())
    content["categories"][0]["image_auroc"] = 0.99
    content["metric_version"] = 0
    record.path.write_text(json.dumps(sealed(content | {"record": record_digest(content)})))


def other_rows(record: Record, parts: Path, patch: pytest.MonkeyPatch) -> None:
    path = record.path.parent / "images.csv"
    path.write_text(path.read_text().replace("bolt", "nut", 1))


def no_tables(record: Record, parts: Path, patch: pytest.MonkeyPatch) -> None:
    (record.path.parent / "categories.csv").unlink()


def no_basis(record: Record, parts: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a record as it was before records said what they stand on."""
    content = json.loads(record.path.read_text())
    bare = {key: value for key, value in content.items() if key not in ("basis", "evidence")}
    record.path.write_text(json.dumps(sealed(bare | {"record": record_digest(bare)})))


def other_observation(record: Record, parts: Path, patch: pytest.MonkeyPatch) -> None:
    path = run_dir(record) / "observation.json"
    path.write_text(path.read_text().replace('"title": "CLIP', '"title": "LIP'))


OTHER: dict[str, Callable[[Record, Path, pytest.MonkeyPatch], Any]] = {
    "a mask, size and times kept": lambda record, parts, patch: invert(parts / MASK),
    "a mask taken away": lambda record, parts, patch: (parts / MASK).write_bytes(
        (parts / MASK.replace("0_mask", "1_mask")).read_bytes()
    ),
    "evidence": other_evidence,
    "a number": other_numbers,
    "a number, sealed again": other_claims,
    "a row of images.csv": other_rows,
    "no categories.csv": no_tables,
    "a record without a basis": no_basis,
    "the observation": other_observation,
    "the version of the metrics": lambda record, parts, patch: patch.setattr(
        observation, "METRIC_VERSION", 9
    ),
    "the code": lambda record, parts, patch: patch.setattr(basis, "code_digest", lambda: "other"),
    "torch": lambda record, parts, patch: patch.setattr(basis, "installed", lambda package: f"{package} 9"),
    "the record": lambda record, parts, patch: record.path.unlink(),
}


@pytest.mark.parametrize("what", OTHER)
def test_what_changed_is_scored_again(
    go: Go, parts: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (first,) = go().records
    OTHER[what](first, parts, monkeypatch)
    scored.clear()
    (second,) = go().records
    assert not second.kept and scored == ["bolt", "cloth"] and read_record(second.path) == second
    there = run_dir(second) / "evidence"
    (fresh,) = go(out="fresh").records
    if what == "evidence":
        assert second.content["categories"] != first.content["categories"]
        shutil.copytree(there, run_dir(fresh) / "evidence", dirs_exist_ok=True)
        (fresh,) = go(out="fresh").records
    assert second.content["categories"] == fresh.content["categories"]
    assert second.images() == fresh.images()
    assert go().records[0].kept


@pytest.mark.parametrize(
    "options",
    [
        {"size": 30},
        {"mask_resize": "nearest"},
        {"aupro_limits": (0.1,)},
        {"exact_maps": True},
        {"metrics": ("image_ece",)},
        {"protocol": "legacy200"},
    ],
)
def test_other_rules_are_scored(go: Go, scored: list[str], options: dict[str, Any]) -> None:
    go()
    scored.clear()
    assert not go(**options).records[0].kept and scored == ["bolt", "cloth"]
    assert go(**options).records[0].kept
    assert go().records[0].kept is ("metrics" not in options)  # these stand in the same folder


def test_groups_of_images_and_code_of_a_method_belong_to_what_a_record_stands_on(parts: Path) -> None:
    data, resolved = load_dataset(str(parts)), resolve("anomalyclip")
    sample = dataclasses.replace(data.samples[0], groups={"view": "1"})
    changed = dataclasses.replace(data, samples=(sample, *data.samples[1:]))
    assert changed.digest == data.digest
    smoother = override(resolved.method, {"sigma": "9"})
    found = [
        basis.basis_of(resolved, resolved.method, data),
        basis.basis_of(resolved, resolved.method, changed),
        basis.basis_of(resolved, smoother, data),
    ]
    assert len({*found}) == 3 and all(found)


def test_a_method_of_a_users_file_is_always_scored(go: Go, tmp_path: Path, scored: list[str]) -> None:
    """Which other code it calls is not known."""
    spec = toy.write(tmp_path)
    (first,) = go(spec, settings={}).records
    (second,) = go(spec, settings={}).records
    assert scored == ["bolt", "cloth"] * 2 and not second.kept and second.digest == first.digest


def test_the_digest_of_masks_covers_how_they_are_read(go: Go, parts: Path, tmp_path: Path) -> None:
    (plain,) = go().records
    about = tmp_path / "parts.toml"
    mask = 'mask = "{class}/ground_truth/{specie}/{stem}_mask.png"\n'
    text = (
        'format = 1\nid = "parts"\ntitle = "Parts"\ndomain = "industrial"\nlicense = "-"\nurl = "-"\n'
        'masks = "required"\nmask_mismatch = "nearest"\n[classes]\nbolt = "bolt"\ncloth = "cloth"\n'
        '[[samples]]\nimage = "{class}/test/{specie}/{stem}.png"\n'
        f'{mask}normal_when = {{ specie = ["good"] }}\n'
    )
    about.write_text(text)
    request = Request(
        data=parts, backbone="tiny-l14", weights="random", settings={"size": "42"}, out=tmp_path / "results"
    )
    (nearest,) = execute(["clip"], [str(about)], request).records
    assert nearest.masks_digest != plain.masks_digest
    about.write_text(text.replace('masks = "required"', 'masks = "none"').replace(mask, ""))
    (none,) = execute(["clip"], [str(about)], request).records
    assert none.masks_digest not in (plain.masks_digest, nearest.masks_digest, "unknown")
    assert "mask_sha256" not in (none.path.parent / "images.csv").read_text()


def test_every_file_of_a_mask_counts(parts: Path) -> None:
    folder = parts / "bolt" / "ground_truth" / "hole" / "0"
    save(folder / "000.png", np.eye(40) * 255)
    good = Sample("a.png", "bolt", False, parts / "bolt/test/good/0.png", None)
    bad = Sample("b.png", "bolt", True, parts / "bolt/test/hole/0.png", folder)
    found = []
    for pixels in (np.eye(40), np.zeros((40, 40))):
        save(folder / "001.png", pixels * 255)
        found.append(contents.Contents(cast(Dataset, SimpleNamespace(samples=(good, bad)))).masks())
    assert [list(masks) for masks in found] == [["b.png"], ["b.png"]] and found[0] != found[1]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("position", [-1, -40, 100, 9])
def test_one_wrong_bit_of_evidence_is_named_and_mended(go: Go, encoded: list[str], position: int) -> None:
    (first,) = go().records
    whole = slices(first)
    path = run_dir(first) / "evidence" / "00001.safetensors"
    flip(path, position)
    with pytest.raises(RecordError, match=r"00001\.safetensors: damaged evidence"):
        score_run(run_dir(first), "reference", settings={})
    encoded.clear()
    (again,) = go().records
    assert len(encoded) == 2 and slices(again) == whole and claims(again) == claims(first)


def test_an_image_that_failed_and_is_mended_leaves_no_record_of_the_old_evidence(go: Go, parts: Path) -> None:
    image = parts / "bolt" / "test" / "good" / "1.png"
    content = image.read_bytes()
    image.write_bytes(content[:-30])
    (broken,) = go().records
    common = score_run(run_dir(broken), "common-1", settings={})
    assert common.failed == 1
    image.write_bytes(content)
    outcome = go()
    assert f"{common.path.parent}: its evidence has changed, so it was scored again" in outcome.notes
    found, _ = find_records([run_dir(broken)])
    assert [record.failed for record in found] == [0, 0]
    assert {record.observation["dataset"]["contents"] for record in found} == {
        outcome.records[0].observation["dataset"]["contents"]
    }


def test_an_observation_changed_by_hand_is_written_again(go: Go) -> None:
    (first,) = go().records
    path = run_dir(first) / "observation.json"
    path.write_text(path.read_text().replace('"spec": "clip"', '"spec": "winclip"', 1))
    scored = score_run(run_dir(first), "reference", settings={"sigma": "4"})
    assert "edited" in scored.marks and "observation.json" in scored.notes[0]
    outcome = go()
    assert any("observation.json: was changed after it was written" in note for note in outcome.notes)
    assert json.loads(path.read_text())["method"]["spec"] == "clip"
    assert "edited" not in outcome.records[0].marks


def test_evidence_of_other_images_than_the_observation_says_is_refused(go: Go, parts: Path) -> None:
    (first,) = go().records
    invert(parts / IMAGE)
    (second,) = go().records
    for name in slices(second):
        shutil.copy(run_dir(second) / "evidence" / name, run_dir(first) / "evidence" / name)
    with pytest.raises(RecordError, match=r"its evidence is of other images than observation\.json says"):
        score_run(run_dir(first), "reference", settings={})


def test_an_observation_of_a_newer_zsadbench_is_left_alone(go: Go) -> None:
    (first,) = go().records
    path = run_dir(first) / "observation.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 3'))
    before = tree(run_dir(first))
    with pytest.raises(RecordError, match="has schema 3"):
        go()
    assert tree(run_dir(first)) == before


# Results and a baseline of zsadbench 0.1

STORED = Path(__file__).parents[1] / "records" / "stored" / "0.1"
OF_0_1: dict[str, Any] = {"settings": {"size": "84"}}


@pytest.fixture
def of_0_1(parts: Path, tmp_path: Path) -> Iterator[Path]:
    """Results of schema 1 and their dataset, where a run finds both."""
    shutil.rmtree(parts)
    shutil.copytree(STORED / "parts", parts)
    shutil.copytree(STORED / "results", tmp_path / "results")
    yield tmp_path / "results"


def test_records_of_0_1_are_read_and_compared_with_each_other(of_0_1: Path) -> None:
    records, problems = find_records([of_0_1])
    assert problems == [] and len(records) == 4
    assert {record.masks_digest for record in records} == {"unknown"}
    assert all(not record.edited and "edited" not in record.marks for record in records)
    assert sorted(len(board.rows) for board in boards(records)) == [1, 3]
    verdict = gate(records, STORED / "leaderboard.csv", 0.0)
    assert not verdict.fell and verdict.compared == 28
    assert verdict.notes == [
        f"parts {name}: whether the masks are the same is unknown, as 0.1 kept no digest of them"
        for name in ("common-1", "reference")
    ]


def test_results_of_0_1_are_found_again_and_scored_to_the_same_numbers(
    of_0_1: Path, go: Go, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "SLICE", 64)
    old = {record.path: record for record in find_records([of_0_1])[0]}
    outcome = go("clip", "clip@ac", "anoclip", settings={"size": "84", "augment": "false"})
    assert encoded == []
    assert sum("written by zsadbench 0.1" in note for note in outcome.notes) == 3
    for record in outcome.records:
        for name, row in old[record.path].categories.items():
            for metric in old[record.path].metrics:
                assert record.value(name, metric) == pytest.approx(row[metric], abs=1e-5)
        assert record.masks_digest != "unknown" and record.notes == ()
        assert record.observation["dataset"] == old[record.path].observation["dataset"]
    records, _ = find_records([of_0_1])
    assert sorted(len(board.rows) for board in boards(records)) == [1, 3]
    verdict = gate(outcome.records, STORED / "leaderboard.csv", 0.01)
    assert "clip: missing from the new results" in verdict.fell[0] and len(verdict.fell) == 1
    (csv,) = [to_csv(boards(outcome.records))]
    assert csv.splitlines()[0].split(",")[3] == "masks_digest"


def test_evidence_of_0_1_scores_where_its_dataset_lies_now(
    of_0_1: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "SLICE", 64)
    (folder,) = (of_0_1 / "parts" / "clip").iterdir()
    before = read_record(folder / "common-1" / "record.json")
    after = score_run(folder, "common-1", data=parts, settings={})
    assert after.content["schema"] == 2 and after.observation["schema"] == 1
    assert after.mean("pixel_auroc").value == pytest.approx(before.mean("pixel_auroc").value, abs=1e-5)


def test_an_image_that_changed_since_0_1_observed_it_is_noticed(
    of_0_1: Path, go: Go, parts: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "SLICE", 64)
    invert(parts / IMAGE)
    before = tree(of_0_1)
    outcome = go("clip", **OF_0_1)
    assert len(encoded) == 4 and any("1 of 8 images changed" in note for note in outcome.notes)
    assert before.items() <= tree(of_0_1).items()


def test_a_run_of_0_1_that_was_stuck_incomplete_is_finished(
    of_0_1: Path, go: Go, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "SLICE", 64)
    (folder,) = (of_0_1 / "parts" / "clip").iterdir()
    whole = json.loads((folder / "observation.json").read_text())
    stuck = {key: value for key, value in whole.items() if key not in ("seconds", "images_per_second")}
    stuck |= {"complete": False, "dataset": whole["dataset"] | {"contents": ""}}
    (folder / "observation.json").write_text(json.dumps(stuck))
    for name in ("reference", "common-1"):
        shutil.rmtree(folder / name)
    (record,) = go("clip", **OF_0_1).records
    assert encoded == [] and "incomplete" not in record.marks
    assert record.observation["complete"] and record.observation["schema"] == 2
    assert record.observation["dataset"]["contents"] == whole["dataset"]["contents"]


def test_a_baseline_is_refused_where_masks_are_known_to_differ(go: Go, parts: Path, tmp_path: Path) -> None:
    baseline = tmp_path / "leaderboard.csv"
    baseline.write_text(to_csv(boards(go().records)))
    verdict = gate(go().records, baseline, 0.0)
    assert verdict.notes == [] and not verdict.fell
    save(parts / MASK, np.full((40, 40), 255))
    with pytest.raises(RecordError, match="masks digest"):
        gate(go().records, baseline, 0.0)
