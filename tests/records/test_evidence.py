"""Evidence on disk: slices, whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from zsadbench.errors import RecordError
from zsadbench.files import write_atomic
from zsadbench.records.evidence import SLICE, EvidenceStore, Slice, by_category, plan
from zsadbench.samples import Sample


def samples(**counts: int) -> list[Sample]:
    return [
        Sample(f"{category}/{i}.png", category, False, Path("x"), None)
        for category, count in counts.items()
        for i in range(count)
    ]


def part(first: int, count: int) -> Slice:
    keys = [f"{first + i}.png" for i in range(count)]
    rows = torch.arange(first, first + count, dtype=torch.float32)
    return Slice({"map": rows[:, None, None].expand(count, 2, 2), "score": rows}, keys, ["ab"] * count)


def test_slices_never_cross_a_category() -> None:
    listed = samples(a=SLICE + 1, b=3)
    assert plan(listed) == [range(SLICE), range(SLICE, SLICE + 1), range(SLICE + 1, SLICE + 4)]
    assert plan(listed, whole_categories=True) == [range(SLICE + 1), range(SLICE + 1, SLICE + 4)]
    assert list(by_category(listed, plan(listed))) == [("a", [0, 1]), ("b", [2])]


def test_a_slice_comes_back_as_it_was(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path)
    written = part(0, 3)
    written.failed["bad.png"] = "truncated: ü"
    store.write(0, written)
    read = store.read(0)
    assert torch.equal(read.evidence["map"], written.evidence["map"])
    assert (read.keys, read.hashes, read.failed) == (written.keys, written.hashes, written.failed)
    assert not list(tmp_path.rglob("*.part"))


def test_slices_join_in_order_and_a_slice_of_failures_adds_no_rows(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path)
    store.write(0, part(0, 2))
    store.write(1, Slice({}, [], [], {"x.png": "unreadable"}))
    store.write(2, part(2, 3))
    joined = store.category([0, 1, 2])
    assert joined.evidence["score"].tolist() == [0, 1, 2, 3, 4]
    assert joined.failed == {"x.png": "unreadable"}


def test_a_slice_is_whole_only_with_every_key(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path)
    store.write(0, part(0, 2))
    assert store.is_whole(0, ["0.png", "1.png"])
    assert not store.is_whole(0, ["0.png", "1.png", "2.png"])
    assert not store.is_whole(1, ["0.png"])


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_evidence_is_named_and_counts_as_missing(tmp_path: Path, keep: int) -> None:
    store = EvidenceStore(tmp_path)
    store.write(0, part(0, 2))
    content = store.path(0).read_bytes()
    store.path(0).write_bytes(content[:keep])
    with pytest.raises(RecordError, match=r"00000\.safetensors: damaged evidence .* repeat the zsad run"):
        store.read(0)
    assert not store.is_whole(0, ["0.png", "1.png"])


def test_a_full_disk_is_said_plainly_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.json").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"a\.json: the disk is full; free some space and repeat"):
        write_atomic(tmp_path / "a.json", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"old"


def test_a_folder_without_permission_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(RecordError, match=r"no permission to write; choose another folder with --out"):
        write_atomic(tmp_path / "sub" / "a.json", b"new")
