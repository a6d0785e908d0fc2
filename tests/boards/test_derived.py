"""Columns made of other ones: the mean of seven (mAD) and the average rank."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from tests.kit.boardkit import observation, row, save
from tests.kit.terminal import call
from zsadbench.boards.board import Board
from zsadbench.boards.compare import boards
from zsadbench.boards.gate import gate
from zsadbench.boards.latex import joined_to_latex, to_latex
from zsadbench.boards.text import to_csv, to_json, to_markdown, write_boards
from zsadbench.boards.verdict import Verdict
from zsadbench.boards.words import footer
from zsadbench.errors import RecordError, UsageError
from zsadbench.metrics import SEVEN, mean_of_seven, places
from zsadbench.records.records import Record

VALUES = dict(zip(SEVEN, (0.9, 0.8, 0.7, 0.95, 0.4, 0.45, 0.85), strict=True))


def one(records: Sequence[Record], **options: object) -> Board:
    (board,) = boards(records, **options)  # type: ignore[arg-type]
    return board


def ranks(board: Board) -> dict[tuple[str, str], float | None]:
    return {(line.label, line.category): line.cell("average_rank").value for line in board.rows}


@pytest.fixture
def three(tmp_path: Path) -> list[Record]:
    """Three methods on two categories; of the false-positive rate the lowest is best."""
    table = {
        "clip": (("tile", 0.5, 0.5), ("wood", 0.25, 0.5)),
        "winclip": (("tile", 0.75, 0.25), ("wood", 0.25, 0.5)),
        "anoclip": (("tile", 0.625, 0.75), ("wood", 0.5, 0.25)),
    }
    return [
        save(tmp_path, observation(name), *(row(c, 0.5, image_auroc=a, image_fpr95=f) for c, a, f in rows))
        for name, rows in table.items()
    ]


OVER = ("image_auroc", "image_fpr95")


def test_the_mean_of_seven_is_undefined_with_any_of_them() -> None:
    assert mean_of_seven(VALUES) == pytest.approx(5.05 / 7, abs=1e-15)
    assert mean_of_seven(VALUES | {"pixel_ap": None, "image_fpr95": 0.0}) is None
    assert mean_of_seven({name: VALUES[name] for name in SEVEN[1:]}) is None


def test_mad_is_a_mean_over_the_categories_that_have_it(tmp_path: Path) -> None:
    rows = row("a", **VALUES), row("b", 0.5), row("c", 0.5, pixel_aupro=None)
    records = [save(tmp_path, observation(), *rows)]
    board = one(records, metrics=["mad"])
    cell = board.rows[0].cell("mad")
    assert cell.value == pytest.approx((5.05 / 7 + 0.5) / 2, abs=1e-15)
    assert str(cell) == "61.1 (2/3)" and "(n/N): over n of N only" in footer(board)[0]
    assert "n/a in Mean of seven (mAD): the dataset has no masks." in footer(board)
    by_category = one(records, metrics=["mad"], by="category")
    assert [line.cell("mad").value for line in by_category.rows] == [pytest.approx(5.05 / 7), 0.5, None]


def test_mad_of_seeds_has_their_mean_and_spread(tmp_path: Path) -> None:
    records = [save(tmp_path, observation(seed=seed), row(value=0.25 + seed / 2)) for seed in (0, 1)]
    cell = one(records, metrics=["mad"]).rows[0].cell("mad")
    assert [cell.value, cell.spread] == pytest.approx([0.5, 0.5 / 2**0.5])


def test_places_are_shared_by_equals_and_turn_where_lower_is_better() -> None:
    assert places("image_auroc", [0.5, 0.9, 0.5, 0.1]) == [2.5, 1.0, 2.5, 4.0]
    assert places("image_fpr95", [0.5, 0.9, 0.5, 0.1]) == [2.5, 4.0, 2.5, 1.0]
    assert places("pixel_ap", [0.1 + 0.2, 0.3]) == [1.5, 1.5]
    assert places("pixel_ap", []) == []
    random = np.random.RandomState(3).randint(0, 4, 40) / 8
    assert places("pixel_ap", list(random)) == list(rankdata(-random))


def test_the_average_rank_is_the_mean_of_places_by_category_and_metric(three: list[Record]) -> None:
    # tile: AUROC 3, 1, 2 and FPR 2, 1, 3; wood: AUROC 2.5, 2.5, 1 and FPR 2.5, 2.5, 1
    board = one(three, metrics=[*OVER, "rank"], sort="rank")
    assert ranks(board) == {("clip", "mean"): 2.5, ("winclip", "mean"): 1.75, ("anoclip", "mean"): 1.75}
    assert [line.label for line in board.rows] == ["anoclip", "winclip", "clip"]
    assert board.is_best(board.rows[1], "average_rank") and board.is_second(board.rows[2], "average_rank")
    assert [str(line.cell("average_rank")) for line in board.rows] == ["1.75", "1.75", "2.50"]
    by_category = one(three, metrics=["rank", *OVER], by="category")
    assert ranks(by_category) == {
        ("clip", "tile"): 2.5,
        ("winclip", "tile"): 1.0,
        ("anoclip", "tile"): 2.5,
        ("clip", "wood"): 2.5,
        ("winclip", "wood"): 2.5,
        ("anoclip", "wood"): 1.0,
    }
    said = next(line for line in footer(board) if line.startswith("Average rank"))
    assert "among 3 methods in 2 categories by Image AUROC, Image FPR at 95 % TPR; 1 is best" in said


def test_mad_is_no_contest_beside_the_seven_and_alone_the_rank_is_over_them(tmp_path: Path) -> None:
    records = [
        save(tmp_path, observation("clip"), row(value=0.5)),
        save(tmp_path, observation("winclip"), row(value=0.75, pixel_ap=0.25)),
    ]
    alone, beside = (one(records, metrics=metrics) for metrics in (["rank"], [*SEVEN, "mad", "average_rank"]))
    assert ranks(alone) == ranks(beside) == {("winclip", "mean"): 8 / 7, ("clip", "mean"): 13 / 7}
    assert alone.shown == ("average_rank",)


def test_a_method_without_a_value_has_no_rank_and_takes_no_place(three: list[Record], tmp_path: Path) -> None:
    lacking = save(tmp_path, observation("musc"), row("tile", 1.0, image_fpr95=None), row("wood", 1.0))
    board = one([*three, lacking], metrics=[*OVER, "rank"])
    assert ranks(board)["musc", "mean"] is None and ranks(board)["winclip", "mean"] == 1.75
    assert "No average rank without every value: musc." in footer(board)
    other = save(
        tmp_path, observation("sc-clip"), row("tile", image_fpr95=0.5), row("wood", image_auroc=None)
    )
    neither = one([other, lacking], metrics=[*OVER, "image_ap", "rank"])
    assert neither.shown == (*OVER, "image_ap") and set(ranks(neither).values()) == {None}
    assert [line for line in footer(neither) if "verage rank" in line] == [
        "No average rank without every value: musc, sc-clip."
    ]
    ordered = one([*three, lacking], metrics=OVER, sort="rank")
    assert [line.label for line in ordered.rows] == ["anoclip", "winclip", "clip", "musc"]
    nobody = [save(tmp_path, observation(m, dataset="headct"), row("a", 0.5, pixel_ap=None)) for m in "ab"]
    assert set(ranks(one(nobody, metrics=["image_ap", "pixel_ap", "rank"])).values()) == {1.5}


def test_ranks_equal_a_table_of_places(tmp_path: Path) -> None:
    random = np.random.RandomState(7)
    values = random.randint(0, 5, (4, 3, 7)) / 4  # methods, categories, metrics
    records = [
        save(
            tmp_path,
            observation(f"m{i}"),
            *(row(f"c{j}", **dict(zip(SEVEN, values[i, j], strict=True))) for j in range(3)),
        )
        for i in range(4)
    ]
    wanted = rankdata(-values, axis=0).mean(axis=(1, 2))
    found = ranks(one(records, metrics=[*SEVEN, "rank"]))
    assert [found[f"m{i}", "mean"] for i in range(4)] == pytest.approx(wanted, abs=1e-12)


def test_every_format_has_both(three: list[Record]) -> None:
    tables = [one(three, metrics=["image_auroc", "image_fpr95", "mad", "rank"])]
    lines = list(csv.DictReader(io.StringIO(to_csv(tables))))
    mad = (0.5 * 12 + 0.75 + 0.25) / 14
    assert lines[1]["label"] == "winclip"
    assert float(lines[1]["mad"]) == pytest.approx(mad, abs=1e-15)
    assert [(line["label"], line["average_rank"]) for line in lines[1:]] == [
        ("winclip", "1.75"),
        ("clip", "2.5"),
    ]
    (content,) = json.loads(to_json(tables))
    assert [line["average_rank"] for line in content["rows"]] == [1.75, 1.75, 2.5]
    assert "| winclip | 50.0 | **37.5** | 50.0 | **1.75** |" in to_markdown(tables)
    text = to_latex(tables)
    assert (
        r"\multicolumn{2}{c}{Image}" in text
        and r"& AUROC & FPR at 95 \% TPR & Mean of seven (mAD) & Average rank &" in text
    )
    assert r"\textbf{37.5} & \underline{50.0} & \textbf{1.75}" in joined_to_latex(tables)


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    plain = row()
    del plain["pixel_ap"], plain["pixel_aupro"]
    records = [save(tmp_path, observation(), plain)]
    with pytest.raises(
        RecordError, match=r"'mad' is a mean of seven metrics, and no record has pixel_ap, pixel_aupro"
    ):
        boards(records, metrics=["mad"])
    with pytest.raises(UsageError, match=r"unknown metric 'madd'\. Did you mean 'mad'"):
        boards(records, metrics=["madd"])


# The gate


def judged(
    old: Sequence[Record], new: Sequence[Record], folder: Path, tolerance: float = 0.2, **options: str
) -> Verdict:
    (baseline,) = write_boards(boards(old, metrics=[*OVER, "mad", "rank"], **options), folder, ["csv"])  # type: ignore[arg-type]
    return gate(new, baseline, tolerance)


def changed(folder: Path, **values: float) -> list[Record]:
    return [
        save(folder, observation(name), row("tile", 0.5, image_auroc=value, image_fpr95=0.5))
        for name, value in values.items()
    ]


def test_a_rank_that_rises_fell(tmp_path: Path) -> None:
    old = changed(tmp_path / "old", clip=0.5, winclip=0.75)
    assert judged(old, old, tmp_path, 0).compared == 8
    verdict = judged(old, changed(tmp_path / "new", clip=0.5, winclip=0.4375), tmp_path)
    assert verdict.fell == [
        "mtd reference winclip image_auroc: 75.00 -> 43.75 (-31.25 points)",
        "mtd reference winclip mad: 53.57 -> 49.11 (-4.46 points)",
        "mtd reference winclip average_rank: 1.25 -> 1.75 (+0.50 places)",
    ]
    assert verdict.improved == ["mtd reference clip average_rank: 1.75 -> 1.25 (-0.50 places)"]
    assert [change.now for change in verdict.changes if change.metric == "average_rank"] == [1.75, 1.25]
    near = judged(old, changed(tmp_path / "near", clip=0.5, winclip=0.75), tmp_path, 0)
    assert near.fell == near.improved == []


def test_ranks_are_taken_among_the_methods_of_the_baseline(tmp_path: Path) -> None:
    old = changed(tmp_path / "old", clip=0.5, winclip=0.75)
    more = changed(tmp_path / "new", clip=0.5, winclip=0.75, anoclip=0.9)
    assert judged(old, more, tmp_path).fell == []
    verdict = judged(old, more[:1], tmp_path)
    assert verdict.fell == ["mtd reference winclip: missing from the new results"]
    assert verdict.notes[1:] == [
        "mtd under reference v1: average ranks are not compared, methods or metrics of then are missing"
    ]


def test_a_baseline_by_category_has_ranks_by_category(three: list[Record], tmp_path: Path) -> None:
    verdict = judged(three, three, tmp_path, 0, by="category")
    assert (verdict.fell, verdict.improved, verdict.compared) == ([], [], 24)
    (baseline,) = tmp_path.glob("leaderboard-by-category.csv")
    text = baseline.read_text()
    baseline.write_text(text.replace(",1.0\n", ",0.5\n", 1))
    with pytest.raises(RecordError, match="cannot be read"):
        gate(three, baseline, 0)
    baseline.write_text(text.replace(",2.5\n", ",1.0\n", 1))
    assert len(gate(three, baseline, 0.5).fell) == 1


def test_the_command_line_asks_for_both(
    three: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("compare", tmp_path, "--metric", "mad", "--metric", "rank", "--sort", "rank")
    assert call(*words, "--format", "json") == 0
    (content,) = json.loads(capsys.readouterr().out)
    assert content["metrics"] == ["mad", "average_rank"]
    assert call(*words, "--out", tmp_path) == 0
    capsys.readouterr()
    assert call("compare", tmp_path, "--baseline", tmp_path / "leaderboard.csv", "--no-write") == 0
    assert "Gate passed: 6 values compared" in capsys.readouterr().err
