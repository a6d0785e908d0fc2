"""The page on experiment trackers: its frame of pandas runs, its calls are those of the packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call

import examples
import pytest

from tests.kit.boardkit import observation, protocol, row, save

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "trackers.md"
NAME = "mtd/reference/clip"


def blocks() -> list[examples.Block]:
    return [
        block for block in examples.blocks(PAGE.read_text(encoding="utf-8")) if block.language == "python"
    ]


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the block on pandas leaves, for a folder with two records."""
    monkeypatch.chdir(tmp_path)
    rows = [row("tile", 0.5, pixel_aupro=None, **{"pixel_aupro@0.05": 0.25})]
    save(tmp_path / "results", observation("clip"), *rows)
    save(tmp_path / "results", observation("anoclip"), row("tile", 0.75), rules=protocol("common-1"))
    known: dict[str, Any] = {}
    exec("\n".join(blocks()[0].lines), known)  # our own page
    return known


def run(known: dict[str, Any]) -> tuple[dict[str, str], dict[str, float]]:
    ((config, metrics),) = ((config, metrics) for name, config, metrics in known["runs"] if name == NAME)
    return config, metrics


def test_a_row_becomes_a_run_with_what_it_was_made_with(known: dict[str, Any]) -> None:
    assert sorted(name for name, _, _ in known["runs"]) == ["mtd/common-1/anoclip", NAME]
    config, metrics = run(known)
    assert metrics["image_auroc"] == 0.5 and "pixel_aupro" not in metrics
    assert all("@" not in name and value == value for name, value in metrics.items())
    assert (config["method"], config["protocol"], config["category"]) == ("clip", "reference", "mean")
    assert len(config["observation"]) >= 12 and config["metric_version"] == "1"


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_the_calls_take_what_the_frame_gives(
    package: str, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = (block for block in blocks() if f"import {package}" in block.lines)
    assert block.needs == ("package",)
    tracker = MagicMock()
    monkeypatch.setitem(sys.modules, package, tracker)
    exec("\n".join(block.lines), known)
    config, metrics = run(known)
    if package == "mlflow":
        assert call(run_name=NAME) in tracker.start_run.call_args_list
        assert call(config) in tracker.log_params.call_args_list
        assert call(metrics) in tracker.log_metrics.call_args_list
    else:
        assert call(project="zsadbench", name=NAME, config=config) in tracker.init.call_args_list
        assert call(metrics) in tracker.log.call_args_list and tracker.finish.call_count == 2
