"""From a folder of images to records: one pass, resume, kills, failures, protocols."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import zsadbench
from tests.kit import tiny
from tests.kit.factory import make_folder, save
from zsadbench import files
from zsadbench.boards import boards
from zsadbench.clip.towers import Clip, Trace
from zsadbench.data import load_dataset
from zsadbench.engine import Encoder, Task, encoder, timing
from zsadbench.errors import DatasetError, MethodError, RecordError, UsageError
from zsadbench.images import to_batch_images
from zsadbench.inputs import Backbone, Preprocess
from zsadbench.method import resolve
from zsadbench.records.evidence import EvidenceStore
from zsadbench.records.records import Record
from zsadbench.run.jobs import Request
from zsadbench.run.run import Outcome, execute
from zsadbench.scoring.observation import score_run
from zsadbench.training.run import TrainRequest, find_training_samples, resolve_training

SMALL = {"size": "42"}
Run = Callable[..., Outcome]


class Killed(BaseException):
    """The process died here."""


@pytest.fixture(autouse=True)
def cached_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "parts")


@pytest.fixture
def go(folder: Path, tmp_path: Path) -> Run:
    def run(
        *methods: str, where: Path = folder, stop: threading.Event | None = None, **options: Any
    ) -> Outcome:
        base: dict[str, Any] = {
            "backbone": "tiny-l14",
            "weights": "random",
            "settings": SMALL | ({"augment": "false"} if "anoclip" in methods else {}),
            "out": tmp_path / "results",
            "quiet": True,
            "workers": 1,
        }
        return execute(methods or ("clip",), [str(where)], Request(**base | options), stop)

    return run


def evidence(record: Record) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run_dir(record) / "evidence").iterdir())}


def run_dir(record: Record) -> Path:
    return record.path.parents[1]


def without_times(record: Record) -> list[dict[str, Any]]:
    return list(record.content["categories"])


def test_a_run_leaves_a_whole_record(go: Run) -> None:
    (record,) = go("clip").records
    observation = json.loads((run_dir(record) / "observation.json").read_text())
    assert observation["complete"] and observation["dataset"]["samples"] == 12
    assert run_dir(record).name == observation["observation"][:12]
    assert [row["category"] for row in record.content["categories"]] == ["bolt", "cloth"]
    assert record.content["categories"][0]["normal"] == record.content["categories"][0]["anomalous"] == 3
    assert 0 <= record.mean("pixel_auroc").value <= 1  # type: ignore[operator]
    assert observation["backbone"]["activation"] == "quick_gelu"
    assert observation["wordings"] == {"bolt": "bolt", "cloth": "cloth"}
    rows = (record.path.parent / "images.csv").read_text().splitlines()
    assert len(rows) == 13
    assert rows[0] == "key,category,anomalous,image_score,map_min,map_max,mask_sha256"


def test_a_run_says_what_each_method_took(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that moves on by one second whenever it is looked at."""
    now = count()
    monkeypatch.setattr(encoder, "time", SimpleNamespace(perf_counter=lambda: float(next(now))))
    clip, winclip, other = go("clip", "winclip", "clip-ad", batch_size=3).records  # 4 batches of 12 images
    threads = torch.get_num_threads()
    here = {"images": 12, "threads": threads}
    # The walk and, after it, what clip alone reads of the last block: both halves of the patches' way.
    assert clip.observation["cost"] == here | {"own_seconds": 4 * 4.0, "shared_seconds": 4 * 3.0}
    assert winclip.observation["cost"] == here | {"own_seconds": 4 * 1.0, "shared_seconds": 4 * 1.0}
    assert other.observation["cost"] == here | {"own_seconds": 4 * 1.0, "shared_seconds": 4 * 1.0}
    (board,) = boards([clip, winclip], metrics=["image_auroc", "encode_ms", "own_ms", "images_per_s"])
    found = {row.label: [row.cost(name) for name in board.costs] for row in board.rows}
    assert found == {"clip": [28_000 / 12, 16_000 / 12, 12 / 28], "winclip": [8000 / 12, 4000 / 12, 1.5]}


@pytest.mark.parametrize("order", [("clip", "anoclip", "clip-ad"), ("clip-ad", "anoclip", "clip")])
def test_the_tower_is_walked_once_for_methods_of_one_input(
    order: tuple[str, ...], go: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they stand in the command; and a walk keeps what its own methods ask for, nothing else."""
    walks: list[list[int]] = []
    begin = Trace.__init__

    def watch(trace: Trace, vision: Any, batch: Any, taps: Any) -> None:
        walks.append(sorted(taps["values"]))
        begin(trace, vision, batch, taps)

    monkeypatch.setattr(Trace, "__init__", watch)
    alone = [evidence(go(name, batch_size=3, out=tmp_path / "alone").records[0]) for name in order]
    walks.clear()
    together = go(*order, batch_size=3).records  # 4 batches of 12 images
    assert [evidence(record) for record in together] == alone
    # What clip-ad reads, and what anoclip does, of its own input.
    assert walks == 4 * [[*range(24)], [*range(12, 24)]]

    # An image with a palette: for clip-ad alone it becomes RGB after it was resized.
    odd = tmp_path / "odd"
    shutil.copytree(folder, odd)
    image = odd / "bolt/test/good/0.png"
    Image.open(image).quantize(16).save(image)
    walks.clear()
    go(*order, batch_size=3, where=odd)
    assert len(walks) == 3 + 2 + 2 + 2


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({"size": 84}, True),  # the grid of the weights: no rule resizes anything
        ({"size": 42}, False),
        ({"size": 84, "resize": "shortest"}, False),  # frames of other shapes come
        ({"size": 84, "resize": "shortest", "tiles": "ends"}, True),
    ],
)
def test_a_rule_that_resizes_nothing_does_not_part_walks(change: dict[str, Any], shared: bool) -> None:
    towers = Encoder([], device=torch.device("cpu"))
    plain, other = (
        towers.walk(cast(Any, SimpleNamespace(backbone=backbone, preprocess=Preprocess(**change))))
        for backbone in (Backbone("tiny-l14", "random"), Backbone("tiny-l14", "random", position="bilinear"))
    )
    assert (plain is other) == shared
    assert plain.vision.module is other.vision.module
    grids = (plain.vision.positions((3, 3)), other.vision.positions((3, 3)))
    assert torch.equal(*grids) == shared


def test_a_latency_loads_no_tower_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Backbone] = []

    def count(backbone: Backbone, *_: object) -> Clip:
        loaded.append(backbone)
        return tiny.load(backbone)

    monkeypatch.setattr(encoder, "load_clip", count)
    towers, data = Encoder([], device=torch.device("cpu")), load_dataset(str(folder))
    method = resolve("clip", backbone="tiny-l14", weights="random", settings={"size": "84"}).method
    other = replace(cast(Any, method), backbone=replace(method.backbone, position="bilinear"))
    task = Task("clip", other, dict.fromkeys(data.categories, "part"), EvidenceStore(folder / "none"))
    towers.prepare(task, "bolt")
    monkeypatch.setattr(timing, "CALLS", 2)
    assert timing.latency(task, data.samples, towers)["calls"] == 2
    assert loaded == [method.backbone]


def test_latency_is_measured_on_request_and_changes_no_number(
    go: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timing, "CALLS", 4)
    few = {"settings": SMALL | {"steps": "1"}, "categories": ("bolt",)}
    plain = go("clip", "musc", "anoclip+", out=tmp_path / "plain", **few).records
    timed = go("clip", "musc", "anoclip+", latency=True, **few).records
    assert [record.digest for record in plain] == [record.digest for record in timed]
    for record in timed:
        cost = record.observation["cost"]
        assert cost["images"] == 6
        if record.method == "musc":  # an image alone has no score there
            assert "latency" not in cost
            continue
        assert cost["latency"]["calls"] == 4
        assert 0 < cost["latency"]["median_ms"] <= cost["latency"]["p95_ms"]
    (later,) = go("clip", out=tmp_path / "plain", latency=True, **few | {"settings": SMALL}).records
    assert later.observation["cost"]["latency"]["calls"] == 4 and not later.kept
    with pytest.raises(UsageError, match="--latency is measured in this process"):
        go(latency=True, devices="cpu:2")


def test_several_datasets_share_the_towers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def count(backbone: Backbone, device: Any, dtype: torch.dtype) -> Clip:
        loaded.append(backbone.name)
        return tiny.load(backbone)

    monkeypatch.setattr(encoder, "load_clip", count)
    second = make_folder(tmp_path / "others", categories=("gear",))
    request = Request(
        backbone="tiny-l14", weights="random", settings=SMALL, out=tmp_path / "results", quiet=True
    )
    outcome = execute(["clip"], [str(folder), str(second)], request)
    assert [record.dataset for record in outcome.records] == ["parts", "others"]
    assert loaded == ["tiny-l14"]


def test_the_second_run_observes_nothing(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = go("clip").records
    monkeypatch.setattr(Encoder, "observe", None)
    (second,) = go("clip").records
    assert without_times(first) == without_times(second)


def test_methods_of_one_pass_give_what_they_give_alone(go: Run, tmp_path: Path) -> None:
    together = {record.method: evidence(record) for record in go("clip", "anoclip").records}
    alone = {name: evidence(go(name, out=tmp_path / name).records[0]) for name in ("clip", "anoclip")}
    assert together == alone


def test_batch_size_changes_nothing_beyond_rounding(go: Run, tmp_path: Path) -> None:
    rows = []
    for size in (1, 8):
        (record,) = go("anoclip", batch_size=size, out=tmp_path / str(size)).records
        rows.append(EvidenceStore(run_dir(record)).category([0, 1]).evidence)
    for name, values in rows[0].items():
        torch.testing.assert_close(values, rows[1][name], rtol=0, atol=2e-6)


def kill_at_write(monkeypatch: pytest.MonkeyPatch, point: str, number: int) -> None:
    """Kill the process at the ``number``-th slice: before its flush, before its rename, or after it."""
    seen = {"count": 0}

    def dies(path: str) -> bool:
        seen["count"] += path.endswith(".safetensors") or ".safetensors." in path
        return seen["count"] == number

    if point == "before fsync":
        real = os.fsync

        def fsync(handle: int) -> None:
            target = Path(f"/proc/self/fd/{handle}").readlink()
            if not target.is_dir() and dies(str(target)):
                raise Killed
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)
    elif point == "before rename":
        replace = Path.replace

        def rename(self: Path, target: Path) -> Path:
            if dies(str(target)):
                raise Killed
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", rename)
    else:
        write = EvidenceStore.write

        def after(self: EvidenceStore, slice_number: int, part: Any) -> None:
            write(self, slice_number, part)
            if dies(str(self.path(slice_number))):
                raise Killed

        monkeypatch.setattr(EvidenceStore, "write", after)


@pytest.mark.parametrize("point", ["before fsync", "before rename", "between slices"])
@pytest.mark.parametrize("number", [1, 2])
def test_killed_and_resumed_gives_the_same_bits(
    go: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, number: int
) -> None:
    (whole,) = go("clip", out=tmp_path / "whole").records
    with monkeypatch.context() as patch:
        kill_at_write(patch, point, number)
        with pytest.raises(Killed):
            go("clip")
    left = list((tmp_path / "results").rglob("record.json"))
    assert not left
    for file in (tmp_path / "results").rglob("*.part"):
        file.unlink()  # a dead process leaves its temporary file, which nothing reads
    (resumed,) = go("clip").records
    assert evidence(resumed) == evidence(whole)
    assert without_times(resumed) == without_times(whole)


def test_only_missing_slices_are_observed_again(go: Run, encoded: list[str]) -> None:
    (record,) = go("clip").records
    before = evidence(record)
    path = run_dir(record) / "evidence" / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    encoded.clear()
    (again,) = go("clip").records
    assert {key.partition("/")[0] for key in encoded} == {"cloth"}
    assert evidence(again) == before


def test_two_runs_at_once_end_well(go: Run, tmp_path: Path) -> None:
    (alone,) = go("clip", out=tmp_path / "alone").records
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(go("clip").records[0])
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(result) for result in results] == [Record, Record], results
    assert evidence(results[0]) == evidence(alone)
    assert len(list((tmp_path / "results").rglob("record.json"))) == 1


def test_an_interrupt_stores_the_slice_in_work(go: Run, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(KeyboardInterrupt):
        go("clip", stop=stop)
    assert len(list((tmp_path / "results").rglob("*.safetensors"))) == 1
    (record,) = go("clip").records
    assert record.content["observation"]["complete"]


def test_an_image_that_fails_in_mid_run_is_left_out_and_told(
    go: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = make_folder(tmp_path / "parts")
    broken = where / "bolt" / "test" / "good" / "1.png"
    content = broken.read_bytes()
    (whole,) = go("clip", where=where, out=tmp_path / "whole").records
    broken.write_bytes(content[:-30])  # the header is whole, so the scan lets it pass
    outcome = go("clip", where=where)
    assert list(outcome.failed) == ["bolt/test/good/1.png"]
    (record,) = outcome.records
    assert record.content["categories"][0]["normal"] == 2
    assert record.content["categories"][0]["failed"] == 1
    assert record.failed == 1
    broken.write_bytes(content)
    (healed,) = go("clip", where=where).records
    assert healed.failed == 0
    assert without_times(healed) == without_times(whole)


def test_problems_of_the_scan_stop_before_the_encoder_or_are_skipped(
    go: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = make_folder(tmp_path / "parts")
    (where / "bolt" / "test" / "good" / "0.png").write_bytes(b"")
    (where / "cloth" / "test" / "hole" / "2.png").write_text("<html>not found</html>")
    with pytest.raises(DatasetError) as caught:
        go("clip", where=where)
    assert "bolt/test/good/0.png" in str(caught.value) and "cloth/test/hole/2.png" in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    assert not (tmp_path / "results").exists()
    (record,) = go("clip", where=where, skip_bad=True).records
    assert record.content["observation"]["dataset"]["samples"] == 10
    assert record.content["observation"]["dataset"]["skipped"] == [
        "bolt/test/good/0.png",
        "cloth/test/hole/2.png",
    ]
    again = score_run(run_dir(record), "common-1", settings={})
    assert again.content["categories"][0]["normal"] == 2


def test_a_shape_that_a_method_must_refuse_stops_in_the_scan_or_is_skipped(go: Run, tmp_path: Path) -> None:
    where = make_folder(tmp_path / "parts")
    save(where / "bolt" / "test" / "good" / "0.png", np.full((40, 90, 3), 120))
    (whole,) = go("clip", where=where).records  # squashed, as this method wants it
    assert whole.failed == 0
    with pytest.raises(DatasetError, match=r"bolt/test/good/0\.png: 90 x 40 pixels are longer than 2:1"):
        go("anoclip@tiled", where=where)
    (record,) = go("anoclip@tiled", where=where, skip_bad=True).records
    assert record.content["observation"]["dataset"]["skipped"] == ["bolt/test/good/0.png"]


def test_what_the_scan_noticed_is_told_once(go: Run, tmp_path: Path) -> None:
    where = make_folder(tmp_path / "parts")
    deep = Image.fromarray(np.full((40, 40), 30000, np.uint16))
    deep.save(where / "bolt" / "test" / "good" / "0.png")
    notes = go("clip", where=where).notes
    assert [note for note in notes if "16-bit" in note] == [note for note in notes if "1/257" in note]
    (note,) = (note for note in notes if "16-bit" in note)
    assert note.startswith("parts: warning: 1 of 12 images have 16-bit values")


def test_memory_that_runs_out_halves_the_batch(
    go: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = go("clip", batch_size=1, out=tmp_path / "one").records
    observe = Encoder._observe
    sizes: list[int] = []

    def scarce(self: Encoder, loaded: Any, tasks: Any) -> Any:
        sizes.append(len(loaded))
        if len(loaded) > 1:
            raise torch.OutOfMemoryError("no memory")
        return observe(self, loaded, tasks)

    monkeypatch.setattr(Encoder, "_observe", scarce)
    (record,) = go("clip", batch_size=4).records
    assert sizes[:4] == [4, 2, 1, 1] and set(sizes[3:]) == {1}
    assert record.content["observation"]["batch_size"] == 1
    assert evidence(record) == evidence(whole)


def test_memory_too_small_for_one_image_names_a_remedy(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(self: Encoder, loaded: Any, tasks: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Encoder, "_observe", scarce)
    with pytest.raises(
        MethodError, match="out of memory on cpu with a batch of 1; choose a smaller --set size"
    ):
        go("clip")


def test_evidence_that_is_not_finite_names_method_and_image(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = to_batch_images

    def poisoned(*args: Any) -> Tensor:
        return real(*args) * float("nan")

    monkeypatch.setattr(encoder, "to_batch_images", poisoned)
    with pytest.raises(MethodError, match=r"clip: evidence '\w+' of bolt/test/good/0\.png is not finite"):
        go("clip")


def test_limit_and_category_are_part_of_the_record(go: Run) -> None:
    (part,) = go("clip", limit=4).records
    assert part.content["observation"]["dataset"]["samples"] == 4
    assert "subset" in part.marks
    (one,) = go("clip", categories=("cloth",)).records
    assert [row["category"] for row in one.content["categories"]] == ["cloth"]


def test_a_limit_that_cuts_nothing_is_no_selection(go: Run) -> None:
    (whole,) = go("clip", limit=1000).records
    assert whole.selection == {} and "subset" not in whole.marks


def test_words_change_the_observation(go: Run) -> None:
    (plain,) = go("clip").records
    (other,) = go("clip", words={"bolt": "steel bolt"}).records
    assert run_dir(plain) != run_dir(other)
    assert other.content["observation"]["wordings"]["bolt"] == "steel bolt"


def test_seeds_of_random_weights_are_runs_of_their_own(go: Run) -> None:
    records = go("clip", seeds=2).records
    assert [record.seed for record in records] == [0, 1]
    assert [record.content["observation"]["backbone"]["weights"] for record in records] == [
        "random:0",
        "random:1",
    ]


def test_weights_alone_keep_the_backbone_that_the_dataset_names(go: Run, folder: Path) -> None:
    about = folder.parent / "own.toml"
    about.write_text(
        'format = 1\nid = "own"\ntitle = "Own"\ndomain = "industrial"\nlicense = "none"\n'
        'url = "none"\nmasks = "required"\nbackbone = "tiny-l14"\n'
        '[classes]\nbolt = "bolt"\n'
        '[[samples]]\nimage = "{class}/test/{specie}/{stem}.png"\n'
        'mask = "{class}/ground_truth/{specie}/{stem}_mask.png"\nnormal_when = { specie = ["good"] }\n'
    )
    (record,) = go("clip", where=about, data=folder, backbone=None).records
    assert record.backbone == "tiny-l14/random"
    request = TrainRequest(data=folder, weights="random", settings=SMALL)
    resolved, _ = resolve_training("clip-ad+", find_training_samples(str(about), request), request)
    assert resolved.method.backbone.name == "tiny-l14"


def test_unknown_names_are_answered_with_the_nearest(go: Run) -> None:
    with pytest.raises(UsageError, match="Did you mean 'anoclip'"):
        go("anoklip")
    with pytest.raises(
        UsageError, match=r"--set templature: no method of this run.*Did you mean 'temperature'"
    ):
        go("clip", "winclip", settings={"templature": "1"})
    with pytest.raises(UsageError, match="Did you mean 'fp16'"):
        go("clip", dtype="f16")
    with pytest.raises(UsageError, match="Did you mean 'common-1'"):
        go("clip", protocol="common")
    with pytest.raises(DatasetError, match="Did you mean 'bolt'"):
        go("clip", categories=("blot",))


def test_a_results_folder_that_cannot_be_made_is_named(go: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"file/.*cannot be written.*--out"):
        go("clip", out=tmp_path / "file")


# score: from evidence, without CLIP


def test_score_repeats_the_record_without_clip(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = go("anoclip").records
    monkeypatch.setattr(encoder, "load_clip", None)
    again = score_run(run_dir(record), "reference", settings={})
    assert without_times(again) == without_times(record)
    assert again.path == record.path


def test_protocols_and_overrides_have_folders_of_their_own(go: Run) -> None:
    (record,) = go("clip").records
    common = score_run(run_dir(record), "common-1", settings={})
    legacy = score_run(run_dir(record), "legacy200", settings={})
    custom = score_run(run_dir(record), "reference", settings={}, size=64, limits=(0.1,))
    folders = [r.path.parent.name for r in (record, common, legacy)]
    assert folders == ["reference", "common-1", "legacy200"]
    assert custom.path.parent.name.startswith("custom-")
    assert common.protocol["size"] == 518 and common.protocol["image_score"] == "inductive"
    assert legacy.legacy and "pixel_aupro@0.05" not in legacy.categories["bolt"]
    assert "pixel_aupro@0.1" in custom.categories["bolt"]


def test_exact_maps_agree_with_folded_ones(go: Run) -> None:
    (record,) = go("anoclip").records
    exact = score_run(run_dir(record), "reference", settings={}, exact=True)
    assert exact.path.parent != record.path.parent
    for category, row in record.categories.items():
        for name in ("pixel_auroc", "pixel_ap", "pixel_aupro"):
            assert exact.value(category, name) == pytest.approx(row[name], abs=2e-4)


def test_score_may_smooth_and_keeps_the_evidence(go: Run) -> None:
    (record,) = go("clip").records
    smooth = score_run(run_dir(record), "reference", settings={"sigma": "4"})
    assert smooth.protocol["map_parameters"] == {"sigma": 4.0}
    assert smooth.value("bolt", "image_auroc") == record.value("bolt", "image_auroc")
    assert smooth.value("bolt", "pixel_auroc") != record.value("bolt", "pixel_auroc")
    (again,) = go("clip", settings=SMALL | {"sigma": "4"}).records
    assert run_dir(again) == run_dir(record) and again.path == smooth.path


def test_score_refuses_what_would_change_the_evidence(go: Run) -> None:
    (record,) = go("winclip").records
    with pytest.raises(
        UsageError, match="--set temperature: score can only change what maps are rendered with"
    ):
        score_run(run_dir(record), "reference", settings={"temperature": "0.01"})


def test_score_of_missing_or_unfinished_runs(go: Run, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"observation\.json"):
        score_run(tmp_path, "reference", settings={})
    (record,) = go("clip").records
    (run_dir(record) / "evidence" / "00000.safetensors").unlink()
    with pytest.raises(
        RecordError, match=r"00000\.safetensors: this slice of evidence is missing; repeat the zsad run"
    ):
        score_run(run_dir(record), "reference", settings={})


def test_score_notices_that_the_dataset_changed(go: Run, tmp_path: Path) -> None:
    where = make_folder(tmp_path / "parts")
    (record,) = go("clip", where=where).records
    save(where / "bolt" / "test" / "good" / "9.png", np.zeros((8, 8, 3)))
    with pytest.raises(RecordError, match="lists other samples than when it was observed"):
        score_run(run_dir(record), "reference", settings={})


def test_the_python_interface_returns_frames(go: Run, folder: Path, tmp_path: Path) -> None:
    frame = zsadbench.run(
        "clip",
        str(folder),
        backbone="tiny-l14",
        weights="random",
        settings=SMALL,
        out=tmp_path / "results",
        quiet=True,
    )
    assert list(frame["category"]) == ["bolt", "cloth"] and set(frame["method"]) == {"clip"}
    (record,) = go("clip").records
    again = zsadbench.score(run_dir(record), protocol="common-1")
    assert list(again["protocol"]) == ["common-1", "common-1"]
    board = zsadbench.compare([tmp_path / "results"])
    assert "clip" in set(board["method"])
    with pytest.raises(UsageError, match=r"run has no option 'limits'\. Did you mean 'limit'"):
        zsadbench.run("clip", str(folder), limits=3)


def test_digests_do_not_depend_on_where_files_lie(go: Run, tmp_path: Path) -> None:
    (here,) = go("clip").records
    (there,) = go("clip", where=make_folder(tmp_path / "elsewhere" / "parts"), out=tmp_path / "other").records
    assert run_dir(here).name == run_dir(there).name
    assert here.group == there.group


def test_the_cache_of_digests_follows_changes(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    first = files.sha256_of(path)
    assert files.sha256_of(path) == first
    path.write_bytes(b"other")
    assert files.sha256_of(path) != first
