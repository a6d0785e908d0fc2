"""What a command tells while it works, for machines and for later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.factory import make_folder
from tests.kit.terminal import call

CLIP = ["--backbone", "tiny-b16p", "--weights", "random", "--set", "size=32", "--workers", "1"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_folder(tmp_path / "parts", ("nut",), each=2)


def test_a_run_tells_machines_everything_in_json_lines(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run.log"
    run = ["run", "-m", "clip", "-d", data, *CLIP, "--progress", "json", "--log-file", log]
    assert call(*run) == 0
    out, err = capfd.readouterr()
    events = [json.loads(line) for line in err.splitlines()]
    assert out.startswith("parts: 4 images")  # the board stays what it is
    assert {"event": "start", "part": "parts: clip", "images": 4} in events
    last = [event for event in events if event["event"] == "progress"][-1]
    assert (last["done"], last["images"], last["done_of_all"], last["images_of_all"]) == (4, 4, 4, 4)
    assert events[-1]["event"] == "say" and events[-1]["text"].endswith("reference")
    kept = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
    assert kept[-1] == events[-1]["text"] and "parts: scoring clip" in kept


def test_a_mistake_is_an_event_and_in_the_log(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "run.log"
    run = ["run", "-m", "clip", "-d", data, *CLIP, "--protocol", "refrence"]
    assert call(*run, "--progress", "json", "--log-file", log) == 2
    (event,) = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert event["event"] == "error" and "Did you mean 'reference'?" in event["text"]
    assert "error: unknown protocol 'refrence'" in log.read_text()
    assert call(*run, "--progress", "jsn") == 2
    assert "Did you mean 'json'?" in capfd.readouterr().err
