"""Figures for papers, and the plots that pages share with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from typer.testing import CliRunner

from tests.kit import boardkit
from tests.kit.reportkit import CATEGORY, HOSTILE, app, make_results, users
from zsadbench.boards.rows import Cell
from zsadbench.errors import RecordError, UsageError
from zsadbench.metrics.bootstrap import Interval
from zsadbench.metrics.image import image_curve
from zsadbench.views import figures, plots
from zsadbench.views.category import Entry
from zsadbench.views.figures import bars_figure, choose, curves_figure, known_category, qualitative_figure
from zsadbench.views.plots import Bar, Line


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("figures"))[0]


@pytest.fixture
def boards(tmp_path: Path) -> Path:
    for method, value in (("clip", 0.5), ("winclip", 0.75)):
        rows = [boardkit.row("tile", value), boardkit.row("cap", value - 0.25)]
        boardkit.save(tmp_path / "boards", boardkit.observation(method), *rows)
        seen = boardkit.observation(method, dataset="visa")
        boardkit.save(tmp_path / "boards", seen, *rows, rules=boardkit.protocol("common-1"))
    return tmp_path / "boards"


def test_one_board_is_chosen_or_the_choice_is_named(boards: Path) -> None:
    with pytest.raises(
        UsageError, match=r"mtd under reference v1; visa under common-1 v1\); choose with --da"
    ):
        choose([boards])
    assert str(choose([boards], dataset="visa").group) == "visa under common-1 v1"
    assert choose([boards], protocol="reference-1") == choose([boards], protocol="reference")
    with pytest.raises(UsageError, match=r"no record of dataset 'mtb'. Did you mean 'mtd'"):
        choose([boards], dataset="mtb")
    with pytest.raises(UsageError, match="no record of protocol 'legacy200'"):
        choose([boards], "mtd", "legacy200")
    rows = choose([boards], "mtd", methods=["winclip", "clip"]).rows
    assert [row.label for row in rows] == ["winclip", "clip"]
    assert [row.label for row in choose([boards], "mtd", methods=["clip", "winclip"]).rows] == [
        "clip",
        "winclip",
    ]
    with pytest.raises(UsageError, match=r"no method 'wincilp' on this board. Did you mean 'winclip'"):
        choose([boards], "mtd", methods=["wincilp"])
    (boards / "empty").mkdir()
    with pytest.raises(RecordError, match="no readable record"):
        choose([boards / "empty"])


def test_categories_are_named_where_there_are_several(boards: Path) -> None:
    board = choose([boards], "mtd")
    with pytest.raises(UsageError, match="choose one with --category: tile, cap"):
        known_category(board, None)
    with pytest.raises(UsageError, match=r"no category 'cab' on this board. Did you mean 'cap'"):
        known_category(board, "cab")
    assert known_category(board, "cap") == "cap"


def test_bars_hold_the_boards_values(boards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, list[Bar]]] = []
    real = plots.draw_bars

    def note(axes: object, bars: list[Bar], metric: str, **options: bool) -> None:
        drawn.append((metric, bars))
        real(axes, bars, metric, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(plots, "draw_bars", note)
    bars_figure(choose([boards], "mtd"), tmp_path / "bars.pdf", metrics=["image_auroc", "pixel_aupro"])
    assert drawn[0] == ("Image AUROC", [Bar("winclip", 0.625), Bar("clip", 0.375)])
    assert [metric for metric, _ in drawn] == ["Image AUROC", "AUPRO at 0.3"]
    bars_figure(
        choose([boards], "mtd", by="category"), tmp_path / "b.svg", category="cap", metrics=["image_ap"]
    )
    assert drawn[-1] == ("Image AP", [Bar("winclip", 0.5), Bar("clip", 0.25)])
    assert "winclip" in (tmp_path / "b.svg").read_text()
    with pytest.raises(UsageError, match=r"no record has the metric 'image_auc'. Did you mean 'image_auroc'"):
        bars_figure(choose([boards], "mtd"), tmp_path / "b.pdf", metrics=["image_auc"])
    bars_figure(choose([boards], "mtd", metrics=["image_auroc", "rank"]), tmp_path / "rank.svg")
    assert drawn[-1] == ("Average rank", [Bar("winclip", 1.0), Bar("clip", 2.0)])
    assert ">2.00<" in (text := (tmp_path / "rank.svg").read_text()) and "Average rank, percent" not in text
    alone = choose([boards], "mtd", methods=["clip"], metrics=["rank"])
    bars_figure(alone, tmp_path / "rank.svg")
    assert drawn[-1] == ("Average rank", [Bar("clip", 1.0)])
    with pytest.raises(UsageError, match=r"b.jpg: figures are written as .pdf, .png, .svg"):
        bars_figure(choose([boards], "mtd"), tmp_path / "b.jpg")


def test_bars_show_intervals_else_the_spread_over_seeds() -> None:
    assert figures._bounds(Cell(0.5, 0.1, 1, 1, Interval(0.25, 0.75))) == (0.25, 0.75)
    assert figures._bounds(Cell(0.875, 0.25, 1, 1)) == (0.625, 1.0)
    assert figures._bounds(Cell(0.5, None, 1, 1)) is None
    with plots.style():
        figure, (axes,) = plots.sheet(3, 2)
        plots.draw_bars(axes, [Bar("_a$b$", 0.5, (0.25, 0.75)), Bar("c", 0.75)], "Pixel AP")
        widths = [patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)]
        assert widths == [50.0, 75.0]
        assert [line.get_xdata().tolist() for line in axes.lines] == [[25.0, 75.0]]  # type: ignore[union-attr]
        assert "_a$b$" in plots.to_svg(figure, "bars")


def test_lines_have_the_area_of_their_metric() -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(4000) % 3 == 0
    curve = image_curve(rng.normal(size=4000).astype(np.float32) + labels, labels)
    roc, pr = plots.line_of("m", curve, "roc"), plots.line_of("m", curve, "pr")
    assert roc.x.size <= plots.POINTS + 1 and not roc.steps and pr.steps
    assert float(np.trapezoid(roc.y, roc.x)) == pytest.approx(curve.auroc, abs=1e-9)
    assert float(np.sum(np.diff(pr.x) * pr.y[1:])) == pytest.approx(curve.ap, abs=1e-9)


def test_every_method_keeps_its_colour_and_dashes() -> None:
    straight = np.array([0.0, 1.0])
    with plots.style():
        figure, (axes,) = plots.sheet(3, 3)
        lines = [(1, Line("_hidden", straight, straight)), (7, Line("b", straight, straight, steps=True))]
        plots.draw_curves(axes, "pro", lines, 0.3)
        plots.add_legend(figure, axes)
        assert [line.get_color() for line in axes.lines] == [plots.COLOURS[1], plots.COLOURS[1]]
        assert axes.get_xlim() == (0, 0.3)
        assert [line.get_drawstyle() for line in axes.lines] == ["default", "steps-pre"]
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [" _hidden", " b"]
        svg = plots.to_svg(figure, "page-a")
        other = plots.to_svg(figure, "page-b")
    assert plots.dashes(1) != plots.dashes(7)
    assert "var(--series-1)" in svg and "currentColor" in svg and not re.search('#[0-9a-f]{6}[;"]', svg)
    assert set(re.findall(r'id="([^"]+)"', svg)).isdisjoint(re.findall(r'id="([^"]+)"', other))
    assert {name.strip("#") for name in re.findall(r"url\((#[^)]+)\)", svg)} <= set(
        re.findall(r'id="([^"]+)"', svg)
    )


def crowded(figure: Figure) -> list[str]:
    """Return which labels of a figure are cut off by its edge or lie over another plot or the legend."""
    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    boxes: list[Any] = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    paper = figure.bbox
    cut = [
        f"cut: {box}" for box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > paper.x1 or box.y1 > paper.y1
    ]
    return cut + [f"over: {a} {b}" for a, b in combinations(boxes, 2) if a.overlaps(b)]


LABELS = ["clip", "anomalyclip@no-value-stream (ViT-L-14-336/openai, 5 seeds)", "クリップ 裂け目"]


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_no_label_is_cut_or_lies_over_another(count: int) -> None:
    labels = (LABELS * 3)[:count]
    with plots.style():
        margins = plots.bar_margins(labels)
        figure, panels = plots.sheet(margins.left + 2.7, 0.9 + 0.32 * count, 5, margins=margins)
        for axes in panels:
            bars = [
                Bar(label, value, (value, 1)) for label, value in zip(labels, np.ones(count), strict=True)
            ]
            plots.draw_bars(axes, bars, "AUPRO at 0.05")
        assert not crowded(figure)

        figure, panels = plots.sheet(3.2, 3.1, count, 5, plots.Margins(top=0.3))
        line = np.array([0.0, 1.0])
        for axes in panels:
            lines = [(index, Line(label, line, line)) for index, label in enumerate(labels)]
            plots.draw_curves(axes, "pro", lines, 0.3)
            axes.set_title("Image PRO")
        plots.add_legend(figure, panels[0])
        assert not crowded(figure)

        figure, grid = plots.panels(2, labels)
        for axes in grid[0] + grid[1]:
            plots.draw_picture(axes, np.zeros((20, 30, 3), np.uint8))
        assert not crowded(figure)


def test_the_users_style_changes_nothing(tmp_path: Path) -> None:
    def drawn(name: str) -> bytes:
        with plots.style():
            figure, (axes,) = plots.sheet(2, 2)
            plots.draw_bars(axes, [plots.Bar("one", 0.5, (0.4, 0.6))], "AUROC")
            plots.save(figure, tmp_path / name)
        return (tmp_path / name).read_bytes()

    first = {suffix: drawn(f"a{suffix}") for suffix in plots.FORMATS}
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20}):
        assert {suffix: drawn(f"b{suffix}") for suffix in plots.FORMATS} == first
    assert first[".pdf"].startswith(b"%PDF") and first[".png"].startswith(b"\x89PNG")


def test_qualitative_figures_show_image_mask_and_maps(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, np.ndarray]] = []
    monkeypatch.setattr(
        plots, "draw_picture", lambda axes, picture: shown.append((axes.get_title(), picture))
    )
    board = choose([results])
    labels = [row.label for row in board.rows]
    assert sorted(labels) == ["clip", "mine.Mine"]
    keys = [f"{CATEGORY}/test/hole/{HOSTILE}.png", "cloth/test/good/1.png"]
    qualitative_figure(board, tmp_path / "q.png", keys=keys, users=users(results))
    assert [heading for heading, _ in shown] == ["image", "mask", *labels, "", "", "", ""]
    mask = np.zeros((40, 40), bool)
    mask[4:14, 4:12] = True
    assert np.array_equal(shown[1][1][..., 0] > 0, mask) and not shown[5][1].any()
    assert np.array_equal(shown[0][1][mask], np.full((80, 3), 10))  # the defect as it was painted
    with pytest.raises(UsageError, match=r"no image 'cloth/test/good/11.png' that all"):
        qualitative_figure(board, tmp_path / "q.png", keys=["cloth/test/good/11.png"])


def test_qualitative_figures_spread_over_categories_and_ranks(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    real = figures._pictures

    def note(entries: Sequence[Entry], key: str) -> list[figures.Pixels]:
        found.append(key)
        return real(entries, key)

    monkeypatch.setattr(figures, "_pictures", note)
    qualitative_figure(choose([results]), tmp_path / "q.pdf", rows=3, users=users(results))
    assert (tmp_path / "q.pdf").read_bytes().startswith(b"%PDF")
    assert [key.split("/")[0] for key in found] == [CATEGORY, CATEGORY, "cloth"]
    assert all("/hole/" in key for key in found)
    found.clear()
    qualitative_figure(choose([results]), tmp_path / "q.png", category="cloth", rows=9, users=users(results))
    assert len(found) == len(set(found)) == 5  # every anomalous image once
    assert Image.open(tmp_path / "q.png").width == pytest.approx(200 * 1.3 * 4, abs=2)


def test_curves_of_one_category(results: Path, tmp_path: Path) -> None:
    board = choose([results])
    curves_figure(board, tmp_path / "c.svg", category="cloth", users=users(results))
    text = (tmp_path / "c.svg").read_text()
    for name in ("Image ROC", "Image PR", "Pixel ROC", "Pixel PR", "Pixel PRO", " mine.Mine", " clip"):
        assert f">{name}<" in text, name
    curves_figure(board, tmp_path / "one.svg", category="cloth", kinds=["pixel-pro"], users=users(results))
    assert ">Pixel PRO<" in (tmp_path / "one.svg").read_text()
    assert ">Image ROC<" not in (tmp_path / "one.svg").read_text()
    with pytest.raises(UsageError, match=r"unknown curve 'pixel-prc'. Did you mean 'pixel-pr"):
        curves_figure(board, tmp_path / "c.svg", category="cloth", kinds=["pixel-prc"])


def test_what_cannot_be_drawn_is_refused(boards: Path, tmp_path: Path) -> None:
    board = choose([boards], "mtd")
    with pytest.raises(RecordError, match="the record does not say where the method is"):
        qualitative_figure(board, tmp_path / "q.pdf")
    with pytest.raises(RecordError, match="the record does not say where the method is"):
        curves_figure(board, tmp_path / "c.pdf", category="tile", kinds=["pixel-roc"])
    assert not list(tmp_path.glob("*.pdf"))


def test_the_commands_write_figures(boards: Path, tmp_path: Path) -> None:
    out = tmp_path / "bars.png"
    words = ["figure", "bars", str(boards), "-d", "visa", "--metric", "pixel_ap", "--out", str(out)]
    done = CliRunner().invoke(app(), words)
    assert done.exit_code == 0 and done.output.strip() == str(out), done.output
    assert Image.open(out).size == (720, 308)


def test_a_histogram_is_written_out_with_the_shares_as_heights() -> None:
    svg = plots.histogram_svg([0.0, 0.0, 0.0, 1.0], [1.0])
    filled, outlined = re.findall(r'<path d="M40 122([^"]*)V122" (?:fill="var|fill="none" stroke="var)', svg)
    heights = [float(text) for text in re.findall(r"V([\d.]+)H", filled)]
    low, high = 122 - (122 - 8) * 0.75 / 1.05, 122 - (122 - 8) * 0.25 / 1.05
    assert [heights[0], heights[-1]] == pytest.approx([low, high], abs=0.1)
    assert set(heights[1:-1]) == {122.0}
    assert float(re.findall(r"V([\d.]+)H", outlined)[-1]) == pytest.approx(122 - 114 / 1.05, abs=0.1)
    assert "matplotlib" not in svg and svg.count("<svg") == 1


@pytest.mark.parametrize("scores", [([], [2.0]), ([5.0], []), ([1e30, -1e30], [0.0]), ([0.0] * 9, [0.0])])
def test_a_histogram_of_odd_scores_is_sound_xml(scores: tuple[list[float], list[float]]) -> None:
    svg = plots.histogram_svg(*scores)
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg
