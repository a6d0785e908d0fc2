"""The overlapped path, off by default, gives the bits of the ordinary one: stopped, resumed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kit import tiny, toy
from tests.kit.factory import make_folder
from zsadbench.engine import Encoder, encoder
from zsadbench.errors import MethodError, UsageError
from zsadbench.images import transfer
from zsadbench.images.batches import to_batch_images
from zsadbench.records import evidence as stored
from zsadbench.records.records import Record
from zsadbench.run.jobs import Request
from zsadbench.run.run import Outcome, execute

Run = Callable[..., Outcome]
Early: Any = import_module("zsadbench.methods._shared").Early
CPU = torch.device("cpu")
FEW = tiny.FEW | {"size": "42"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the miniature towers once, and cut slices of four images."""
    monkeypatch.setattr(encoder, "load_clip", tiny.load)
    monkeypatch.setattr(stored, "SLICE", 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of a category, one of another: batches of three leave ragged ends."""
    data = make_folder(tmp_path / "parts", each=4)
    (data / "bolt" / "test" / "good" / "3.png").unlink()
    return data


@pytest.fixture
def go(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*methods: str, overlap: bool, stop: threading.Event | None = None, **options: Any) -> Outcome:
        monkeypatch.setenv(transfer.VARIABLE, str(int(overlap)))
        base: dict[str, Any] = {
            "backbone": "tiny-l14",
            "weights": "random",
            "settings": FEW if any("anoclip" in name for name in methods) else {"size": "42"},
            "out": tmp_path / ("overlapped" if overlap else "ordinary"),
            "quiet": True,
            "workers": 1,
            "batch_size": 3,
        }
        return execute(methods, [str(folder)], Request(**base | options), stop)

    return run


def evidence(record: Record) -> dict[str, bytes]:
    files = sorted((record.path.parents[1] / "evidence").iterdir())
    return {file.name: file.read_bytes() for file in files}


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what happens to batches: their starts and landings, in order."""
    told: list[str] = []
    start = Encoder.start

    def started(encoder: Encoder, *args: Any) -> Callable[[], Any]:
        number = sum(word.startswith("start") for word in told)
        told.append(f"start {number}")
        landed = start(encoder, *args)

        def land() -> Any:
            told.append(f"land {number}")
            return landed()

        return land

    monkeypatch.setattr(Encoder, "start", started)
    return told


# One carries its state through a category, one draws random numbers, one relates the images of a category.
@pytest.mark.parametrize("methods", [("clip", "anoclip+", "anoclip+@reset"), ("clip", "musc")])
def test_every_kind_of_method_gives_the_same_bits(
    go: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: tuple[str, ...]
) -> None:
    ordinary = go(*methods, overlap=False).records
    told = watched(monkeypatch)
    overlapped = go(*methods, overlap=True).records
    assert [evidence(record) for record in overlapped] == [evidence(record) for record in ordinary]
    assert [record.content["categories"] for record in overlapped] == [
        record.content["categories"] for record in ordinary
    ]
    assert told[:6] == ["start 0", "start 1", "land 0", "start 2", "land 1", "start 3"]
    assert told[-2:] == ["land 5", "land 6"] and len(told) == 14
    told.clear()
    go("clip", overlap=False, out=tmp_path / "again")
    assert told[:4] == ["start 0", "land 0", "start 1", "land 1"]


def test_random_numbers_are_drawn_before_they_are_asked_for(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    give = Early.__call__

    def noted(early: Any, *call: Any) -> Any:
        asked.append(call in early._waiting)
        return give(early, *call)

    monkeypatch.setattr(Early, "__call__", noted)
    ordinary = go("anoclip+@reset", overlap=False).records
    assert not any(asked)
    asked.clear()
    overlapped = go("anoclip+@reset", overlap=True).records
    assert evidence(overlapped[0]) == evidence(ordinary[0])
    first = 3 * (2 + 5)  # of the first batch nobody knew; five steps of noise beside weight and bias
    assert not any(asked[:first]) and all(asked[first:]) and len(asked) == 15 * (2 + 5)


def test_numbers_announced_and_not_asked_for_are_dropped() -> None:
    early = Early(lambda key, size: torch.full((size,), float(len(key))))
    early.announce([("a", 1), ("bb", 2)])
    assert early("bb", 2).tolist() == [2, 2] and early("ccc", 1).tolist() == [3]
    early.announce([("d", 1)])
    assert list(early._waiting) == [("d", 1)]


def test_images_that_cannot_be_read_are_left_out_on_both_paths(go: Run, folder: Path) -> None:
    for name in ("good/0", "good/1", "good/2", "hole/3"):  # a whole batch of them, and the end of a slice
        path = folder / "bolt" / "test" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:-30])
    ordinary, overlapped = (go("clip", "anoclip+@reset", overlap=overlap) for overlap in (False, True))
    assert ordinary.failed == overlapped.failed and len(ordinary.failed) == 4
    for one, other in zip(ordinary.records, overlapped.records, strict=True):
        assert evidence(one) == evidence(other)


@pytest.mark.parametrize("at", [1, 3])
def test_a_run_stopped_at_any_batch_goes_on_to_the_same_bits(
    go: Run, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    ordinary = go("clip", "musc", overlap=False).records
    stop, start, batches = threading.Event(), Encoder.start, []

    def started(encoder: Encoder, *args: Any) -> Any:
        batches.append(1)
        if len(batches) == at:
            stop.set()
        return start(encoder, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Encoder, "start", started)
        go("clip", "musc", overlap=True, stop=stop)
    assert at <= len(batches) <= at + 2  # the slice in work is finished, and one more batch is on its way
    resumed = go("clip", "musc", overlap=True).records
    assert [evidence(record) for record in resumed] == [evidence(record) for record in ordinary]


def test_an_error_while_a_batch_is_on_its_way_leaves_whole_slices(
    go: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = go("clip", overlap=False).records
    start, batches = Encoder.start, []

    def started(encoder: Encoder, *args: Any) -> Any:
        batches.append(1)
        if len(batches) == 4:
            raise KeyboardInterrupt
        return start(encoder, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Encoder, "start", started)
        go("clip", overlap=True)
    assert [file.name for file in (tmp_path / "overlapped").rglob("*.safetensors")] == ["00000.safetensors"]
    resumed = go("clip", overlap=True).records
    assert [evidence(record) for record in resumed] == [evidence(record) for record in ordinary]


def test_memory_that_runs_out_halves_the_batch_once_it_is_started(
    go: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = go("clip", overlap=False, batch_size=1).records
    observe, sizes = Encoder._observe, []

    def scarce(self: Encoder, loaded: Any, tasks: Any, *keep: Any) -> Any:
        sizes.append(len(loaded))
        if len(loaded) > 1:
            raise torch.OutOfMemoryError("no memory")
        return observe(self, loaded, tasks, *keep)

    monkeypatch.setattr(Encoder, "_observe", scarce)
    (record,) = go("clip", overlap=True, batch_size=4).records
    assert sizes[:6] == [4, 2, 1, 1, 1, 1] and set(sizes[2:]) == {1}
    assert record.content["observation"]["batch_size"] == 1
    assert evidence(record) == evidence(one)


@pytest.mark.parametrize("overlap", [False, True])
def test_numbers_that_are_not_finite_name_method_and_image(
    go: Run, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    batches = []

    def poisoned(*args: Any) -> Tensor:
        batches.append(1)
        images = to_batch_images(*args)
        return images if len(batches) < 3 else images.index_fill(0, torch.tensor(1), torch.nan)

    monkeypatch.setattr(encoder, "to_batch_images", poisoned)
    with pytest.raises(MethodError, match=r"clip: evidence '\w+' of bolt/test/hole/2\.png is not finite"):
        go("clip", overlap=overlap)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            'return {"map": grid,',
            'self.kept = getattr(self, "kept", grid).copy_(grid)\n        return {"map": self.kept,',
        ),
        ('"score": grid.flatten(1).amax(1)}', '"score": grid.flatten(1).amax(1).double()}'),
    ],
)
def test_what_a_method_writes_to_its_evidence_later_does_not_matter(
    go: Run, tmp_path: Path, old: str, new: str
) -> None:
    spec = toy.write(tmp_path, old, new)
    runs = [
        go(spec, overlap=overlap, settings={}, backbone=None, weights=None, batch_size=1).records[0]
        for overlap in (False, True)
    ]
    assert evidence(runs[0]) == evidence(runs[1])


def test_half_precision_stays_where_images_are_related(go: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: set[torch.dtype] = set()
    download = transfer.Lanes.download

    def noted(lanes: transfer.Lanes, tensors: Any) -> Any:
        kinds.update(tensor.dtype for tensor in tensors)
        return download(lanes, tensors)

    monkeypatch.setattr(transfer.Lanes, "download", noted)
    go("musc", overlap=True)
    assert kinds == {torch.float16, torch.float32, torch.bool}


def test_on_a_gpu_it_needs_a_proof_of_this_card_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 9")
    monkeypatch.setenv(transfer.VARIABLE, "1")
    with pytest.raises(UsageError, match=r"on cuda \(Card 9\) .* run zsad bench device first, or unset"):
        transfer.lanes(card)
    path = transfer.prove(card, ["clip"], True)
    assert path == transfer.proof(card) and path.is_file()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 10")
    with pytest.raises(UsageError, match="Card 10"):
        transfer.lanes(card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 9")
    assert not transfer.prove(card, ["clip"], False).exists()
    with pytest.raises(UsageError, match="Card 9"):
        transfer.lanes(card)


@pytest.mark.parametrize("value", [None, "", "0", " 0"])
def test_it_is_off_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(transfer.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(transfer.VARIABLE, value)
    assert transfer.lanes(CPU) is None and transfer.lanes(torch.device("cuda")) is None
    assert transfer.lanes(CPU, True) is not None
