"""Progress lines where there is no terminal."""

from __future__ import annotations

import pytest

from zsadbench.progress import Progress


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
