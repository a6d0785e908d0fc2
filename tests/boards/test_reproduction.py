"""Ours beside what is published: what is judged, by what, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kit.boardkit import observation, protocol, row, save
from zsadbench.boards import reproducing as module
from zsadbench.boards.compare import boards
from zsadbench.boards.reproducing import (
    board_figures,
    reproduction,
    reproduction_cells,
    to_markdown,
    write_reproductions,
)
from zsadbench.boards.text import write_boards
from zsadbench.errors import RecordError
from zsadbench.records.published import Published
from zsadbench.records.records import Record

FIGURE = Published(
    "clip", "", "mtd", "mean", "image_auroc", 0.8, "paper", "ViT-B-16", "240", "table 1", rule=""
)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put figures in place of the shipped ones; marks by source stand for what sets a record apart."""

    def put(*figures: Published, marks: dict[str, tuple[str, ...]] | None = None) -> None:
        def found(
            method: str, variant: str, dataset: str, category: str, metrics: list[str], legacy: bool
        ) -> list[Published]:
            return [one for one in figures if one.category == category and one.metric in metrics]

        monkeypatch.setattr(module, "published_figures", found)
        monkeypatch.setattr(module, "differences", lambda record, one: (marks or {}).get(one.source, ()))

    return put


def record(folder: Path, value: float, **options: Any) -> Record:
    return save(folder, observation("clip"), row(image_auroc=value, pixel_aupro=value), **options)


@pytest.mark.parametrize(
    ("kind", "ours", "verdict"),
    [
        ("author-log", 0.805, "agrees"),
        ("author-log", 0.8051, "differs"),
        ("author-log", 0.7949, "differs"),
        ("paper", 0.81, "agrees"),
        ("paper", 0.7899, "differs"),
        ("quoted", 0.5, "not judged"),
        ("rerun", 0.8, "not judged"),
        ("derived", 0.8, "not judged"),
    ],
)
def test_the_tolerance_goes_by_where_a_figure_comes_from(
    kind: str, ours: float, verdict: str, publish: Any, tmp_path: Path
) -> None:
    publish(replace(FIGURE, kind=kind))
    found = reproduction([record(tmp_path, ours)])
    (line,) = found.lines
    assert (line.verdict, found.verdict) == (verdict, verdict)
    assert line.difference == pytest.approx(100 * (ours - 0.8))


def test_the_most_trusted_figure_that_fits_is_judged(publish: Any, tmp_path: Path) -> None:
    figures = [
        replace(FIGURE, kind="author-log", value=0.5, source="other"),
        replace(FIGURE, kind="author-log", value=0.7, source="own"),
        FIGURE,
    ]
    publish(*figures, marks={"ViT-B-16, 240 px, other": ("other backbone",), "other": ("other backbone",)})
    found = reproduction([record(tmp_path, 0.7)])
    assert [(line.source, line.verdict, line.why) for line in found.lines] == [
        ("ViT-B-16, 240 px, other", "not judged", "other backbone"),
        ("ViT-B-16, 240 px, own", "agrees", ""),
        ("ViT-B-16, 240 px, table 1", "not judged", "a more trusted figure is judged"),
    ]
    assert found.summary == "clip on mtd: agrees; all 1 figures agree, the largest by 0.00 points"


def test_a_checkpoint_of_ours_is_judged_and_said(publish: Any, tmp_path: Path) -> None:
    publish(FIGURE, marks={"table 1": ("own checkpoint",)})
    seen = observation("clip", checkpoint={"file": "mine.safetensors", "sha256": "0"})
    found = reproduction([save(tmp_path, seen, row(image_auroc=0.9))])
    assert found.verdict == "differs"
    assert any("trained here by the shipped recipe" in reason for reason in found.reasons)


def test_categories_are_judged_one_by_one(publish: Any, tmp_path: Path) -> None:
    publish(FIGURE, replace(FIGURE, category="tile", value=0.6), replace(FIGURE, category="wood", value=0.3))
    rows = row("tile", image_auroc=0.6), row("wood", image_auroc=1.0)
    found = reproduction([save(tmp_path, observation("clip"), *rows)])
    verdicts = {line.category: line.verdict for line in found.lines}
    assert verdicts == {"mean": "agrees", "tile": "agrees", "wood": "differs"}
    assert found.verdict == "differs" and "1 of 3 figures differ" in found.summary


def test_legacy_records_give_aupro_alone(publish: Any, tmp_path: Path) -> None:
    publish(FIGURE, replace(FIGURE, metric="pixel_aupro"))
    plain, legacy = record(tmp_path, 0.8), record(tmp_path / "l", 0.8, rules=protocol("legacy200"))
    found = reproduction([plain, legacy])
    assert [(line.protocol, line.metric) for line in found.lines] == [
        ("reference-1", "image_auroc"),
        ("reference-1", "pixel_aupro"),
        ("legacy200-1", "pixel_aupro"),
    ]
    assert any("AUPRO from 200 thresholds" in reason for reason in found.reasons)


def test_what_is_undefined_or_unpublished_is_not_judged(publish: Any, tmp_path: Path) -> None:
    publish(FIGURE)
    nothing = save(tmp_path, observation("clip"), row(image_auroc=None))
    (line,) = reproduction([nothing]).lines
    assert (line.verdict, line.why, line.difference) == ("not judged", "ours is undefined", None)
    assert reproduction_cells(line)[3] == "n/a"
    publish()
    assert reproduction([nothing]).verdict == "not judged"


def test_a_board_stands_in_place_of_what_is_published(tmp_path: Path) -> None:
    plain = save(tmp_path / "old", observation("clip"), row(image_auroc=0.8, pixel_auroc=None))
    random = save(tmp_path / "old", observation("clip", weights="random"), row(value=0.5))
    tables = boards([plain, random], metrics=["image_auroc", "pixel_auroc"])
    (board,) = write_boards(tables, tmp_path, ["csv"])
    figures = board_figures(board)
    assert len(figures) == 3
    close, far = record(tmp_path / "close", 0.803), record(tmp_path / "far", 0.806)
    assert [reproduction([one], figures).verdict for one in (close, far)] == ["agrees", "differs"]
    legacy = save(tmp_path / "old", observation("clip"), row(image_auroc=0.1), rules=protocol("legacy200"))
    (board,) = write_boards(boards([plain, random, legacy], metrics=["image_auroc"]), tmp_path, ["csv"])
    assert [(one.backbone, one.value) for one in board_figures(board)] == [
        ("ViT-B-16/openai", 0.8),
        ("ViT-B-16/random", 0.5),
    ]
    (alone,) = write_boards(boards([legacy]), tmp_path / "legacy", ["csv"])
    with pytest.raises(RecordError, match="has no row under the protocol 'reference'"):
        board_figures(alone)
    board.write_text("method,value\nclip,3\n")
    with pytest.raises(RecordError, match=r"not a leaderboard\.csv"):
        board_figures(board)


def test_files_hold_all_that_was_judged(publish: Any, tmp_path: Path) -> None:
    publish(replace(FIGURE, source="a | b"))
    found = reproduction([record(tmp_path, 0.9)])
    data, page = write_reproductions([found], tmp_path / "out", "zsadbench 0.1.0")
    (content,) = json.loads(data.read_text())
    assert content["verdict"] == "differs" and content["lines"][0]["tolerance"] == 1.0
    text = page.read_text()
    assert "## clip on mtd: differs" in text and "zsadbench 0.1.0" in text
    assert "| reference-1 | mean | image_auroc | 90.00 | 80.00 | paper | +10.00 | 1 | differs |" in text
    assert r"a \| b" in text and text == to_markdown([found], "zsadbench 0.1.0")
