"""Checkpoints and boards of the Hugging Face Hub, wherever a verb takes one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import zsadbench
from tests.cli.test_cli import zsad
from tests.cli.test_train_cli import linear_file
from tests.kit import tiny
from tests.kit.factory import make_folder
from tests.kit.hub import FIRST, SECOND, Hub, served
from zsadbench.clip.checkpoints import Provenance, read_provenance, save_checkpoint
from zsadbench.engine import encoder
from zsadbench.files import hash_file

CLIP = ["--backbone", "tiny-l14", "--weights", "random", "--set", "size=42", "--workers", "1", "-q"]
ADDRESS = "hf://user/repo/linear.safetensors"
PINNED = f"hf://user/repo@{FIRST}/linear.safetensors"


@pytest.fixture(autouse=True)
def cached_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)


@pytest.fixture
def hub(tmp_path: Path, checkpoint: Path) -> Iterator[Hub]:
    with served(tmp_path / "hub") as hub:
        hub.put("user/repo", {"linear.safetensors": checkpoint.read_bytes()})
        yield hub


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "parts", ("bolt",), each=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of noise for clip-ad+ on the miniature."""
    path = tmp_path_factory.mktemp("checkpoint") / "linear.safetensors"
    noise = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in linear_file("all")["all"].items()}
    tensors = {name: torch.randn(shape, generator=noise) / 10 for name, shape in shapes.items()}
    save_checkpoint(path, tensors, Provenance("clip-ad+", dataset="visa", images=("another",), epoch=3))
    return path


def observations(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("observation.json"))]


def run(data: Path, out: Path, *files: object) -> list[str]:
    given = [word for file in files for word in ("--checkpoint", str(file))]
    return ["run", "-m", "clip-ad+", "-d", str(data), *given, *CLIP, "--out", str(out)]


def test_a_record_holds_digest_and_commit_and_is_run_again(
    hub: Hub, data: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = zsad(capfd, *run(data, tmp_path / "first", ADDRESS))
    assert code == 0, err
    assert f"clip-ad+ uses {PINNED}" in err
    (first,) = observations(tmp_path / "first")
    assert first["checkpoint"]["address"] == PINNED
    assert first["checkpoint"]["sha256"] == hash_file(checkpoint)
    assert first["command"][first["command"].index("--checkpoint") + 1] == PINNED
    hub.put("user/repo", {"linear.safetensors": b"another"}, SECOND)
    (record,) = (tmp_path / "first").rglob("record.json")
    code, _, err = zsad(capfd, "run", "--like", str(record), "-q", "--out", str(tmp_path / "again"))
    assert code == 0, err
    code, _, err = zsad(capfd, *run(data, tmp_path / "local", checkpoint))
    assert code == 0, err
    (again,), (local,) = observations(tmp_path / "again"), observations(tmp_path / "local")
    assert again["observation"] == local["observation"] == first["observation"]
    assert "address" not in local["checkpoint"]


def test_several_checkpoints_here_and_there(
    hub: Hub, data: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    tensors = {name: value / 2 for name, value in linear_file("all")["all"].items()}
    save_checkpoint(other, tensors, Provenance("clip-ad+", dataset="visa", images=("another",), epoch=9))
    code, text, err = zsad(capfd, *run(data, tmp_path / "results", ADDRESS, other))
    assert code == 0, err
    found = {one["checkpoint"]["epoch"]: one["checkpoint"].get("address") for one in observations(tmp_path)}
    assert found == {3: PINNED, 9: None}
    assert sum(line.strip().startswith("clip-ad+") for line in text.splitlines()) == 2


def test_addresses_in_python_and_in_settings(hub: Hub, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"backbone": "tiny-l14", "weights": "random", "workers": 1, "quiet": True}
    size = {"size": "42"}
    for number, (checkpoints, settings) in enumerate(
        (((ADDRESS,), size), ((), size | {"checkpoint": ADDRESS}))
    ):
        out = tmp_path / str(number)
        zsadbench.run("clip-ad+", str(data), out=out, checkpoints=checkpoints, settings=settings, **options)
    first, second = (observations(tmp_path / name)[0] for name in ("0", "1"))
    assert first["observation"] == second["observation"]
    assert first["checkpoint"]["address"] == second["checkpoint"]["address"] == PINNED
    method: Any = zsadbench.load_method("clip-ad+", checkpoint=ADDRESS)
    assert read_provenance(Path(method.checkpoint)).epoch == 3


@pytest.mark.parametrize("words", [(), ("HF_HUB_OFFLINE",)])
def test_what_cannot_be_had_is_one_line(
    words: tuple[str, ...],
    hub: Hub,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.refused["user/repo"] = (401, "GatedRepo")
    for word in words:
        monkeypatch.setattr(constants, word, True)
    reason = "HF_HUB_OFFLINE is set" if words else "the repository is gated"
    calls = [
        run(data, tmp_path / "out", ADDRESS),
        ["predict", str(data / "bolt/test/good"), "-m", "clip-ad+", "--checkpoint", ADDRESS, *CLIP],
        ["reproduce", "--all", "-d", "demo", "--checkpoint", ADDRESS, "-q"],
        ["methods", "check", "clip-ad+", "--checkpoint", ADDRESS],
        ["checkpoints", "pull", ADDRESS],
        ["checkpoints", "show", ADDRESS],
        ["checkpoints", "import", "hf://user/repo/epoch_15.pth", "-m", "clip-ad+", *CLIP[:6]],
    ]
    for call in calls:
        code, text, err = zsad(capfd, *call)
        assert (code, text) == (2, ""), err
        assert reason in err and err.count("\n") == 1, err
    assert not (tmp_path / "out").exists()


def test_pull_prints_where_what_and_whence(
    hub: Hub, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.safetensors"
    code, text, err = zsad(capfd, "checkpoints", "pull", ADDRESS)
    assert code == 0, err
    said = dict(line.split(maxsplit=1) for line in text.splitlines()[:4])
    assert (
        said["address"] == PINNED and said["sha256"] == hash_file(checkpoint) and said["method"] == "clip-ad+"
    )
    assert Path(said["file"]).read_bytes() == checkpoint.read_bytes()
    assert "trained on    visa" in text and "epoch         3" in text
    code, text, err = zsad(capfd, "checkpoints", "pull", ADDRESS, "--out", str(out))
    assert code == 0 and text.startswith(f"file          {out}\nsha256 "), text + err
    assert out.read_bytes() == checkpoint.read_bytes()


def test_authors_files_are_imported_from_the_hub(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(linear_file("linear_layers"), tmp_path / "epoch_15.pth")
    hub.put("user/authors", {"weights/epoch_15.pth": (tmp_path / "epoch_15.pth").read_bytes()})
    address = "hf://user/authors/weights/epoch_15.pth"
    code, _, err = zsad(capfd, "checkpoints", "pull", address)
    assert code == 2 and f"zsad checkpoints import {address} --method METHOD" in err
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    code, text, err = zsad(capfd, "checkpoints", "import", address, "-m", "clip-ad+", *CLIP[:4])
    assert (code, text) == (0, "epoch_15.safetensors\n"), err
    about = read_provenance(Path("epoch_15.safetensors"))
    assert about.source.startswith(f"hf://user/authors@{FIRST}/weights/epoch_15.pth (")
    assert about.epoch == 15


def test_a_threshold_finds_its_checkpoint_again(
    hub: Hub, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "threshold.json"
    words = ["--normal", str(data / "bolt/test/good"), "-m", "clip-ad+", "--words", "bolt", "--force"]
    code, _, err = zsad(capfd, "calibrate", *words, "--checkpoint", ADDRESS, *CLIP, "--out", str(limit))
    assert code == 0, err
    assert json.loads(limit.read_text())["setup"]["checkpoint"] == PINNED
    hub.put("user/repo", {"linear.safetensors": b"another"}, SECOND)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    good = str(data / "bolt/test/good")
    code, text, err = zsad(capfd, "predict", good, "--threshold", str(limit), "-q")
    assert code == 0 and text.count("OK") == 2, err


def test_a_board_of_the_hub_is_a_baseline(
    hub: Hub, data: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert zsad(capfd, *run(data, results, checkpoint))[0] == 0
    assert zsad(capfd, "compare", str(results))[0] == 0
    hub.put("datasets/user/boards", {"demo/leaderboard.csv": (results / "leaderboard.csv").read_bytes()})
    words = ["compare", str(results), "--no-write", "--baseline"]
    code, _, err = zsad(capfd, *words, "hf://datasets/user/boards/demo/leaderboard.csv")
    assert code == 0, err
    code, _, err = zsad(capfd, *words, "hf://datasets/user/boards/none.csv")
    assert code == 2 and "hf://datasets/user/boards/none.csv: the repository holds no such file" in err
