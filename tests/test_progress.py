"""Progress where there is no terminal: plain lines, JSON lines, a log file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer

from zsadbench.errors import UsageError
from zsadbench.progress import Progress, reported


def test_plain_lines_tell_dataset_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr("zsadbench.progress.time.monotonic", lambda: next(clock))
    with Progress([("mvtec: clip", 100), ("visa: clip", 100)]) as shown:
        shown.start()
        shown.advance(40)
        shown.advance(60)
        shown.start()
        shown.advance(20)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "mvtec: clip: 100 images",
        "mvtec: clip: 40 of 100, 2.0 images/s, 30 s left, 80 s over all",
        "visa: clip: 100 images",
        "visa: clip: 20 of 100, 3.0 images/s, 27 s left, 27 s over all",
    ]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress([("x", 1)], quiet=True) as shown:
        shown.start()
        shown.advance(1)
        shown.say("done")
    assert capsys.readouterr().err == ""


def test_json_lines_are_for_machines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 2.0, 2.5, 4.0])
    monkeypatch.setattr("zsadbench.progress.time.monotonic", lambda: next(clock))
    with reported("json"), Progress([("mvtec: clip", 100)], form="json") as shown:
        shown.start()
        shown.advance(40)
        shown.advance(10)
        shown.advance(50)
        shown.say("mvtec: scoring clip")
        print("two\nlines", file=sys.stderr)
        typer.echo("and a last one", err=True, nl=False)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert events[0] == {"event": "start", "part": "mvtec: clip", "images": 100}
    assert events[1] == {
        "event": "progress",
        "part": "mvtec: clip",
        "done": 40,
        "images": 100,
        "done_of_all": 40,
        "images_of_all": 100,
        "images_per_second": 20.0,
        "seconds_left": 3.0,
    }
    assert [event["done"] for event in events if event["event"] == "progress"] == [40, 100]
    said = [event["text"] for event in events if event["event"] == "say"]
    assert said == ["mvtec: scoring clip", "two", "lines", "and a last one"]


def test_a_log_file_keeps_what_is_told_with_its_time(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "run.log"
    with pytest.raises(UsageError, match="wrong"), reported("auto", log):
        print("\x1b[1mbold\x1b[0m", file=sys.stderr)
        assert not sys.stderr.isatty()
        raise UsageError("wrong")
    assert capsys.readouterr().err == "\x1b[1mbold\x1b[0m\n"
    with reported("auto", log):
        print("again", file=sys.stderr)
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    assert [text for _, text in lines] == ["bold", "error: wrong", "again"]
    assert all(time[:2] == "20" and "T" in time for time, _ in lines)


def test_an_unknown_form_or_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'json'"), reported("jsn"):
        pass
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="choose another --log-file"),
        reported("auto", tmp_path / "file" / "x"),
    ):
        pass
