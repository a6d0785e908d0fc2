"""LaTeX tables go into a paper as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.kit.boardkit import observation, protocol, row, save
from zsadbench.boards.compare import boards
from zsadbench.boards.latex import joined_to_latex, to_latex
from zsadbench.boards.words import MARKS
from zsadbench.errors import RecordError, UsageError
from zsadbench.records.records import Record

FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
METRICS = ("image_auroc", "pixel_ap")


@pytest.fixture
def two(tmp_path: Path) -> list[Record]:
    """A better and a worse method on two categories of a dataset that nobody describes."""
    return [
        save(
            tmp_path,
            observation(name, dataset="parts", flags={"transductive": name == "clip"}),
            row("nut_1", value, pixel_ap=0.25),
            row("bolt", 1 - value, pixel_ap=None),
        )
        for name, value in (("clip", 0.375), ("winclip", 0.75))
    ]


def lines(records: Sequence[Record], by: str | None = None) -> list[str]:
    return to_latex(boards(records, metrics=METRICS, by=by)).splitlines()


def test_a_table_of_means_needs_no_hand_work(two: list[Record]) -> None:
    assert lines(two) == [
        r"% Needs \usepackage{booktabs,graphicx}.",
        r"\begin{table}",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        r"\caption{PARTS (parts): 16 images (8 normal, 8 anomalous, 2 categories). Protocol reference-1: "
        r"network input size, masks bilinear50, image scores reference, AUPRO to 0.3, 0.05, 8-connected.}",
        r"\label{tab:parts-reference-1}",
        FITTED,
        r"\begin{tabular}{lrrl}",
        r"\toprule",
        r" & \multicolumn{1}{c}{Image} & \multicolumn{1}{c}{Pixel} &  \\",
        r"\cmidrule(lr){2-2} \cmidrule(lr){3-3}",
        r"method & AUROC & AP & marks \\",
        r"\midrule",
        r"clip & \textbf{50.0} & \shortstack{\textbf{25.0}\\ \scriptsize (1/2)} & \dag{} \\",
        r"winclip & \textbf{50.0} & \shortstack{\textbf{25.0}\\ \scriptsize (1/2)} &  \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\par\smallskip",
        r"\begin{minipage}{\linewidth}\footnotesize\raggedright",
        r"In percent, unweighted mean over 2 categories, (n/N): over n of N only.\par",
        r"n/a in Pixel AP: the dataset has no masks.\par",
        rf"\dag{{}} transductive: {MARKS['transductive']}.\par",
        lines(two)[-3],  # versions and digests
        r"\end{minipage}",
        r"\end{table}",
    ]
    assert lines(two)[-3].startswith("Metrics version 1, zsadbench 0.1.0; samples ")


def test_a_table_by_category_has_a_row_for_each_and_their_mean(two: list[Record]) -> None:
    text = lines(two, by="category")
    first = text.index(r"\label{tab:parts-reference-1-image-auroc}")
    assert text[first + 1 : first + 12] == [
        FITTED,
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"category & clip \dag{} & winclip \\",
        r"\midrule",
        r"nut\_1 & \underline{37.5} & \textbf{75.0} \\",
        r"bolt & \textbf{62.5} & \underline{25.0} \\",
        r"\midrule",
        r"mean & \textbf{50.0} & \textbf{50.0} \\",
        r"\bottomrule",
        r"\end{tabular}}",
    ]
    assert r"\label{tab:parts-reference-1-pixel-ap}" in text
    assert text.count(r"\begin{minipage}{\linewidth}\footnotesize\raggedright") == 1  # below the last one
    (alone,) = boards(two[:1], by="category", metrics=["image_auroc"])
    assert to_latex([alone]).count(r"\midrule") == 2


def test_labels_of_tables_are_never_given_twice(tmp_path: Path) -> None:
    seen = [observation(about={"contents": letter * 64}) for letter in "abc"]
    text = to_latex(boards([save(tmp_path / str(i), each) for i, each in enumerate(seen)]))
    for label in ("tab:mtd-reference-1", "tab:mtd-reference-1-no-2", "tab:mtd-reference-1-no-3"):
        assert text.count(rf"\label{{{label}}}") == 1


def test_one_table_over_several_datasets(two: list[Record], tmp_path: Path) -> None:
    other = save(tmp_path / "more", observation("winclip", dataset="tiles"), row("a", 0.125))
    tables = boards([*two, other], metrics=METRICS)
    text = joined_to_latex(tables).splitlines()
    top = text.index(FITTED)
    assert text[top + 1 : top + 10] == [
        r"\begin{tabular}{lrrrrl}",
        r"\toprule",
        r" & \multicolumn{2}{c}{parts} & \multicolumn{2}{c}{tiles} &  \\",
        r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}",
        r"method & Image AUROC & Pixel AP & Image AUROC & Pixel AP & marks \\",
        r"\midrule",
        r"clip & \textbf{50.0} & \shortstack{\textbf{25.0}\\ \scriptsize (1/2)} & -- & -- & \dag{} \\",
        r"winclip & \textbf{50.0} & \shortstack{\textbf{25.0}\\ \scriptsize (1/2)} & 12.5 & 12.5 &  \\",
        r"\bottomrule",
    ]
    assert text[1] == r"\begin{table*}" and text[-1] == r"\end{table*}"
    assert r"\label{tab:reference-1}" in text


def test_what_does_not_fit_one_table_is_refused(two: list[Record], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave --by category out"):
        joined_to_latex(boards(two, by="category"))
    common = save(tmp_path / "c", observation("clip", dataset="tiles"), rules=protocol("common-1"))
    with pytest.raises(RecordError, match="one table needs one protocol"):
        joined_to_latex(boards([*two, common]))
    moved = save(tmp_path / "m", observation("clip", dataset="parts", about={"contents": "f" * 64}))
    with pytest.raises(RecordError, match="'parts' has several"):
        joined_to_latex(boards([*two, moved]))
