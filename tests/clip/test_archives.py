"""Weight files that are something else, unpack to too much, or hold other than real numbers."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.kit import tiny
from zsadbench.clip.archives import examine, is_torchscript, read_state, read_torchscript
from zsadbench.clip.checkpoints import load_checkpoint
from zsadbench.clip.towers import load_clip
from zsadbench.errors import WeightsError
from zsadbench.inputs import Backbone
from zsadbench.training.authors import read_tables

MIB = 2**20
READERS: list[Callable[[Path], object]] = [
    read_state,
    read_tables,
    lambda path: load_checkpoint(path, "clip-ad+", {"a": (1,)}),
    lambda path: load_clip(Backbone("tiny-b16p", str(path), "gelu")),
]
ADVICE = ("weights_only", "file an issue", "trusted", "pytorch.org")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 933000000\n"


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a page of HTML"),
        (b"\n  <html>\n", "a page of HTML"),
        (b"", "the file is empty"),
    ],
)
def test_what_lies_in_place_of_a_file_is_called_that(
    read: Callable[[Path], object], suffix: str, content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / f"ViT{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.parametrize("read", [read_state, read_tables])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(Hostile(), 2), "posix.system"),
        (b"\x1b[31m\x07\x9b2J garbage", "no pickle of tensors"),
        (struct.pack("<Q", 8) + b'{"\x1b[2J":', ""),
    ],
)
def test_a_refusal_advises_nothing_and_shows_no_control_characters(
    read: Callable[[Path], object], content: bytes, words: str, tmp_path: Path
) -> None:
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            read(path)
        message = str(caught.value)
        assert message.isprintable()
        assert not any(advice in message for advice in ADVICE), message
        assert words in message or suffix == ".safetensors"


def deflated(source: Path, target: Path) -> Path:
    """Write an archive again, compressed."""
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
    return target


def peak(call: Callable[[], object]) -> int:
    """Return the most memory that Python's own allocations took during ``call``."""
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("marker", ["other.pkl", "constants.pkl"])
def test_an_archive_is_refused_by_its_declared_size(marker: str, tmp_path: Path) -> None:
    """Both as torch.save writes it and as TorchScript lies on disk."""
    torch.save({"a": torch.zeros(32 * MIB // 4)}, tmp_path / "plain.pt")
    path = deflated(tmp_path / "plain.pt", tmp_path / "bomb.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"plain/{marker}", b"\x80\x02).")
    assert path.stat().st_size < MIB and is_torchscript(path) is (marker == "constants.pkl")
    for read in READERS:
        with pytest.raises(WeightsError, match=r"bytes unpack to 33,\d+,\d+, more than tensors take"):
            read(path)
        assert peak(lambda read=read: read(path)) < 4 * MIB  # type: ignore[misc]


def test_a_compressed_archive_of_the_size_an_architecture_needs_is_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(4096.0) // 64}
    torch.save(state, tmp_path / "plain.pt")
    path = deflated(tmp_path / "plain.pt", tmp_path / "small.pt")
    assert torch.equal(read_state(path, needed=8 * 4096)["a"], state["a"])
    with pytest.raises(WeightsError, match="unpack to"):
        examine(path, needed=4096)


def torchscript(path: Path, data: bytes) -> Path:
    """Write an archive like TorchScript's around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/constants.pkl", b"\x80\x02).")
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", bytes(4))
    return path


def nested(levels: int) -> bytes:
    """Return the pickle of modules that each hold the next one twice: 2 ** ``levels`` names."""
    module = b"c__torch__\nM\n)R"  # an instance on the stack
    text = b"\x80\x02" + module + b"q\x00"
    for level in range(levels):
        below = b"h" + bytes([level])
        text += module + b"q" + bytes([level + 1]) + b"}(X\x01\x00\x00\x00a" + below
        text += b"X\x01\x00\x00\x00b" + below + b"ub"
    return text + b"."


def test_a_tree_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="its tree holds more than"):
        read_state(torchscript(tmp_path / "deep.pt", nested(60)))
    assert read_torchscript(torchscript(tmp_path / "flat.pt", nested(3))) == {}


def test_a_tensor_that_repeats_one_number_takes_no_memory(tmp_path: Path) -> None:
    place = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00"
    )
    side = b"J" + struct.pack("<i", 10**7)
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + side + side + b"\x86K\x00K\x00\x86tR"
    path = torchscript(tmp_path / "jit.pt", b"\x80\x02" + tensor + b".")
    assert read_torchscript(path)[""].shape == (10**7, 10**7)
    with pytest.raises(WeightsError, match="weights of another architecture"):
        load_clip(Backbone("tiny-b16p", str(path), "gelu"))


def test_an_archive_with_a_broken_directory_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/constants.pkl", b"x" * 100)
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place : place + 4] = b"XXXX"
    path.write_bytes(content)
    assert zipfile.is_zipfile(path) and not is_torchscript(path)


def state_with(key: str, value: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in tiny.clip("tiny-b16p").text.module.state_dict().items()}
    return state | {key: value(state[key])}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("visual.proj", lambda x: x.to(torch.int64), "visual.proj holds int64, not real numbers"),
        ("visual.proj", lambda x: x.to(torch.complex64), "visual.proj holds complex64, not real numbers"),
        ("visual.proj", lambda x: x * torch.nan, "visual.proj holds infinite or undefined numbers"),
        ("logit_scale", lambda x: x * torch.inf, "logit_scale holds infinite or undefined numbers"),
        ("logit_scale", lambda x: x * 0 + 1000, "logit_scale gives a temperature of inf"),
        ("logit_scale", lambda x: x * 0 - 1000, "logit_scale gives a temperature of 0"),
    ],
)
def test_weights_are_finite_real_numbers(
    key: str, value: Callable[[Tensor], Tensor], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(state_with(key, value), path)
    with pytest.raises(WeightsError, match=words):
        load_clip(Backbone("tiny-b16p", str(path), "gelu"))


def test_names_in_a_file_may_be_anything(tmp_path: Path) -> None:
    path = tmp_path / "names.safetensors"
    header = json.dumps({"\u202e\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(WeightsError, match="image width 0 in the file"):
        load_clip(Backbone("tiny-b16p", str(path), "gelu"))
