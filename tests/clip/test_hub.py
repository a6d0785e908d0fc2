"""Files of the Hugging Face Hub: what an address names, what is fetched when, each refusal in a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from tests.kit.hub import FIRST, SECOND, Hub, served
from zsadbench.clip import downloads
from zsadbench.clip.checkpoints import (
    Provenance,
    checkpoint_file,
    describe,
    load_checkpoint,
    pull_checkpoint,
    save_checkpoint,
)
from zsadbench.clip.downloads import HubFile, hub_address, local_file
from zsadbench.errors import UsageError, WeightsError
from zsadbench.files import hash_file

ADDRESS = "hf://user/repo/sub/a.safetensors"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with served(tmp_path / "hub") as hub:
        yield hub


def checkpoint(folder: Path, value: float = 0.0) -> bytes:
    path = folder / "made.safetensors"
    save_checkpoint(path, {"a": torch.full((2,), value)}, Provenance("clip-ad+", dataset="visa", epoch=3))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("address", "kind", "repository", "revision", "file"),
    [
        ("hf://user/repo/a.b", "model", "user/repo", "main", "a.b"),
        ("hf:/user/repo/a.b", "model", "user/repo", "main", "a.b"),  # as pathlib writes it
        ("hf://models/user/repo@v1.0/x/a@2", "model", "user/repo", "v1.0", "x/a@2"),
        ("hf://datasets/user/repo@refs%2Fpr%2F1/board.csv", "dataset", "user/repo", "refs/pr/1", "board.csv"),
    ],
)
def test_an_address_names_a_file(address: str, kind: str, repository: str, revision: str, file: str) -> None:
    assert HubFile.parse(address) == HubFile(kind, repository, revision, file)


@pytest.mark.parametrize(
    "rest",
    ["", "user", "user/repo", "user/repo/", "datasets/user/repo", "user/repo@/a", "user/repo/../a", "a//b"],
)
def test_an_address_of_another_form_is_refused(rest: str, hub: Hub) -> None:
    with pytest.raises(UsageError, match=r"no address of a file.*write hf://user/repo/file"):
        local_file(f"hf://{rest}")
    with pytest.raises(UsageError, match=r"no address of a file.*write hf://user/repo/file"):
        checkpoint_file(f"hf://{rest}")
    assert not hub.asked


def test_a_path_stays_a_path() -> None:
    assert local_file("here/a.safetensors") == Path("here/a.safetensors")
    assert hub_address("here/a.safetensors") == ""
    assert hub_address(f"x/models--u--r/snapshots/{FIRST}") == ""
    assert hub_address(f"x/others--u--r/snapshots/{FIRST}/a") == ""


def test_a_branch_moves_and_a_commit_stays(hub: Hub) -> None:
    hub.put("user/repo", {"sub/a.safetensors": b"first"})
    path = local_file(ADDRESS)
    pinned = f"hf://user/repo@{FIRST}/sub/a.safetensors"
    assert (path.read_bytes(), hub_address(path)) == (b"first", pinned)
    hub.put("user/repo", {"sub/a.safetensors": b"second"}, SECOND)
    assert local_file(ADDRESS).read_bytes() == b"second"
    hub.asked.clear()
    assert local_file(pinned) == path and path.read_bytes() == b"first"
    assert not hub.asked


def test_a_repository_of_a_dataset(hub: Hub) -> None:
    hub.put("datasets/user/boards", {"leaderboard.csv": b"method\n"})
    path = local_file("hf://datasets/user/boards/leaderboard.csv")
    assert path.read_bytes() == b"method\n"
    assert hub_address(path) == f"hf://datasets/user/boards@{FIRST}/leaderboard.csv"


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no network"])
def test_without_a_network_the_cache_serves(how: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("user/repo", {"sub/a.safetensors": b"first"})
    path = local_file(ADDRESS)
    hub.asked.clear()
    if how == "no network":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_file(ADDRESS) == path
    with pytest.raises(WeightsError) as caught:
        local_file("hf://user/repo/b.safetensors")
    reason = "HF_HUB_OFFLINE is set" if how == "HF_HUB_OFFLINE" else "[Errno 111] Connection refused"
    assert str(caught.value) == (
        "hf://user/repo/b.safetensors: is not in the cache of this machine and could not be fetched "
        f"({reason}); fetch it where there is a network and give that file in place of the address"
    )
    assert not hub.asked


@pytest.mark.parametrize(
    ("address", "refusal", "words"),
    [
        (
            "hf://user/gone/a",
            None,
            "no such model repository, or it is private; correct the name, or sign in",
        ),
        ("hf://user/repo@v9/a", None, "the repository has no revision 'v9'"),
        ("hf://user/repo/b", None, "the repository holds no such file at revision 'main'; correct the path"),
        (
            "hf://user/repo/a",
            (401, "GatedRepo"),
            r"the repository is gated; accept its terms .* hf auth login",
        ),
        ("hf://user/repo/a", (403, ""), r"the Hub refuses access \(.*403.*\); sign in .* set HF_TOKEN"),
    ],
)
def test_a_refusal_is_one_line_with_a_remedy(
    address: str, refusal: tuple[int, str] | None, words: str, hub: Hub
) -> None:
    hub.put("user/repo", {"a": b"first"})
    if refusal:
        hub.refused["user/repo"] = refusal
    with pytest.raises(WeightsError, match=words) as caught:
        local_file(address)
    assert str(caught.value).startswith(f"{address}: ") and "\n" not in str(caught.value)


def test_a_file_changed_in_the_cache_is_found_out(hub: Hub) -> None:
    hub.put("user/repo", {"sub/a.safetensors": b"first"})
    path = local_file(ADDRESS)
    path.resolve().write_bytes(b"other")
    with pytest.raises(
        WeightsError, match=r"not the one of the Hub .*; remove .*/blobs/[0-9a-f]{64} and repeat"
    ):
        local_file(f"hf://user/repo@{FIRST}/sub/a.safetensors")


def test_a_checkpoint_comes_with_its_provenance(hub: Hub, tmp_path: Path) -> None:
    content = checkpoint(tmp_path)
    hub.put("user/repo", {"sub/a.safetensors": content})
    path = checkpoint_file(ADDRESS)
    found = describe(path)
    assert found["address"] == f"hf://user/repo@{FIRST}/sub/a.safetensors"
    assert (found["sha256"], found["method"]) == (hash_file(tmp_path / "made.safetensors"), "clip-ad+")
    assert load_checkpoint(ADDRESS, "clip-ad+", {"a": (2,)})["a"].tolist() == [0, 0]
    with pytest.raises(
        WeightsError, match=rf"^hf://user/repo@{FIRST}/sub/a\.safetensors: a checkpoint of 'clip-ad\+'"
    ):
        load_checkpoint(ADDRESS, "april-gan", {"a": (2,)})


def test_pull_copies_and_never_replaces_another_file(hub: Hub, tmp_path: Path) -> None:
    content = checkpoint(tmp_path)
    hub.put("user/repo", {"sub/a.safetensors": content})
    out = tmp_path / "mine.safetensors"
    for _ in range(2):
        assert pull_checkpoint(ADDRESS, out).read_bytes() == content
    assert pull_checkpoint(ADDRESS, tmp_path) == tmp_path / "a.safetensors"
    out.write_bytes(b"something else")
    with pytest.raises(UsageError, match="exists already and is another file"):
        pull_checkpoint(ADDRESS, out)
    with pytest.raises(UsageError, match=r"a checkpoint is a \.safetensors file"):
        pull_checkpoint(ADDRESS, tmp_path / "mine.pth")
    with pytest.raises(UsageError, match="no address of the Hugging Face Hub"):
        pull_checkpoint("mine.safetensors")


def test_only_checkpoints_of_ours_are_taken(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Path:
        raise AssertionError("fetched what cannot be a checkpoint")

    hub.put("user/repo", {"sub/a.safetensors": b"no safetensors"})
    with pytest.raises(WeightsError, match=rf"^hf://user/repo@{FIRST}/sub/a\.safetensors: cannot be read"):
        pull_checkpoint(ADDRESS)
    monkeypatch.setattr(downloads, "_cached_or_fetched", never)
    with pytest.raises(WeightsError, match=r"zsad checkpoints import hf://user/repo/epoch_15\.pth --method"):
        checkpoint_file("hf://user/repo/epoch_15.pth")
