"""Evidence on disk: slices, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

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
    grid = rows[:, None, None].expand(count, 2, 2).contiguous()
    return Slice({"map": grid, "score": rows}, keys, ["ab"] * count)


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
    written = part(0, 2)
    written.failed["x.png"] = "unreadable"
    store.write(0, written)
    found = store.find(0, ["0.png", "x.png", "1.png"])
    assert found and (found.keys, found.hashes, found.evidence) == (written.keys, written.hashes, {})
    assert store.find(0, ["0.png", "1.png"]) is None
    assert store.find(0, ["0.png", "1.png", "x.png", "2.png"]) is None
    assert store.find(0, ["1.png", "0.png", "x.png"]) is None
    assert store.find(1, ["0.png"]) is None


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_evidence_is_named_and_counts_as_missing(tmp_path: Path, keep: int) -> None:
    store = EvidenceStore(tmp_path)
    store.write(0, part(0, 2))
    content = store.path(0).read_bytes()
    store.path(0).write_bytes(content[:keep])
    with pytest.raises(RecordError, match=r"00000\.safetensors: damaged evidence .* repeat the zsad run"):
        store.read(0)
    assert store.find(0, ["0.png", "1.png"]) is None


@pytest.mark.parametrize("failed", [{}, {"bad ü.png": "truncated"}])
def test_one_wrong_bit_anywhere_is_noticed(tmp_path: Path, failed: dict[str, str]) -> None:
    store = EvidenceStore(tmp_path)
    written = part(0, 2)
    written.failed |= failed
    store.write(0, written)
    path, whole = store.path(0), store.path(0).read_bytes()
    for position in range(len(whole)):
        for bit in range(8) if position < 400 or position % 5 == 0 else [position % 8]:
            wrong = bytearray(whole)
            wrong[position] ^= 1 << bit
            path.write_bytes(wrong)
            with pytest.raises(RecordError, match=r"00000\.safetensors: damaged evidence .* repeat the zsad"):
                store.read(0, tensors=position % 2 == 0)
    path.write_bytes(whole)
    assert store.read(0).checked


def test_the_bytes_of_a_slice_follow_from_its_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        EvidenceStore(tmp_path / name).write(0, part(0, 2))
    first, second = (EvidenceStore(tmp_path / name).path(0).read_bytes() for name in ("a", "b"))
    assert first == second
    EvidenceStore(tmp_path / "c").copy(0, EvidenceStore(tmp_path / "a"))
    assert EvidenceStore(tmp_path / "c").path(0).read_bytes() == first


def test_a_slice_of_schema_1_is_read_by_its_own_rule(tmp_path: Path) -> None:
    store = EvidenceStore(tmp_path)
    written = part(0, 2)
    about = {"keys": written.keys, "sha256": written.hashes, "failed": {}}
    content = save(written.evidence, metadata={"samples": json.dumps(about)})
    write_atomic(store.path(0), content)
    assert not store.read(0).checked
    assert torch.equal(store.read(0).evidence["map"], written.evidence["map"])
    store.path(0).write_bytes(content[:-4])
    assert store.find(0, written.keys) is None


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
