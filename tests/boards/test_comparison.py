"""Methods against each other on the same images: pairs, ranks, notes and what they look like."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.kit.boardkit import observation, protocol
from zsadbench.boards.board import Board
from zsadbench.boards.compare import boards, compare
from zsadbench.boards.gate import gate
from zsadbench.boards.latex import to_latex
from zsadbench.boards.text import pairs_to_csv, to_csv, to_json, to_markdown, to_rich, write_boards
from zsadbench.boards.words import footer
from zsadbench.errors import RecordError, UsageError
from zsadbench.metrics import image_metrics
from zsadbench.metrics.bootstrap import image_replicates, interval, resample
from zsadbench.metrics.paired import bootstrap_p, delong, delong_p, holm, placements
from zsadbench.records.records import Record, write_record

LABELS = np.arange(60) % 2 == 0
KEYS = [f"{number:02}.png" for number in range(60)]
Scores = Mapping[str, np.ndarray]
IMAGE = ["image_auroc", "image_ap", "image_f1max"]


def scores(seed: int, shift: float, noise: float = 1.0, category: int = 0) -> np.ndarray:
    """Return 60 image scores; equal categories share what is hard about their images."""
    shared = np.random.RandomState(100 + category).standard_normal(60)
    own = np.random.RandomState(1000 * seed + category).standard_normal(60)
    return np.asarray((shared + noise * own + shift * LABELS).astype(np.float32))


def save(folder: Path, seen: Mapping[str, Any], categories: Scores) -> Record:
    """Write a record with the image metrics of ``categories`` and the rows of their images."""
    rows = [
        {"category": name, "normal": 30, "anomalous": 30, **image_metrics(values, LABELS)}
        for name, values in categories.items()
    ]
    images = [
        {"key": f"{name}/{key}", "category": name, "anomalous": int(label), "image_score": float(score)}
        | {"map_min": None, "map_max": None}
        for name, values in categories.items()
        for key, label, score in zip(KEYS, LABELS, values, strict=True)
    ]
    content = {"observation": seen, "protocol": protocol(), "metric_version": 1, "categories": rows}
    method = f"{seen['method']['id']}-{seen['seed']}"
    return write_record(folder / method / seen["observation"][:12], "reference", content, images)


def one_board(records: Sequence[Record], **options: Any) -> Board:
    asked: dict[str, Any] = {"metrics": IMAGE, "paired": True, "replicates": 400} | options
    (board,) = boards(records, **asked)
    return board


@pytest.fixture
def three(tmp_path: Path) -> list[Record]:
    """A weak, a strong and a middling method, on one category."""
    shifts = {"weak": 0.5, "strong": 4.0, "middling": 1.5}
    return [
        save(tmp_path, observation(name), {"tile": scores(seed, shift)})
        for seed, (name, shift) in enumerate(shifts.items())
    ]


def text_of(board: Board) -> str:
    console = Console(width=400, record=True, file=io.StringIO(), color_system=None)
    console.print(to_rich(board))
    return console.export_text()


def test_pairs_stand_in_the_order_given_with_every_test(three: list[Record]) -> None:
    board = one_board(three)
    auroc = [pair for pair in board.comparisons if pair.metric == "image_auroc"]
    assert [(p.first, p.second) for p in auroc] == [
        ("weak", "strong"),
        ("weak", "middling"),
        ("strong", "middling"),
    ]
    weights = resample("tile", LABELS, 400)
    drawn = {
        record.method: image_replicates([row.image_score for row in record.images()], LABELS, weights)
        for record in three
    }
    bare = []
    for pair in auroc:
        first, second = (drawn[name]["image_auroc"] for name in (pair.first, pair.second))
        bare.append(bootstrap_p(first - second))
        assert pair.p == bare[-1]
        assert pair.interval == pytest.approx(interval(first - second), abs=1e-12)
    assert [pair.p_holm for pair in auroc] == holm(bare)
    one, other = (placements([row.image_score for row in r.images()], LABELS) for r in three[:2])
    test = delong(one, other)
    assert test is not None
    assert auroc[0].p_delong == pytest.approx(delong_p([test]), rel=1e-9)
    assert auroc[0].difference == pytest.approx(test.difference, abs=1e-12)
    assert all(pair.p_delong is None for pair in board.comparisons if pair.metric != "image_auroc")
    assert all(pair.p_wilcoxon is None for pair in board.comparisons)


def test_a_single_pair_is_not_corrected(three: list[Record]) -> None:
    backwards = one_board([three[1], three[0]])
    assert {pair.first for pair in backwards.comparisons} == {"strong"}
    assert all(pair.p_holm is None and pair.difference > 0 for pair in backwards.comparisons)
    assert "Holm" not in text_of(backwards)


def test_two_copies_of_a_method_do_not_differ_and_share_a_rank(tmp_path: Path) -> None:
    same = {"tile": scores(3, 1.0)}
    board = one_board([save(tmp_path, observation(name), same) for name in ("a", "b")])
    for pair in board.comparisons:
        assert (pair.difference, pair.interval, pair.p) == (0.0, (0.0, 0.0), 1.0), pair.metric
    assert board.comparisons[0].p_delong == 1.0
    assert [row.rank for row in board.rows] == [1, 1]


def test_ranks_count_the_methods_that_are_significantly_better(three: list[Record]) -> None:
    ranks = {row.label: row.rank for row in one_board(three).rows}
    assert ranks == {"strong": 1, "middling": 2, "weak": 3}
    near = {"a": 1.0, "b": 1.02}
    folder = three[0].path.parents[3] / "near"
    close = [save(folder, observation(name), {"tile": scores(7, shift)}) for name, shift in near.items()]
    board = one_board(close, intervals=True, paired=False)
    assert {row.rank for row in board.rows} == {1}
    assert board.comparisons == ()


def test_ranks_go_by_the_metric_the_board_is_sorted_by(three: list[Record]) -> None:
    board = one_board(three, sort="image_ap")
    assert board.ranked_by == "image_ap"
    assert any("significantly better in Image AP" in note for note in board.notes)


def test_intervals_surround_the_exact_values(three: list[Record]) -> None:
    board = one_board(three, paired=False, intervals=True)
    for row in board.rows:
        for metric in IMAGE:
            cell = row.cell(metric)
            assert cell.interval is not None and cell.value is not None
            assert cell.interval.low <= cell.value <= cell.interval.high
            assert cell.interval.high - cell.interval.low < 0.4
    plain = boards(three, metrics=IMAGE)[0]
    assert [row.cell("image_ap").value for row in plain.rows] == [
        row.cell("image_ap").value for row in board.rows
    ]
    assert plain.rows[0].cell("image_ap").interval is None and plain.ranked_by == ""


def test_the_mean_over_categories_is_drawn_as_one(tmp_path: Path) -> None:
    names = ("tile", "wood")
    records = [
        save(tmp_path, observation(m), {n: scores(s, 1 + s, category=c) for c, n in enumerate(names)})
        for s, m in enumerate(("a", "b"))
    ]
    drawn = {
        (record.method, name): image_replicates(
            [row.image_score for row in record.images() if row.category == name],
            LABELS,
            resample(name, LABELS, 400),
        )["image_auroc"]
        for record in records
        for name in names
    }
    board = one_board(records)
    (pair,) = [pair for pair in board.comparisons if pair.metric == "image_auroc"]
    means = [(drawn[m, "tile"] + drawn[m, "wood"]) / 2 for m in ("a", "b")]
    assert pair.interval == pytest.approx(interval(means[0] - means[1]), abs=1e-12)
    row = next(row for row in board.rows if row.label == "b")
    assert row.cell("image_auroc").interval == pytest.approx(interval(means[1]), abs=1e-12)
    by = one_board(records, by="category")
    assert [(p.category, p.first) for p in by.comparisons if p.metric == "image_ap"] == [
        ("tile", "a"),
        ("wood", "a"),
    ]
    assert "wood" in text_of(by).split("Pairs on the same images")[1]


def test_wilcoxon_stands_beside_from_eight_categories(tmp_path: Path) -> None:
    records = [
        save(tmp_path, observation(m), {f"c{c}": scores(s, 1 + 2 * s, category=c) for c in range(8)})
        for s, m in enumerate(("a", "b"))
    ]
    board = one_board(records)
    assert board.comparisons[0].p_wilcoxon == pytest.approx(2 / 2**8)
    assert "p (Wilcoxon)" in text_of(board)


def test_seeds_are_drawn_together(tmp_path: Path) -> None:
    seeds = [save(tmp_path, observation(seed=s), {"tile": scores(s, 1.0)}) for s in range(2)]
    other = save(tmp_path, observation("other"), {"tile": scores(5, 1.0)})
    board = one_board([*seeds, other])
    weights = resample("tile", LABELS, 400)
    first, second = (image_replicates(scores(s, 1.0), LABELS, weights)["image_auroc"] for s in range(2))
    row = next(row for row in board.rows if len(row.records) == 2)
    assert row.cell("image_auroc").interval == pytest.approx(interval((first + second) / 2), abs=1e-12)
    assert board.comparisons[0].first == "clip (2 seeds)"
    assert board.comparisons[0].p_delong is not None


def test_numbers_of_other_images_are_not_paired(tmp_path: Path) -> None:
    whole = save(tmp_path, observation("a"), {"tile": scores(0, 1.0), "wood": scores(1, 1.0)})
    part = save(tmp_path, observation("b"), {"tile": scores(2, 1.0)})
    board = one_board([whole, part])
    assert all(pair.p is None and pair.interval is None for pair in board.comparisons)
    assert [row.rank for row in board.rows] == [None, None]
    assert "n/a" in text_of(board)


def test_too_many_pairs_for_the_draws_are_told(tmp_path: Path) -> None:
    records = [save(tmp_path, observation(f"m{s}"), {"tile": scores(s, float(s))}) for s in range(6)]
    notes = one_board(records, replicates=400).notes
    assert "With 15 pairs and 400 draws no corrected p is below 0.05: give --replicates 2000." in notes
    assert not any("--replicates" in note for note in one_board(records, replicates=1000).notes)


def test_what_the_interval_covers_is_said(three: list[Record]) -> None:
    below = " ".join(footer(one_board(three)))
    assert "95 % interval over the choice of test images (400 stratified bootstrap draws" in below
    assert "It covers no training seed, prompt or image size; images of one patient or part" in below
    assert "count as independent" in below
    assert "corrected for 3 pairs (Holm)" in below
    assert "DeLong's and Wilcoxon's p are not corrected" in below


def test_a_pair_needs_two_methods_of_one_group(tmp_path: Path, three: list[Record]) -> None:
    with pytest.raises(RecordError, match=r"only one method here .* a pair needs two"):
        one_board(three[:1])
    elsewhere = save(tmp_path, observation("clip", dataset="headct"), {"tile": scores(0, 1.0)})
    with pytest.raises(RecordError, match="these records cannot stand in one column"):
        boards([three[0], elsewhere], metrics=IMAGE, paired=True)
    assert boards(three[:1], metrics=IMAGE, intervals=True)[0].ranked_by == ""
    with pytest.raises(UsageError, match="50 replicates say little; give 100"):
        one_board(three, replicates=50)


# What they look like


def test_the_terminal_shows_intervals_ranks_and_pairs(three: list[Record]) -> None:
    board = one_board(three)
    lines = text_of(board).splitlines()
    first = next(line for line in lines if line.strip().startswith("strong"))
    assert first.split()[1] == "1"
    low, high = board.rows[0].intervals["image_auroc"]
    assert f"[{100 * low:.1f}, {100 * high:.1f}]" in lines[lines.index(first) + 1]
    pair = next(line for line in lines if line.strip().startswith("weak") and "strong" in line)
    assert pair.split()[2:4] == ["Image", "AUROC"] and pair.split()[4].startswith("-")
    assert "*" in pair


def test_files_hold_intervals_ranks_and_pairs(three: list[Record], tmp_path: Path) -> None:
    board = one_board(three)
    head, first = to_csv([board]).splitlines()[:2]
    line = dict(zip(head.split(","), first.split(","), strict=False))
    assert {"rank", "ranked_by", "low_image_auroc", "high_image_ap"} <= set(line)
    (content,) = json.loads(to_json([board]))
    assert content["rows"][0]["rank"] == 1
    assert content["rows"][0]["low_image_ap"] == board.rows[0].intervals["image_ap"].low
    assert [p["first"] for p in content["comparisons"]] == ["weak", "weak", "strong"] * 3
    pairs = pairs_to_csv([board]).splitlines()
    assert pairs[0].startswith("dataset,protocol,protocol_version,metric_version,first,second,category")
    assert len(pairs) == 10
    markdown = to_markdown([board])
    assert "| A | B | metric | A - B | 95 % interval | p | p (Holm) | p (DeLong) |" in markdown
    assert "| method | rank | Image AUROC |" in markdown
    names = [path.name for path in write_boards([board], tmp_path / "out", ["csv", "latex"])]
    assert names == ["leaderboard.csv", "leaderboard.tex", "comparisons.csv"]


def test_frames_of_paths_have_intervals_or_pairs(three: list[Record]) -> None:
    folders = [record.path.parents[2] for record in (three[1], three[0])]
    pairs = compare([*folders], metrics=IMAGE, paired=True, replicates=200)
    assert list(pairs["first"]) == ["strong"] * 3
    assert (pairs["difference"] > 0).all() and pairs["p_holm"].isna().all()
    frame = compare([*folders], metrics=IMAGE, intervals=True, replicates=200)
    assert list(frame["rank"]) == [1, 2]
    assert (frame["low_image_auroc"] < frame["image_auroc"]).all()


def test_latex_has_the_best_bold_and_the_second_underlined(three: list[Record]) -> None:
    text = to_latex([one_board(three)])
    strong, middling, weak = (
        next(line for line in text.splitlines() if line.startswith(name + " & "))
        for name in ("strong & 1", "middling & 2", "weak & 3")
    )
    assert strong.count(r"\textbf{") == 3 and r"\underline" not in strong
    assert middling.count(r"\underline{") == 3 and r"\textbf" not in middling
    assert r"\textbf" not in weak and r"\underline" not in weak
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}", r"\end{table}"):
        assert text.count(rule) == 2, rule
    assert "& $-$" in text and "% Needs \\usepackage{booktabs,graphicx}." in text
    assert r"\multicolumn{3}{c}{Image}" in text and r"95 \% interval" in text


def test_latex_escapes_what_names_bring(tmp_path: Path) -> None:
    hostile = r"*[x]_&%$#{~}^\input{|}<é>" + "\n--"
    other = save(tmp_path, observation("plain"), {"tile": scores(1, 2.0)})
    seen = observation("evil", about={"title": hostile})
    evil = save(tmp_path, seen | {"method": seen["method"] | {"id": hostile}}, {"tile": scores(0, 1.0)})
    text = to_latex([one_board([evil, other])])
    escaped = (
        r"{}*[x]\_\&\%\$\#\{\textasciitilde{}\}\textasciicircum{}\textbackslash{}input\{\textbar{}\}"
        r"\textless{}é\textgreater{} -{}-"
    )
    assert any(line.startswith(escaped + " & ") for line in text.splitlines())
    assert r"\input" not in text
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")


def test_a_leaderboard_with_intervals_is_a_baseline_too(three: list[Record], tmp_path: Path) -> None:
    (path,) = write_boards([one_board(three)], tmp_path / "out", ["csv"])[:1]
    verdict = gate(three, path, 0.1)
    assert (verdict.fell, verdict.compared) == ([], 9)
