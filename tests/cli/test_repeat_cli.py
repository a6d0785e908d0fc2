"""A run as a file: options from a TOML file, and the run of a record again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kit import tiny, toy
from tests.kit.factory import make_folder, save
from tests.kit.terminal import call
from zsadbench.clip import load_clip
from zsadbench.engine import encoder
from zsadbench.records.files import sealed
from zsadbench.records.records import Record, find_records

SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
}
TABLE = """
method = ["clip"]
dataset = {dataset}
backbone = "tiny-l14"
weights = "random"
set = {{ size = 42 }}
category = "bolt"
protocol = "common-1"
aupro-limit = [0.1, 0.2]
exact_maps = true
quiet = true
"""


@pytest.fixture(autouse=True)
def cached_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "parts")


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(TABLE.format(dataset=json.dumps(str(data))))
    return path


def only(folder: Path) -> Record:
    (record,), _ = find_records([folder])
    return record


def test_a_file_says_what_options_say(config: Path, data: Path, tmp_path: Path) -> None:
    assert call("run", "--config", config, "--out", tmp_path / "file") == 0
    words = ["--method", "clip", "--dataset", data, "--backbone", "tiny-l14", "--weights", "random"]
    words += ["--set", "size=42", "--category", "bolt", "--protocol", "common-1", "--exact-maps", "-q"]
    words += ["--aupro-limit", "0.1", "--aupro-limit", "0.2", "--out", tmp_path / "words"]
    assert call("run", *words) == 0
    assert only(tmp_path / "file").digest == only(tmp_path / "words").digest
    assert only(tmp_path / "file").protocol["aupro_limits"] == [0.3, 0.1, 0.2]


def test_the_command_line_goes_before_the_file(config: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert call("run", "--config", config, "--category", "cloth", "--protocol", "reference", *out) == 0
    record = only(tmp_path / "out")
    assert list(record.categories) == ["cloth"] and record.protocol["size"] == "frame"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("metod = ['clip']", "'metod' is no option. Did you mean 'method'?"),
        ("config = 'other.toml'", "'config' is no option."),
        ("limit = [1, 2]", "'limit' takes one value, not a list"),
        ("limit = true", "'limit' must be a value, not true or false"),
        ("skip-bad = 'yes'", "'skip-bad' must be true or false"),
        ("limit = 'many'", "Invalid value for '--limit'"),
        ("limit = ", "cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_one_line(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(line)
    assert call("run", "--config", path) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert call("run", "--config", tmp_path / "none.toml") == 2
    assert "no such file" in capsys.readouterr().err


def test_a_record_holds_the_command_that_repeats_it(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("run", "--config", config, "--out", tmp_path / "first") == 0
    first = only(tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    assert call("run", "--like", first.path, "--out", tmp_path / "again", "-q") == 0
    again = only(tmp_path / "again")
    assert again.digest == first.digest and again.content["command"] == first.content["command"]
    words = first.content["command"]
    assert call("run", *words, "--out", tmp_path / "third", "-q") == 0
    assert only(tmp_path / "third").digest == first.digest


def test_seeds_are_repeated_one_by_one(data: Path, tmp_path: Path) -> None:
    words = ["--method", "clip", "--dataset", data, "--backbone", "tiny-l14", "--weights", "random"]
    words += ["--set", "size=42", "--seeds", "2", "--limit", "4", "-q"]
    assert call("run", *words, "--out", tmp_path / "both") == 0
    both, _ = find_records([tmp_path / "both"])
    assert {record.seed for record in both} == {0, 1}
    for record in both:
        out = tmp_path / f"seed-{record.seed}"
        assert call("run", "--like", record.path.parent, "--out", out, "-q") == 0
        assert only(out).observation_digest == record.observation_digest


def test_a_backbone_from_a_file_is_known_by_what_the_file_says(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoder, "load_clip", load_clip)
    (tmp_path / "here").mkdir()
    file = tmp_path / "here/small.json"
    file.write_text(json.dumps(SMALL))
    monkeypatch.chdir(file.parent)
    words = [
        "--method",
        "clip",
        "--dataset",
        data,
        "--weights",
        "random",
        "--set",
        "size=32",
        "--limit",
        "4",
        "-q",
    ]
    assert call("run", "--backbone", "small.json", *words, "--out", tmp_path / "first") == 0
    first = only(tmp_path / "first")
    assert (
        first.observation["backbone"]["name"] == "small"
        and len(first.observation["backbone"]["architecture"]) == 64
    )

    monkeypatch.chdir(tmp_path)  # from another folder, with the file written anew and moved
    file.write_text(json.dumps(dict(reversed(SMALL.items())), indent=4))
    assert call("run", "--like", first.path, "--out", tmp_path / "again", "-q") == 0
    assert only(tmp_path / "again").observation_digest == first.observation_digest
    file.unlink()
    capsys.readouterr()
    assert call("run", "--like", first.path, "--out", tmp_path / "gone", "-q") == 2
    said = capsys.readouterr().err
    assert f"{file}: no such architecture file" in said and said.count("\n") == 1

    deeper = SMALL | {"vision_cfg": SMALL["vision_cfg"] | {"layers": 2}}
    file.write_text(json.dumps(deeper))
    assert call("run", "--like", first.path, "--out", tmp_path / "changed", "-q") == 2
    said = capsys.readouterr().err
    assert f"the backbone declared in {file} is another one now" in said and said.count("\n") == 1
    assert not (tmp_path / "changed").exists()
    assert call("run", "--like", first.path, "--backbone", file, "--out", tmp_path / "own", "-q") == 0
    assert only(tmp_path / "own").observation_digest != first.observation_digest
    words += ["--out", tmp_path / "first"]
    assert call("run", "--backbone", file, *words) == 0
    assert len(find_records([tmp_path / "first"])[0]) == 2  # other layers, though name and weights are equal


def test_scoring_again_adds_its_own_words(config: Path, tmp_path: Path) -> None:
    assert call("run", "--config", config, "--out", tmp_path / "first") == 0
    run_dir = only(tmp_path / "first").path.parents[1]
    assert call("score", run_dir, "--protocol", "reference", "--size", 60) == 0
    records, _ = find_records([run_dir])
    custom = next(record for record in records if record.protocol["size"] == 60)
    assert call("run", "--like", custom.path, "--out", tmp_path / "again", "-q") == 0
    assert only(tmp_path / "again").digest == custom.digest


def test_a_record_never_says_which_code_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = toy.write(tmp_path)
    assert call("run", "-m", spec, "-d", data, "--set", "size=42", "-q", "--out", tmp_path / "out") == 0
    record = only(tmp_path / "out")
    capsys.readouterr()
    assert call("run", "--like", record.path, "--out", tmp_path / "again", "-q") == 2
    said = capsys.readouterr().err
    assert "its method is a user's; name the file again" in said and "name a method with --method" in said
    assert call("run", "--like", record.path, "--method", spec, "--out", tmp_path / "again", "-q") == 0
    assert only(tmp_path / "again").observation_digest == record.observation_digest


@pytest.mark.parametrize("words", [["--out", "elsewhere"], ["--log-file", "log"], ["--config", "run.toml"]])
def test_a_record_decides_nothing_but_its_run(
    words: list[str], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert call("run", "--config", config, "--out", tmp_path / "out") == 0
    path = only(tmp_path / "out").path
    content = json.loads(path.read_text())
    content["command"] += words
    path.write_text(json.dumps(sealed(content)))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert call("run", "--like", path, "-q") == 2
    assert f"'{words[0]}' is no part of a run" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "log").exists()


def test_records_without_a_command_are_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "--like", tmp_path) == 2
    assert "no record is there" in capsys.readouterr().err
    shutil.copytree(Path(__file__).parents[1] / "records" / "stored", tmp_path / "old")
    old, _ = find_records([tmp_path / "old"])
    assert call("run", "--like", old[0].path) == 2
    assert "holds no command" in capsys.readouterr().err


def test_metrics_on_request_are_shown_and_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = make_folder(tmp_path / "parts", categories=("bolt",))
    for index in range(2):
        save(parts / "bolt" / "train" / "good" / f"{index}.png", np.full((40, 40, 3), 100 + 9 * index))
    words = ["--method", "clip", "--dataset", parts, "--backbone", "tiny-l14", "--weights", "random"]
    words += ["--set", "size=42", "-q"]
    asked = ["--metric", "pixel_segf1", "--metric", "image_classf1"]
    assert call("run", *words, *asked, "--out", tmp_path / "first") == 0
    first = only(tmp_path / "first")
    assert {"SegF1", "ClassF1"} <= set(capsys.readouterr().out.split())
    assert call("run", "--like", first.path, "--out", tmp_path / "again", "-q") == 0
    assert only(tmp_path / "again").digest == first.digest
    assert call("score", first.path.parents[1], "--metric", "pixel_segf1") == 0
    assert only(tmp_path / "first").protocol["metrics"] == ["pixel_segf1"]
    capsys.readouterr()
    assert call("run", *words, "--metric", "segf1", "--out", tmp_path / "other") == 2
    assert "--metric segf1: no such metric." in capsys.readouterr().err
