"""``zsad reproduce``: verdicts as exit codes, and what is said where something is missing."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests.kit.terminal import call
from zsadbench.demo import data
from zsadbench.records.records import find_records


def test_the_demo_is_judged_by_a_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZSAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "NORMAL", 2)
    monkeypatch.setattr(data, "ANOMALOUS", 3)
    out = ("--out", tmp_path / "results", "--report", tmp_path / "report", "-q")
    assert call("run", "-m", "clip", "-d", "demo", "--out", tmp_path / "results", "-q") == 0
    assert call("compare", tmp_path / "results", "--out", tmp_path) == 0
    board = tmp_path / "leaderboard.csv"
    capsys.readouterr()
    assert call("reproduce", "clip", "--dataset", "demo", "--board", board, *out) == 0
    assert "clip on demo: agrees; all 7 figures agree, the largest by 0.00 points" in capsys.readouterr().out
    (content,) = json.loads((tmp_path / "report" / "reproduction.json").read_text())
    records, _ = find_records([tmp_path / "results"])
    assert {record.protocol["id"] for record in records} == {"reference"}
    assert set(content["records"]) == {record.digest for record in records}

    lines = list(csv.DictReader(board.open()))
    lines[0]["image_auroc"] = str(float(lines[0]["image_auroc"]) - 0.006)
    with board.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    assert call("reproduce", "--all", "--dataset", "demo", "--board", board, *out) == 1
    assert "clip on demo: differs; 1 of 7 figures differ, the largest by 0.60" in capsys.readouterr().out


def test_what_is_missing_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ZSAD_DATA", "ZSAD_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert call("reproduce", "anomalyclip", "--dataset", "visa") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: anomalyclip on visa cannot be reproduced yet:")
    assert "https://github.com/amazon-science/spot-diff" in said and "962 normal and 1200 anomalous" in said
    assert "SHA-256 3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02" in said
    assert "zsad weights prefetch ViT-L-14-336 openai" in said
    assert "zsad checkpoints import FILE --method anomalyclip" in said
    assert "2,162 images at 518 px are 2,188 TFLOP" in said
    assert re.search(r"at least \d+\.\d h on this processor \(\d+ GFLOP/s measured\)", said)
    assert "with at least 1.2 GB for its weights" in said

    assert call("reproduce", "--all", "--dataset", "visa", "--data", tmp_path) == 2
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ") and first.endswith("on visa cannot be reproduced yet:")
    assert "anomalyclip" in first and "winclip" in first
    kinds = [line.split(":")[0].strip() for line in lines]
    assert [kinds.count(kind) for kind in ("data", "The run itself")] == [1, 2]  # of towers at their sizes
    assert kinds.count("weights") == 3  # OpenAI's, and LAION's after 31 and 32 epochs
    checkpoints = [line for line in lines if line.startswith("  checkpoint: ")]
    assert len(checkpoints) > 5 and any("--method vcp-clip" in line for line in checkpoints)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give a METHOD, or --all, and --dataset ID"),
        (("clip",), "give a METHOD, or --all, and --dataset ID"),
        (("clip", "--all", "-d", "visa"), "give a METHOD, or --all, and --dataset ID"),
        (("clop", "-d", "visa"), "unknown method 'clop'"),
        (("clip", "-d", "vista"), "vista"),
        (("--all", "-d", "headct", "--board", "none.csv"), "none.csv"),
    ],
)
def test_a_careless_call_is_one_line(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("reproduce", *words) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1
