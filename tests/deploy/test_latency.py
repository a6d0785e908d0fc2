"""``zsad bench latency``: rows, their file, what is refused. No time is judged."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.kit import tiny
from tests.kit.terminal import call
from zsadbench.bench import bench_latency, latency
from zsadbench.engine import WARM, encoder
from zsadbench.errors import MethodError
from zsadbench.views import Predictor, Setup

FEW: dict[str, Any] = {"images": 2, "pixels": 40, "repeats": 5, "quiet": True}


def test_methods_and_files_are_timed_in_turn_from_files_and_from_arrays(
    tmp_path: Path, setup: Setup, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    judge, ticks = Predictor.__call__, iter(range(10**6))

    def watched(self: Predictor, image: Any, **options: Any) -> Any:
        found = judge(self, image, **options)
        assert found.map.shape == (40, 40)
        seen.append((type(self.engine).__name__, type(image).__name__))
        return found

    monkeypatch.setattr(Predictor, "__call__", watched)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: next(ticks) ** 2 / 1000))
    words = ["clip", model, "--backbone", setup.backbone, "--input-size", 42, "--words", "nut", "--images", 2]
    assert call("bench", "latency", *words, "--pixels", 40, "--repeats", 5, "--out", tmp_path / "l.json") == 0
    kept = json.loads((tmp_path / "l.json").read_text())
    assert (kept["about"]["images"], kept["about"]["pixels"], kept["about"]["repeats"]) == (2, 40, 5)
    turn = [
        (name, kind)
        for name in ("ClipEngine", "ModelEngine")
        for kind in (type(tmp_path).__name__, "ndarray")
    ]
    assert seen == turn * (WARM + 5)
    places = [(runtime, source) for runtime in ("torch", "onnxruntime") for source in ("file", "array")]
    assert [(row["runs_in"], row["image_from"]) for row in kept["rows"]] == places
    # Call n begins at (2 n)^2 and ends at (2 n + 1)^2: it takes 4 n + 1.
    for number, row in enumerate(kept["rows"]):
        times = [4 * (4 * turns + number) + 1 for turns in range(WARM, WARM + 5)]
        assert (row["subject"], row["device"]) == (("clip", str(model))[number // 2], "cpu")
        found = [row[name] for name in ("median_ms", "p95_ms", "p99_ms")]
        assert found == pytest.approx(np.percentile(times, (50, 95, 99)).tolist())


def test_a_trained_method_without_a_checkpoint_runs_with_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "load_clip", tiny.load)
    monkeypatch.setattr(latency, "load_clip", tiny.load)
    rows = bench_latency(["april-gan"], backbone="tiny-l14", settings={"size": "28"}, **FEW).rows
    assert [row["subject"] for row in rows] == ["april-gan"] * 2 and all(row["median_ms"] > 0 for row in rows)


def test_what_has_no_latency_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MethodError, match="one image alone has no latency; zsad bench musc"):
        bench_latency(["musc"], backbone="tiny-l14", **FEW)
    assert call("bench", "latency", model, "--device", "cuda") == 2
    assert "runs on the CPU; leave out: device" in capsys.readouterr().err
    assert call("bench", "latency", "clip", "--batch-size", 2) == 2
    assert "latency is that of one image at a time" in capsys.readouterr().err
    assert call("bench", "latency") == 2 == call("bench", "clip", "latency")


def test_a_file_uses_the_threads_that_the_environment_says(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zsadbench.deploy import ModelEngine

    for said, threads in (("3", 3), ("2,1", 2), ("many", None), ("", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert ModelEngine(model).threads == threads
