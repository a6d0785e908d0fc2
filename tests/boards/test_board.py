"""Boards: grouping, means, seeds, marks, published figures, formats and the gate."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.kit.boardkit import observation, protocol, row, save
from zsadbench.boards.board import DEFAULT_METRICS, Board, frame_of
from zsadbench.boards.compare import boards, compare
from zsadbench.boards.gate import gate
from zsadbench.boards.latex import joined_to_latex, to_latex
from zsadbench.boards.text import known_formats, to_csv, to_json, to_markdown, to_rich, write_boards
from zsadbench.boards.verdict import Verdict
from zsadbench.boards.words import MARKS, footer, subtitle
from zsadbench.errors import RecordError, UsageError
from zsadbench.metrics import Interval
from zsadbench.records.records import Record


def text_of(board: Board, width: int = 400) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(to_rich(board))
    return console.export_text()


def one(records: Sequence[Record], **options: object) -> Board:
    (board,) = boards(records, **options)  # type: ignore[arg-type]
    return board


# Grouping


def test_what_runs_took_stands_beside_metrics_on_request(tmp_path: Path) -> None:
    latency = {"calls": 32, "median_ms": 31.25, "p95_ms": 40}
    cost = {"images": 8, "own_seconds": 1, "shared_seconds": 0.5, "threads": 2, "latency": latency}
    here = {"device": "cpu", "dtype": "fp32"}
    seen: dict[str, Any] = {"environment": here, "peak_memory_mb": 1234.5, "cost": cost}
    wrong: dict[str, Any] = {"peak_memory_mb": "much", "cost": {"images": True, "latency": [1]}}
    records = [
        save(tmp_path, observation("clip", **seen), row(image_auroc=0.75)),
        save(tmp_path, observation("winclip", **wrong)),
        save(tmp_path, observation("anoclip")),
    ]
    names = ["encode_ms", "own_ms", "images_per_s", "latency_ms", "latency_p95_ms", "memory_mb"]
    (board,) = boards(records, metrics=["image_auroc", *names])
    values = {line.label: [line.cost(name) for name in names] for line in board.rows}
    assert values["clip"] == [187.5, 125, 8 / 1.5, 31.25, 40, 1234.5]
    assert values["winclip"] == values["anoclip"] == [None] * 6
    text = to_markdown([board])
    assert "| clip | **75.0** | 188 | 125 | 5.33 | 31.2 | 40 | 1234 |" in text
    assert "| anoclip | 50.0 |  |  |  |  |  |  |" in text
    assert (
        "Run on cpu, fp32, threads: 2; an unknown machine, fp32: times of different machines do not" in text
    )
    lines = list(csv.DictReader(io.StringIO(to_csv([board]))))
    assert [line["own_ms"] for line in lines] == ["125.0", "", ""]
    assert json.loads(to_json([board]))[0]["rows"][0]["latency_p95_ms"] == 40
    assert r"Latency ms (95 \%)" in to_latex([board]) and "Encode" not in joined_to_latex([board])
    (plain,) = boards(records)
    assert not plain.costs and "encode_ms" not in to_csv([plain])
    (only,) = boards(records, metrics=["memory_mb"])
    assert only.metrics == DEFAULT_METRICS and only.costs == ("memory_mb",)
    with pytest.raises(UsageError, match=r"--metric own_ms: only a whole run has that; leave --by category"):
        boards(records, metrics=["own_ms"], by="category")
    with pytest.raises(UsageError, match=r"Did you mean 'encode_ms'"):
        boards(records, metrics=["encode_s"])


def test_every_group_has_a_board_of_its_own(tmp_path: Path) -> None:
    clip = observation("clip")
    records = [
        save(tmp_path, clip),
        save(tmp_path, observation("winclip")),
        save(tmp_path, clip, rules=protocol("common-1")),
        save(tmp_path, clip, rules=protocol("custom", size=64)),
        save(tmp_path, observation("clip", about={"contents": "f" * 64})),
        save(tmp_path, observation("clip", about={"digest": "e" * 64})),
        save(tmp_path, observation("clip", dataset="headct")),
        save(tmp_path / "later", observation("winclip"), metric_version=2),
    ]
    tables = boards(records)
    groups = [(board.group.dataset, board.group.protocol) for board in tables]
    assert groups == [
        ("headct", "reference"),
        ("mtd", "common-1"),
        ("mtd", "custom"),
        *[("mtd", "reference")] * 4,
    ]
    assert sorted(len(board.rows) for board in tables) == [1] * 6 + [2]
    assert boards(list(reversed(records))) == tables


def test_boards_that_look_alike_say_what_sets_them_apart(tmp_path: Path) -> None:
    old, new = (save(tmp_path, observation(about={"contents": letter * 64})) for letter in "ab")
    first, second = boards([old, new, save(tmp_path, observation(), rules=protocol("common-1"))])[1:]
    said = "Apart from another board of mtd: contents digest {} instead of {}."
    assert said.format("a" * 12, "b" * 12) in footer(first)
    assert said.format("b" * 12, "a" * 12) in footer(second)
    assert not any(line.startswith("Apart") for line in footer(one([old])))


def test_merging_groups_names_the_odd_one_and_the_difference(tmp_path: Path) -> None:
    records = [save(tmp_path, observation(name)) for name in ("clip", "winclip")]
    assert len(boards(records, merge=True)) == 1
    odd = save(tmp_path, observation("anoclip"), rules=protocol("common-1"))
    with pytest.raises(RecordError) as caught:
        boards([odd, *records], merge=True)
    assert str(odd.path.parent) in str(caught.value)
    assert "protocol common-1 instead of reference" in str(caught.value)
    assert "zsad score" in str(caught.value)


# Means, seeds, labels


def test_means_leave_out_undefined_categories_and_say_so(tmp_path: Path) -> None:
    record = save(tmp_path, observation(), row("tile", 0.5), row("wood", 0.75, pixel_ap=None))
    board = one([record])
    assert board.rows[0].cell("image_ap").value == 0.625
    assert str(board.rows[0].cell("image_ap")) == "62.5"
    assert str(board.rows[0].cell("pixel_ap")) == "50.0 (1/2)"
    assert "unweighted mean over 2 categories, (n/N)" in footer(board)[0]
    assert "n/a in Pixel AP: the dataset has no masks." in footer(board)
    assert board.lines()[0]["incomplete"] == "pixel_ap 1/2"


def test_a_metric_no_image_has_is_not_shown_but_kept(tmp_path: Path) -> None:
    board = one([save(tmp_path, observation(), row("brain", None, image_auroc=0.5))])
    assert board.shown == ("image_auroc",)
    assert board.frame()["pixel_ap"].isna().all()
    nothing = one([save(tmp_path, observation("winclip"), row("brain", None))])
    assert nothing.shown == nothing.metrics
    assert str(nothing.rows[0].cell("pixel_ap")) == "n/a"


def test_seeds_become_one_row_with_their_spread(tmp_path: Path) -> None:
    values = [0.5, 0.6, 0.9]
    records = [save(tmp_path, observation(seed=s), row(value=v)) for s, v in enumerate(values)]
    (line,) = one(records).rows
    assert line.label == "clip (3 seeds)"
    assert line.cell("image_ap").value == pytest.approx(2 / 3, abs=1e-15)
    assert line.cell("image_ap").spread == pytest.approx(0.2081665999466133, abs=1e-15)
    assert str(line.cell("image_ap")) == "66.7 ± 20.8"
    assert footer(one(records))[0] == "In percent. ±: sample standard deviation over seeds."
    frame = one(records).frame()
    assert (frame["seeds"][0], frame["image_ap_std"][0]) == (3, line.cell("image_ap").spread)


def test_seeds_of_random_weights_are_seeds_too(tmp_path: Path) -> None:
    names = ("random", "random:1")  # the first one observed in a run without --seeds
    records = [
        save(tmp_path, observation(weights=name, parameters={"backbone": {"weights": name}}))
        for name in names
    ]
    (line,) = one(records).rows
    assert (line.label, line.marks) == ("clip (2 seeds)", ["random weights", "incomplete set"])


def test_other_differences_than_the_seed_keep_rows_apart(tmp_path: Path) -> None:
    records = [save(tmp_path, observation(seed=s, parameters={"tau": s})) for s in range(2)]
    labels = [line.label for line in one(records).rows]
    assert labels == ["clip (tau=0)", "clip (tau=1)"]
    unseeded = [save(tmp_path, observation("winclip", wordings={"tile": name})) for name in ("a", "b")]
    assert len(one(unseeded).rows) == 2


def test_equal_methods_without_distinct_seeds_are_never_averaged(tmp_path: Path) -> None:
    for seed in (None, 3):
        pair = [save(tmp_path, observation(seed=seed, marks=[mark])) for mark in ("a", "b")]
        assert len(one(pair).rows) == 2


def test_the_newest_of_equal_observations_stands(tmp_path: Path) -> None:
    old = save(tmp_path / "old", observation(), row(value=0.5), created="2026-01-01T00:00:00+00:00")
    new = save(tmp_path / "new", observation(), row(value=0.75), created="2026-02-01T00:00:00+00:00")
    for records in ([old, new], [new, old]):
        (line,) = one(records).rows
        assert line.cell("image_ap").value == 0.75


def test_the_backbone_is_named_where_it_is_not_one_for_all(tmp_path: Path) -> None:
    openai, laion = (save(tmp_path, observation(weights=w)) for w in ("openai", "laion"))
    assert [line.label for line in one([openai]).rows] == ["clip"]
    labels = [line.label for line in one([openai, laion]).rows]
    assert labels == ["clip (ViT-B-16/laion)", "clip (ViT-B-16/openai)"]


def test_map_parameters_are_named(tmp_path: Path) -> None:
    rules = protocol("custom", map_parameters={"sigma": 8.0})
    assert one([save(tmp_path, observation(), rules=rules)]).rows[0].label == "clip (sigma=8)"


def test_rows_are_named_by_what_differs(tmp_path: Path) -> None:
    def labels(*seen: dict[str, Any]) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return sorted(line.label for line in one([save(folder, each) for each in seen]).rows)

    def sized(size: int, **more: Any) -> dict[str, Any]:
        return observation(parameters={"preprocess": {"size": size, "mean": [0.1]}, "normal": ["{}"]}, **more)

    def trained(dataset: str, epoch: int, source: str = "", file: str = "a.safetensors") -> dict[str, Any]:
        about = {"dataset": dataset, "epoch": epoch, "source": source, "file": file, "sha256": file + dataset}
        return observation("anomalyclip", checkpoint=about | {"seed": 0})

    assert labels(sized(240), sized(192)) == ["clip (size=192)", "clip (size=240)"]
    assert labels(sized(240), sized(192), sized(192, environment={"dtype": "fp16"})) == [
        "clip (size=192, fp16)",
        "clip (size=192, fp32)",
        "clip (size=240, fp32)",
    ]
    assert labels(observation(), observation(environment={"dtype": "bf16"})) == ["clip (bf16)", "clip (fp32)"]
    newer = observation()
    newer["method"] |= {"version": 2}
    assert labels(observation(), newer | {"observation": "f" * 64}) == [
        "clip (version 1)",
        "clip (version 2)",
    ]
    asked = sized(240, prompts="p.toml", wordings={"tile": "tile"})
    assert labels(sized(240, wordings={"tile": "tile"}), asked) == ["clip", "clip (prompts: p.toml)"]
    words = [sized(240, wordings={"tile": name}) for name in ("tile", "a ceramic tile")]
    assert labels(*words) == ["clip (tile: 'a ceramic tile')", "clip (tile: 'tile')"]
    many = [sized(240, wordings={f"c{i}": f"{kind} {i}" for i in range(15)}) for kind in ("nut", "bolt")]
    last = sized(240, wordings=many[0]["wordings"] | {"c14": "screw"})
    assert labels(*many) == ["clip (c0: 'bolt 0')", "clip (c0: 'nut 0')"]
    assert labels(many[0], last) == ["clip (c14: 'nut 14')", "clip (c14: 'screw')"]
    assert labels(*many, last) == [
        "clip (c0: 'bolt 0', c14: 'bolt 14')",
        "clip (c0: 'nut 0', c14: 'nut 14')",
        "clip (c0: 'nut 0', c14: 'screw')",
    ]
    edited = [
        observation(prompts="p.toml", parameters={"normal": ["good {}", *more], "anomalous": ["bad {}"]})
        for more in ([], ["flawless {}"])
    ]
    assert labels(*edited) == ["clip", "clip (normal: 'flawless {}')"]
    assert labels(trained("demo-aux", 3), trained("demo-aux", 4), trained("visa", 3, "theirs.pth")) == [
        "anomalyclip (authors' file on visa, epoch 3)",
        "anomalyclip (trained on demo-aux, epoch 3)",
        "anomalyclip (trained on demo-aux, epoch 4)",
    ]
    again = trained("visa", 1)
    again["checkpoint"] |= {"seed": 7, "sha256": "7"}
    assert labels(trained("visa", 1), again | {"observation": "e" * 64}) == [
        "anomalyclip (training seed 0)",
        "anomalyclip (training seed 7)",
    ]
    assert labels(trained("visa", 1)) == ["anomalyclip"]
    twins = trained("visa", 1), trained("visa", 1, file="b.safetensors")
    assert labels(*twins) == ["anomalyclip (a.safetensors)", "anomalyclip (b.safetensors)"]
    same = [observation(parameters={"normal": ["{}"]}, marks=[mark]) for mark in "ab"]
    assert labels(*same) == sorted(f"clip ({each['observation'][:12]})" for each in same)


# Sorting and marking


def test_rows_are_sorted_by_the_first_or_the_wanted_metric(tmp_path: Path) -> None:
    values = {"a": (0.5, 0.9), "b": (0.7, 0.8), "c": (0.6, None)}
    records = [
        save(tmp_path, observation(name), row(image_auroc=first, pixel_ap=second))
        for name, (first, second) in values.items()
    ]
    assert [line.label for line in one(records).rows] == ["b", "c", "a"]
    assert [line.label for line in one(records, sort="pixel_ap").rows] == ["a", "b", "c"]


def test_the_best_printed_value_is_marked_and_ties_are_ties(tmp_path: Path) -> None:
    values = {"a": 0.70011, "b": 0.69999, "c": 0.5}
    records = [save(tmp_path, observation(name), row(value=value)) for name, value in values.items()]
    board = one(records)
    assert [board.is_best(line, "image_ap") for line in board.rows] == [True, True, False]
    assert to_markdown([board]).count("**70.0**") == 14
    assert "70.0*" in text_of(board)
    assert "**" not in to_markdown([one(records[:1])])


def test_by_category_has_a_row_for_each(tmp_path: Path) -> None:
    records = [
        save(tmp_path, observation(name), row("tile", value), row("wood", 1 - value))
        for name, value in (("a", 0.25), ("b", 0.5))
    ]
    board = one(records, by="category")
    assert [(line.label, line.category) for line in board.rows] == [
        ("b", "tile"),
        ("a", "tile"),
        ("a", "wood"),
        ("b", "wood"),
    ]
    assert [board.is_best(line, "image_ap") for line in board.rows] == [True, False, True, False]
    assert list(board.frame()["category"]) == ["tile", "tile", "wood", "wood"]
    markdown = to_markdown([board])
    assert markdown.count("| category | a, incomplete set | b, incomplete set |") == len(board.shown)
    assert (
        "| tile | 25.0 | **50.0** |\n| wood | **75.0** | 50.0 |\n| mean | **50.0** | **50.0** |" in markdown
    )
    assert [line["category"] for line in csv.DictReader(io.StringIO(to_csv([board])))] == [
        "tile",
        "tile",
        "wood",
        "wood",
    ]


def test_columns_of_a_matrix_stand_in_the_order_of_the_sorting_metric(tmp_path: Path) -> None:
    values = {"a": (0.3, 0.9), "b": (0.1, 0.5), "c": (0.2, None)}
    records = [
        save(tmp_path, observation(name), row("tile", image_fpr95=low, pixel_ap=high), row("wood"))
        for name, (low, high) in values.items()
    ]
    metrics = ["image_fpr95", "pixel_ap"]

    def heads(**options: object) -> list[str]:
        text = to_markdown([one(records, by="category", metrics=metrics, **options)])
        return [line.replace(", incomplete set", "") for line in text.splitlines() if "| category" in line]

    assert heads() == ["| category | b | c | a |"] * 2  # of false alarms the fewest are best
    assert heads(sort="pixel_ap") == ["| category | a | b | c |"] * 2


def test_a_matrix_stands_in_blocks_where_the_terminal_is_narrow(tmp_path: Path) -> None:
    names = [f"a-method-of-a-long-name-{number}" for number in range(9)]
    marked = {"transductive": True}
    records = [
        save(tmp_path, observation(name, flags=marked), row("tile", 0.5), row("wood", i / 10))
        for i, name in enumerate(names)
    ]
    text = text_of(one(records, by="category"), width=80)
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert text.count("category ") == text.count("mean") == 3 * 7  # three blocks for each metric
    assert text.count("†") == 7 * 9 + 1
    for name in names:
        assert "".join(text.split()).count(name[-1]) > 0


def test_intervals_stand_whole_on_a_narrow_terminal(tmp_path: Path) -> None:
    board = one([save(tmp_path, observation(name)) for name in ("clip", "winclip")])
    around = dict.fromkeys(board.metrics, Interval(0.123, 0.987))
    wide = replace(board, rows=tuple(replace(line, intervals=around) for line in board.rows))
    text = text_of(wide, width=80)
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert text.count("[12.3, 98.7]") == 14


def test_marks_are_shown_and_explained(tmp_path: Path) -> None:
    failed = [{"key": "a", "reason": "b"}]
    seen = observation(flags={"transductive": True}, failed=failed, marks=["seen data"])
    board = one([save(tmp_path, seen)])
    text = text_of(board)
    assert "†, 1 failed, seen data" in text
    for word in ("transductive", "failed", "seen data"):
        assert f"{word}: {MARKS[word]}." in text
    assert "subset" not in text


def test_every_mark_stands_in_every_format(tmp_path: Path) -> None:
    seen = observation(
        flags={"transductive": True, "order_dependent": True},
        failed=[{"key": "a", "reason": "b"}, {"key": "c", "reason": "d"}],
        about={"selection": {"limit": 8, "categories": None}},
        marks=["seen data"],
    )
    board = one([save(tmp_path, seen, rules=protocol("legacy200"))])
    marks = ["transductive", "order-dependent", "subset", "2 failed", "legacy", "seen data"]
    assert board.rows[0].marks == marks
    assert board.lines()[0]["marks"] == "; ".join(marks)
    for text in (text_of(board), to_markdown([board])):
        assert "†, ‡, subset, 2 failed, legacy, seen data" in text
    assert r"\dag{}, \ddag{}, subset, 2 failed, legacy, seen data \\" in to_latex([board])
    for text in (text_of(board), to_markdown([board]), to_latex([board]), to_json([board])):
        for word in ("transductive", "order-dependent", "subset", "failed", "legacy", "seen data"):
            assert f"{word}: {MARKS[word]}." in text, word
    inductive = one([save(tmp_path, seen, rules=protocol("common-1"))])
    assert "transductive" not in inductive.rows[0].marks


def test_maps_that_need_a_category_and_constants_per_dataset_have_marks(tmp_path: Path) -> None:
    seen = observation("musc", flags={"transductive": True, "relates": True, "constants_per_dataset": True})
    board = one([save(tmp_path, seen)])
    assert board.rows[0].marks[:3] == ["transductive", "related maps", "constants per dataset"]
    text = " ".join(text_of(board).split())
    assert "related maps: maps use all test images of a category." in text
    assert "constants per dataset: the reference picks constants by the dataset's name." in text
    assert "†, §, ¶" in text and r"\dag{}, \S{}, \P{}" in to_latex([board])
    inductive = one([save(tmp_path, seen, rules=protocol("common-1"))])
    assert inductive.rows[0].marks[:2] == ["related maps", "constants per dataset"]


def mixed(folder: Path, rules: dict[str, Any] | None = None) -> list[Record]:
    """Return records of a method that stands alone, a transductive one and one that relates images."""
    flags = {"clip": {}, "clip-ad": {"transductive": True}, "musc": {"transductive": True, "relates": True}}
    return [save(folder, observation(name, flags=flag), rules=rules) for name, flag in flags.items()]


def test_rows_that_need_other_images_can_be_left_out(tmp_path: Path) -> None:
    records = mixed(tmp_path)
    board = one(records, inductive_only=True)
    assert [line.label for line in board.rows] == ["clip"]
    said = "Left out, as their numbers need other test images: clip-ad, musc."
    assert said in footer(board) and said not in footer(one(records))
    common = one(mixed(tmp_path, protocol("common-1")), inductive_only=True)
    assert {line.label for line in common.rows} == {"clip", "clip-ad"}
    with pytest.raises(RecordError, match="every row here needs other test images"):
        boards(records[1:], inductive_only=True)
    assert boards([], inductive_only=True) == []


def test_the_gate_leaves_them_out_on_both_sides(tmp_path: Path) -> None:
    old, new = mixed(tmp_path / "old"), mixed(tmp_path / "new")
    (baseline,) = write_boards(boards(old), tmp_path, ["csv"])
    assert gate(new[:1], baseline, 0.1).fell != []
    verdict = gate(new[:1], baseline, 0.1, inductive_only=True)
    assert (verdict.fell, verdict.compared) == ([], 7)
    (alone,) = write_boards(boards(old[1:]), tmp_path / "alone", ["csv"])
    with pytest.raises(RecordError, match="every row of it needs other test images"):
        gate(new, alone, 0.1, inductive_only=True)


def test_the_footer_states_protocol_size_mask_rule_and_versions(tmp_path: Path) -> None:
    board = one([save(tmp_path, observation(), rules=protocol("common-1"))])
    rules = "Protocol common-1: 518 px, masks bilinear50, image scores inductive"
    assert footer(board)[-1].startswith("Metrics version 1, zsadbench 0.1.0; samples ")
    for text in (text_of(board), to_markdown([board]), to_latex([board]), to_json([board])):
        assert text.count(rules) == 1


def test_the_second_best_printed_value_is_known(tmp_path: Path) -> None:
    values = {"a": 0.70011, "b": 0.69999, "c": 0.5, "d": 0.4999, "e": 0.4}
    records = [save(tmp_path, observation(name), row(value=value)) for name, value in values.items()]
    board = one(records)
    second = [line.label for line in board.rows if board.is_second(line, "image_ap")]
    assert second == ["c", "d"]
    alone = one(records[:1])
    assert not alone.is_second(alone.rows[0], "image_ap")


def test_rules_that_differ_by_method_are_told(tmp_path: Path) -> None:
    same = [save(tmp_path, observation(name)) for name in ("clip", "winclip")]
    assert "network input size, masks bilinear50" in subtitle(one(same))
    other = save(tmp_path, observation("anoclip"), rules=protocol(size=240))
    board = one([*same, other])
    assert subtitle(board).endswith("rules of each method's authors, see below")
    (line,) = (line for line in footer(board) if line.startswith("Rules of each method's authors: "))
    assert "anoclip: 240 px, masks" in line
    assert "clip, winclip: network input size, masks" in line  # what is the same is said once


def test_unknown_metrics_and_groupings_are_refused(tmp_path: Path) -> None:
    records = [save(tmp_path, observation())]
    with pytest.raises(UsageError, match="Did you mean 'image_auroc'"):
        boards(records, metrics=["image_aurok"])
    with pytest.raises(UsageError, match="Did you mean 'image_auroc' or 'pixel_auroc'"):
        boards(records, metrics=["auroc"])
    with pytest.raises(UsageError, match="unknown metric 'image_f1max_threshold'"):
        boards(records, sort="image_f1max_threshold")
    with pytest.raises(RecordError, match=r"pixel_aupro@0\.01.*--aupro-limit 0\.01"):
        boards(records, metrics=["pixel_aupro@0.01"])
    with pytest.raises(UsageError, match="Did you mean 'category'"):
        boards(records, by="categroy")


# Formats


def test_csv_holds_full_precision_and_no_time(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    first = save(tmp_path / "a", observation(), row("tile", value, pixel_ap=None))
    text = to_csv([one([first])])
    (line,) = csv.DictReader(io.StringIO(text))
    assert (line["image_auroc"], line["pixel_ap"]) == (repr(value), "")
    assert (line["method"], line["variant"], line["categories"]) == ("clip", "reference", "1")
    later = save(tmp_path / "b", observation(), row("tile", value, pixel_ap=None), created="2030-01-01")
    assert to_csv([one([later])]) == text
    assert to_markdown([one([later])]) == to_markdown([one([first])])
    assert to_json([one([later])]) == to_json([one([first])])


def test_json_has_null_for_undefined(tmp_path: Path) -> None:
    (board,) = json.loads(to_json([one([save(tmp_path, observation(), row("tile", 0.5, pixel_ap=None))])]))
    assert board["rows"][0]["pixel_ap"] is None
    assert board["rows"][0]["image_ap"] == 0.5
    assert board["group"]["protocol"] == "reference"
    assert board["title"] == "MTD (mtd): 8 images (4 normal, 4 anomalous, 1 category)"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    name = "[red]a|b<script>`*"
    board = one([save(tmp_path, observation(name))])
    assert name in text_of(board)
    assert r"| \[red\]a\|b\<script>\`\* |" in to_markdown([board])
    assert name in to_csv([board])


def test_numbers_are_whole_on_a_narrow_terminal(tmp_path: Path) -> None:
    records = [
        save(tmp_path, observation(seed=s), row("tile", 0.5 + s / 10), row("wood", 0.5, pixel_ap=None))
        for s in range(2)
    ]
    text = text_of(one(records), width=80)
    assert "…" not in text
    assert text.count("52.5") == 6


def test_several_boards_are_one_frame(tmp_path: Path) -> None:
    save(tmp_path, observation("clip"), row(value=0.5))
    save(tmp_path, observation("clip", dataset="headct"), row("head", None, image_ap=0.25))
    frame = compare(tmp_path, published=False)
    assert list(frame["dataset"]) == ["headct", "mtd"]
    assert list(frame["image_ap"]) == [0.25, 0.5]
    assert str(frame["pixel_ap"].dtype) == "float64"
    assert frame_of([]).empty


def test_nothing_to_compare_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no readable record here; `zsad run"):
        compare([tmp_path])
    (tmp_path / "observation.json").write_text("{}")
    with pytest.raises(
        RecordError, match=r"evidence but no readable record; run `zsad score RUN_DIR`.*runs there: "
    ):
        compare(str(tmp_path))


def test_formats_are_known_by_name() -> None:
    assert known_formats("table") == ["table"]
    assert known_formats("csv, MD,csv") == ["csv", "md"]
    with pytest.raises(UsageError, match="unknown format 'latx'"):
        known_formats("latx")


def test_boards_by_category_have_files_of_their_own(tmp_path: Path) -> None:
    records = [save(tmp_path, observation())]
    names = [write_boards(boards(records, by=by), tmp_path, ["csv"])[0].name for by in ("method", "category")]
    assert names == ["leaderboard.csv", "leaderboard-by-category.csv"]


# The gate


def judged(tmp_path: Path, old: Sequence[Record], new: Sequence[Record], tolerance: float = 0.1) -> Verdict:
    (baseline,) = write_boards(boards(old), tmp_path, ["csv"])
    return gate(new, baseline, tolerance)


def test_equal_results_pass(tmp_path: Path) -> None:
    records = [save(tmp_path, observation(name), row("tile", 0.1 + 0.2)) for name in ("clip", "winclip")]
    verdict = judged(tmp_path, records, records, tolerance=0)
    assert (verdict.fell, verdict.improved, verdict.compared) == ([], [], 14)


def test_a_fall_is_told_with_both_values(tmp_path: Path) -> None:
    old = [save(tmp_path / "old", observation(), row(value=0.5))]
    new = [save(tmp_path / "new", observation(), row(value=0.5, pixel_ap=0.4975, image_ap=0.5125))]
    assert judged(tmp_path, old, new, tolerance=0.3).fell == []
    verdict = judged(tmp_path, old, new, tolerance=0.2)
    assert verdict.fell == ["mtd reference clip pixel_ap: 50.00 -> 49.75 (-0.25 points)"]
    assert verdict.improved == ["mtd reference clip image_ap: 50.00 -> 51.25 (+1.25 points)"]


def test_a_tolerance_is_met_exactly(tmp_path: Path) -> None:
    old = [save(tmp_path / "old", observation(), row(value=0.7))]
    new = [save(tmp_path / "new", observation(), row(value=0.699))]
    assert judged(tmp_path, old, new, tolerance=0.1).fell == []
    assert len(judged(tmp_path, old, new, tolerance=0.0999).fell) == 7


def test_a_missing_row_fell(tmp_path: Path) -> None:
    clip, winclip = (save(tmp_path, observation(name)) for name in ("clip", "winclip"))
    assert judged(tmp_path, [clip, winclip], [clip]).fell == [
        "mtd reference winclip: missing from the new results"
    ]
    assert judged(tmp_path, [clip], [clip, winclip]).fell == []
    headct = save(tmp_path, observation("clip", dataset="headct"))
    assert judged(tmp_path, [clip, headct], [clip]).fell == [
        "headct reference clip: missing from the new results"
    ]


def test_a_value_that_became_undefined_fell(tmp_path: Path) -> None:
    old = [save(tmp_path / "old", observation(), row("a", 0.5), row("b", 0.5))]
    without = row("a", 0.5, pixel_ap=None)
    gone = [save(tmp_path / "gone", observation(), without, row("b", 0.5, pixel_ap=None))]
    fewer = [save(tmp_path / "few", observation(), without, row("b", 0.75, pixel_ap=0.6))]
    assert judged(tmp_path, old, gone).fell == ["mtd reference clip pixel_ap: 50.00 -> n/a"]
    (said,) = judged(tmp_path, old, fewer).fell
    assert said.endswith("(+10.00 points), over 1 categories, were 2")
    assert judged(tmp_path, gone, old).improved == ["mtd reference clip pixel_ap: n/a -> 50.00"]


def test_another_version_of_a_method_is_judged_by_its_numbers(tmp_path: Path) -> None:
    old = [save(tmp_path / "old", observation(parameters={"tau": 1}), row(value=0.5))]
    new = [save(tmp_path / "new", observation(parameters={"tau": 2}), row(value=0.4))]
    assert len(judged(tmp_path, old, new).fell) == 7


def test_the_newest_record_of_a_name_is_judged_and_a_stale_one_left_aside(tmp_path: Path) -> None:
    times = [f"2026-0{month}-01T00:00:00+00:00" for month in (1, 2)]
    stale, new = (
        save(tmp_path / str(t), observation(parameters={"tau": t}), row(value=value), created=created)
        for t, (value, created) in enumerate(zip((0.5, 0.4), times, strict=True))
    )
    for records in ([stale, new], [new, stale]):
        verdict = judged(tmp_path, [stale], records)
        assert len(verdict.fell) == 7
        (note,) = (note for note in verdict.notes if "judged" in note)
        assert "judged the newest of 2 records of this name" in note and str(new.path.parent) in note
    assert not any("judged" in note for note in judged(tmp_path, [new], [stale]).notes)


def test_a_newer_record_in_another_state_is_refused_not_passed_over(tmp_path: Path) -> None:
    old = save(tmp_path / "old", observation(), created="2026-01-01T00:00:00+00:00")
    for about in ({"contents": "f" * 64}, {"digest": "e" * 64}):
        new = save(
            tmp_path / "new", observation(about=about), row(value=0.1), created="2026-02-01T00:00:00+00:00"
        )
        with pytest.raises(RecordError, match="cannot be compared with these results"):
            judged(tmp_path, [old], [old, new])
    limited = observation(about={"digest": "e" * 64, "selection": {"limit": 4}})
    part = save(tmp_path / "part", limited, row(value=0.1), created="2026-03-01T00:00:00+00:00")
    assert judged(tmp_path, [old], [old, part]).fell == []  # a part of the set is another row


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    old = save(tmp_path, observation(parameters={"tau": 1}))
    twin = save(tmp_path, observation(parameters={"tau": 2}))
    with pytest.raises(RecordError, match="2 records of this name are equally new"):
        judged(tmp_path, [old], [old, twin])
    stray = save(tmp_path, observation(parameters={"tau": 3}), created="2027-01-01T00:00:00+00:00")
    with pytest.raises(RecordError, match="it cannot be told which to judge"):
        judged(tmp_path, [old, twin], [old, stray])
    before = save(tmp_path, observation(parameters={"tau": 4}), created="2025-01-01T00:00:00+00:00")
    assert judged(tmp_path, [old, twin], [old, twin, before]).fell == []


def test_a_verdict_is_json_and_annotations_too(tmp_path: Path) -> None:
    old = [save(tmp_path / "old", observation(), row(value=0.5))]
    new = [save(tmp_path / "new", observation(), row(value=0.5, pixel_ap=0.25, image_ap=0.75))]
    verdict = judged(tmp_path, old, new)
    content = json.loads(verdict.to_json())
    assert (content["passed"], content["compared"], content["tolerance"]) == (False, 7, 0.1)
    (fell,) = content["fell"]
    assert (fell["metric"], fell["before"], fell["now"], fell["category"]) == ("pixel_ap", 0.5, 0.25, "mean")
    assert (fell["label"], fell["method"], fell["backbone"]) == ("clip", "clip", "ViT-B-16/openai")
    assert [each["metric"] for each in content["improved"]] == ["image_ap"]
    assert verdict.summary.startswith("Gate failed: 1 fell, 7 values compared with ")
    assert verdict.annotations()[:1] == [
        "::error title=zsad gate::mtd reference clip pixel_ap: 50.00 -> 25.00 (-25.00 points)"
    ]
    same = judged(tmp_path, old, old)
    assert json.loads(same.to_json())["passed"] and same.annotations()[-1].startswith(
        "::notice title=zsad gate::Gate passed: 7 values"
    )


def test_rows_of_one_name_are_told_apart_by_their_digest(tmp_path: Path) -> None:
    pair = [save(tmp_path, observation(parameters={"tau": t}), row(value=t / 10)) for t in (2, 8)]
    assert judged(tmp_path, pair, list(reversed(pair))).fell == []
    (said,) = judged(tmp_path, pair, pair[:1]).fell
    assert said == "mtd reference clip (tau=8): missing from the new results"


def test_other_rules_of_a_method_are_a_fall(tmp_path: Path) -> None:
    old = [save(tmp_path / "old", observation(), rules=protocol(size=240))]
    new = [save(tmp_path / "new", observation(), rules=protocol(size=518))]
    (said,) = judged(tmp_path, old, new).fell
    assert "evaluated under other rules (518 px" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": protocol("common-1")}, "protocol reference instead of common-1"),
        ({"rules": protocol(version=2)}, "protocol version 1 instead of 2"),
        ({"metric_version": 2}, "metric version 1 instead of 2"),
    ],
)
def test_a_baseline_of_another_group_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    old = [save(tmp_path / "old", observation())]
    new = [save(tmp_path / "new", observation(), **change)]  # type: ignore[arg-type]
    with pytest.raises(RecordError, match=message):
        judged(tmp_path, old, new)


def test_a_baseline_of_other_images_is_refused(tmp_path: Path) -> None:
    old = [save(tmp_path / "old", observation(about={"contents": "f" * 64}))]
    new = [save(tmp_path / "new", observation())]
    with pytest.raises(RecordError, match="contents digest ffffffffffff instead of "):
        judged(tmp_path, old, new)
    with pytest.raises(RecordError, match="dataset mtd instead of headct"):
        judged(tmp_path, old, [save(tmp_path, observation(dataset="headct"))])


def test_a_baseline_by_category_is_compared_by_category(tmp_path: Path) -> None:
    old = [save(tmp_path / "old", observation(), row("a", 0.5), row("b", 0.5))]
    new = [save(tmp_path / "new", observation(), row("a", 0.25), row("b", 0.75))]
    assert judged(tmp_path, old, new).fell == []
    (baseline,) = write_boards(boards(old, by="category"), tmp_path, ["csv"])
    verdict = gate(new, baseline, 0.1)
    assert len(verdict.fell) == len(verdict.improved) == 7
    assert verdict.fell[0] == "mtd a reference clip image_auroc: 50.00 -> 25.00 (-25.00 points)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'dataset'"),
        ("method,image_auroc\nclip,0.5\n", "has no column 'dataset'"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(RecordError, match=message):
        gate([save(tmp_path, observation())], tmp_path / "b.csv", 0.1)


def test_a_damaged_baseline_is_refused(tmp_path: Path) -> None:
    records = [save(tmp_path, observation(), row(value=0.625))]
    (path,) = write_boards(boards(records), tmp_path, ["csv"])
    whole = path.read_text()
    for value in ("high", "nan", "62.5"):
        path.write_text(whole.replace("0.625", value, 1))
        with pytest.raises(RecordError, match="line 2 cannot be read"):
            gate(records, path, 0.1)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(RecordError, match="has no row"):
        gate(records, path, 0.1)
    with pytest.raises(RecordError, match=r"the baseline is a leaderboard\.csv"):
        gate(records, tmp_path / "nowhere.csv", 0.1)
    write_boards(boards(records), tmp_path, ["csv"])
    with pytest.raises(RecordError, match=r"did you mean .*leaderboard\.csv\?"):
        gate(records, tmp_path, 0.1)


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_tolerance_that_would_let_anything_pass_is_refused(tmp_path: Path, tolerance: float) -> None:
    records = [save(tmp_path, observation())]
    with pytest.raises(UsageError, match="give 0 or more"):
        judged(tmp_path, records, records, tolerance)


def test_where_lower_is_better_the_lowest_is_best(tmp_path: Path) -> None:
    def records(where: str, **values: float) -> list[Record]:
        return [
            save(tmp_path / where, observation(name), row(image_fpr95=value))
            for name, value in values.items()
        ]

    board = one(records("old", clip=0.4, winclip=0.1, anoclip=0.2), metrics=["image_fpr95"])
    assert [line.label for line in board.rows] == ["winclip", "anoclip", "clip"]
    assert [board.is_best(line, "image_fpr95") for line in board.rows] == [True, False, False]
    assert board.is_second(board.rows[1], "image_fpr95")
    (baseline,) = write_boards([board], tmp_path, ["csv"])
    worse = gate(records("worse", clip=0.4, winclip=0.3, anoclip=0.2), baseline, 0.1)
    assert len(worse.fell) == 1 and "image_fpr95: 10.00 -> 30.00 (+20.00 points)" in worse.fell[0]
    better = gate(records("better", clip=0.3, winclip=0.1, anoclip=0.2), baseline, 0.1)
    assert not better.fell and len(better.improved) == 1
