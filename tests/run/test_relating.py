"""Methods that judge the images of a category by each other: whole, interrupted, resumed, too few."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kit import tiny, toy
from tests.kit.factory import make_folder
from tests.kit.terminal import call
from zsadbench.engine import Encoder, encoder
from zsadbench.engine.gathered import Gathered, related
from zsadbench.errors import MethodError
from zsadbench.images import Loaded
from zsadbench.method import Tell, resolve
from zsadbench.progress import Progress
from zsadbench.records import evidence as stored
from zsadbench.records.evidence import EvidenceStore
from zsadbench.records.records import Record
from zsadbench.run.jobs import Request
from zsadbench.run.plan import plan_run
from zsadbench.run.run import Outcome, execute
from zsadbench.samples import Sample
from zsadbench.scoring.observation import score_run

CPU = torch.device("cpu")
Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the miniature towers once, and cut slices of two images."""

    monkeypatch.setattr(encoder, "load_clip", tiny.load)
    monkeypatch.setattr(stored, "SLICE", 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "parts")


@pytest.fixture
def go(folder: Path, tmp_path: Path) -> Run:
    def run(*methods: str, stop: threading.Event | None = None, **options: Any) -> Outcome:
        base: dict[str, Any] = {
            "backbone": "tiny-l14",
            "weights": "random",
            "settings": {"size": "42"},
            "out": tmp_path / "results",
            "quiet": True,
            "workers": 1,
        }
        return execute(methods or ("musc",), [str(folder)], Request(**base | options), stop)

    return run


def run_dir(record: Record) -> Path:
    return record.path.parents[1]


def evidence(record: Record) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run_dir(record) / "evidence").iterdir())}


def test_a_category_is_one_slice_and_only_what_is_related_is_kept(go: Run) -> None:
    musc, clip = go("musc", "clip").records
    assert list(evidence(musc)) == ["00000.safetensors", "00001.safetensors"]
    assert len(evidence(clip)) == 6
    part = EvidenceStore(run_dir(musc)).read(1)
    assert len(part.keys) == 6 and part.evidence.keys() == {"map", "token", "frame"}
    assert part.evidence["map"].shape == (6, 3, 3) and part.evidence["map"].dtype == torch.float32
    assert musc.marks == ["transductive", "related maps", "constants per dataset", "random weights"]
    assert not musc.inductive
    assert "related maps" not in clip.marks and clip.inductive
    assert musc.observation["seconds"]["relate"] > 0
    again = score_run(run_dir(musc), "common-1", settings={})
    assert again.marks == ["related maps", "constants per dataset", "random weights"] and not again.inductive


def test_neighbours_in_the_pass_and_batch_sizes_change_nothing(go: Run, tmp_path: Path) -> None:
    (alone,) = go("musc").records
    (beside, _) = go("musc", "clip", out=tmp_path / "beside").records
    assert evidence(beside) == evidence(alone)
    (one,) = go("musc", out=tmp_path / "one", batch_size=1).records
    for number in range(2):
        ours, theirs = (EvidenceStore(run_dir(record)).read(number) for record in (one, alone))
        assert torch.allclose(ours.evidence["map"], theirs.evidence["map"], atol=1e-4)


def test_a_category_interrupted_while_it_is_related_resumes_to_the_same_bits(
    go: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go("musc", "clip", out=tmp_path / "whole").records
    stop, told = threading.Event(), []

    def step(progress: Progress, what: str, done: float) -> None:
        told.append((what, done))
        if what.endswith("'cloth'") and done > 0.4:
            stop.set()

    monkeypatch.setattr(Progress, "step", step)
    with pytest.raises(KeyboardInterrupt):
        go("musc", "clip", stop=stop)
    assert told[-1][0] == "musc relates the images of 'cloth'" and 0.4 < told[-1][1] < 0.6
    (musc,) = (tmp_path / "results").rglob("musc/*/evidence")
    (clip,) = (tmp_path / "results").rglob("clip/*/evidence")
    assert [file.name for file in musc.iterdir()] == ["00000.safetensors"]
    assert len(list(clip.iterdir())) == 6  # what was done in the same pass is kept
    stop.clear()
    told.clear()
    monkeypatch.setattr(Progress, "step", lambda progress, what, done: told.append((what, done)))
    resumed = go("musc", "clip", stop=stop).records
    assert {what for what, _ in told} == {"musc relates the images of 'cloth'"}
    assert [evidence(record) for record in resumed] == [evidence(record) for record in whole]
    assert [record.content["categories"] for record in resumed] == [
        record.content["categories"] for record in whole
    ]


def test_an_interrupt_does_not_wait_for_a_category_to_be_related(
    go: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, observe, batches = threading.Event(), Encoder.observe, []

    def encode(encoder: Encoder, *args: Any) -> Any:
        batches.append(1)
        stop.set()
        return observe(encoder, *args)

    monkeypatch.setattr(Encoder, "observe", encode)
    with pytest.raises(KeyboardInterrupt):
        go("musc", stop=stop)
    assert len(batches) == 1


def test_a_category_of_too_few_images_is_left_out_and_named(
    go: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("good/2", "hole/2", "hole/1"):
        (folder / "bolt" / "test" / f"{kind}.png").unlink()
    for number in (1, 2):
        (folder / "bolt" / "ground_truth" / "hole" / f"{number}_mask.png").unlink()
    outcome = go("musc", "clip")
    musc, clip = outcome.records
    reason = "musc compares the images of a category with each other and needs at least 5; 'bolt' has 3"
    assert set(outcome.failed.values()) == {reason} and len(outcome.failed) == 3
    assert list(musc.categories) == ["cloth"] and list(clip.categories) == ["bolt", "cloth"]
    assert "3 failed" in musc.marks and "3 failed" not in clip.marks
    words = ["-m", "musc", "--backbone", "tiny-l14", "--weights", "random", "--set", "size=42"]
    words += ["--workers", "1", "-q"]
    assert call("run", *words, "-d", folder, "-o", tmp_path / "again") == 3
    said = capsys.readouterr().err
    assert f"bolt/test/good/0.png and 2 more: {reason}" in said


def test_a_dataset_without_enough_images_is_refused_before_any_is_encoded(go: Run, folder: Path) -> None:
    with pytest.raises(MethodError, match="at least 5; no category of 'parts' has more than 2"):
        go("musc", limit=4)
    request = Request(backbone="tiny-l14", weights="random", limit=4, quiet=True)
    (plan,) = plan_run(["all"], [str(folder)], request)
    assert "at least 5; no category" in plan.skipped["musc"]
    assert "clip" in {job.task.name for job in plan.jobs}


def test_an_unreadable_image_is_left_out_of_its_category(go: Run, folder: Path) -> None:
    broken = folder / "bolt" / "test" / "good" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-30])
    outcome = go("musc")
    assert list(outcome.failed) == ["bolt/test/good/1.png"]
    part = EvidenceStore(run_dir(outcome.records[0])).read(0)
    assert len(part.keys) == len(part.evidence["map"]) == 5
    broken.write_bytes(whole)
    (record,) = go("musc").records
    assert len(EvidenceStore(run_dir(record)).read(0).keys) == 6


def test_a_users_method_relates_too(go: Run, tmp_path: Path) -> None:
    spec = toy.write_relating(tmp_path)
    assert resolve(spec).relates
    (record,) = go(spec, settings={}, backbone=None, weights=None).records
    part = EvidenceStore(run_dir(record)).read(0)
    assert part.evidence["map"].mean(dim=0).abs().max() < 1e-6 and part.evidence["map"].abs().max() > 0
    assert "related maps" in record.marks


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("- mean,", "/ 0,", "evidence 'map' of bolt/test/good/0.png is not finite"),
        (' - mean, "score"', '[:3], "score"', "evidence 'map' has shape .3, 6, 6. for 6 images"),
        (
            "        tell(1.0)",
            '        raise RuntimeError("not enough memory")',
            "out of memory on cpu where",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(go: Run, tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        go(toy.write_relating(tmp_path, old, new), settings={}, backbone=None, weights=None)


def loaded(*keys: str, error: str | None = None) -> list[Loaded]:
    samples = [Sample(key, "bolt", False, Path(key), None) for key in keys]
    return [Loaded(n, sample, {}, error=error, sha256=sample.key) for n, sample in enumerate(samples)]


def test_rows_are_gathered_in_their_type_without_a_second_copy() -> None:
    store = Gathered(4, "toy")
    store.add(loaded("a", "b"), {"map": torch.tensor([[1.0], [2.0]]).half()})
    store.add(loaded("x", error="broken"), {})
    first = store.slice().evidence["map"]
    store.add(loaded("c"), {"map": torch.tensor([[3.0]]).half()})
    part = store.slice()
    assert part.evidence["map"].dtype == torch.float16
    assert part.evidence["map"][:, 0].tolist() == [1, 2, 3] and part.keys == ["a", "b", "c"]
    assert part.failed == {"x": "broken"} and part.hashes == ["a", "b", "c"]
    assert part.evidence["map"].data_ptr() == first.data_ptr()
    with pytest.raises(MethodError, match=r"toy: observe.. returns .* for some images and .* for others"):
        store.add(loaded("d"), {"map": torch.zeros(1, 2)})


def test_a_method_is_given_the_evidence_as_it_was_gathered() -> None:
    seen: dict[str, Tensor] = {}

    class Half:
        fewest = 2

        def relate(self, evidence: Any, device: torch.device, tell: Tell) -> Any:
            seen.update(evidence)
            return {"map": evidence["map"]}

    store = Gathered(2, "toy")
    store.add(loaded("a", "b"), {"map": torch.ones(2, 3).half(), "frame": torch.ones(2, 2)})
    part = related(store.slice(), Half(), "half", CPU, lambda done: None)
    assert seen["map"].dtype == torch.float16
    assert part.evidence["map"].dtype == torch.float32 and torch.equal(
        part.evidence["frame"], torch.ones(2, 2)
    )


def test_steps_are_told_to_machines_and_now_and_then_to_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 0.5, 2.0, 0.0, 0.0, 2.0, 20.0])
    monkeypatch.setattr("zsadbench.progress.time.monotonic", lambda: next(clock))
    for form in ("json", "lines"):
        with Progress([("parts: musc", 12)], form=form) as shown:
            shown.start()
            shown.step("musc relates", 0.25)
            shown.step("musc relates", 0.5)
    start, step, *lines = capsys.readouterr().err.splitlines()
    assert json.loads(start)["event"] == "start"
    assert json.loads(step) == {"event": "step", "part": "parts: musc", "step": "musc relates", "done": 0.5}
    assert lines == ["parts: musc: 12 images", "musc relates: 50%"]
