"""Curves, histograms and bars, drawn with matplotlib: for pages as SVG, for papers as PDF or PNG.

Nothing here touches pyplot, so no window system is asked for and nothing is shared between threads.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ..errors import UsageError
from ..files import write_atomic
from ..metrics import Curve

Kind = Literal["roc", "pr", "pro"]
AXES: dict[Kind, tuple[str, str]] = {
    "roc": ("false-positive rate", "true-positive rate"),
    "pr": ("recall", "precision"),
    "pro": ("false-positive rate", "mean region overlap"),
}
NAMES: dict[Kind, str] = {"roc": "ROC", "pr": "PR", "pro": "PRO"}
COLOURS = ("#0072b2", "#c44e00", "#007a5a", "#a8327d", "#7a6400", "#5b5b5b")
"""At least 3:1 against white, told apart with any colour vision; dashes tell the rest apart."""
DASHES = ("", "6 2", "2 2", "7 2 2 2")
INK = "#1b1b1b"
POINTS = 300
FORMATS = (".pdf", ".png", ".svg")

_STYLE: Any = {
    "text.parse_math": False,  # a name may hold dollar signs
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "zsadbench",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


@dataclass(frozen=True)
class Line:
    """A curve with its name, ready to draw; ``steps`` hold their height back to the point before."""

    label: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    steps: bool = False


@dataclass(frozen=True)
class Bar:
    """One number with its name, and its interval where there is one; all in [0, 1]."""

    label: str
    value: float
    interval: tuple[float, float] | None = None


def colour(index: int) -> str:
    """Return the colour of method ``index`` of a board."""
    return COLOURS[index % len(COLOURS)]


def dashes(index: int) -> str:
    """Return the dashes of method ``index``, as SVG writes them; empty for a solid line."""
    return DASHES[index % len(DASHES)]


def line_of(label: str, curve: Curve, kind: Kind, points: int = POINTS) -> Line:
    """Return a ROC, precision-recall or PRO line of a curve."""
    if kind == "pr":
        recall, precision = curve.pr(points)
        first = precision[:1]
        return Line(label, np.append(0.0 * first, recall), np.append(first, precision), steps=True)
    return Line(label, *(curve.roc(points) if kind == "roc" else curve.pro(points)))


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the toolkit, whatever the user's matplotlib is set to."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@dataclass(frozen=True)
class Margins:
    """Inches around a plot that its labels take."""

    left: float = 0.54
    right: float = 0.17
    top: float = 0.08
    bottom: float = 0.47


def sheet(
    width: float, height: float, plots: int = 1, columns: int = 4, margins: Margins | None = None
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a number of plots of ``width`` x ``height`` inches, ``columns`` in a row."""
    columns, margins = min(plots, columns), margins or Margins()
    rows = -(-plots // columns)
    figure = _figure(width * columns, height * rows)
    inside = width - margins.left - margins.right, height - margins.bottom - margins.top
    places = ((number % columns * width, (rows - 1 - number // columns) * height) for number in range(plots))
    return figure, [_axes(figure, x + margins.left, y + margins.bottom, *inside) for x, y in places]


def panels(rows: int, headings: Sequence[str], side: float = 1.3) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a grid of axes of ``side`` inches for pictures, a heading above each column."""
    gap, top = 0.02, 0.2
    figure = _figure(side * len(headings), side * rows + top)
    grid = [
        [
            _axes(figure, column * side + gap, row * side + gap, side - 2 * gap, side - 2 * gap)
            for column in range(len(headings))
        ]
        for row in reversed(range(rows))
    ]
    size = 8 * min(1.0, (side - 2 * gap) / width_of(headings, 8))
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize=size)
    return figure, grid


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Return axes at a place in inches: a layout found by drawing takes as long as the picture itself."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def bar_margins(labels: Sequence[str]) -> Margins:
    """Return the room that bars need for their ``labels`` and for the numbers behind them."""
    return Margins(left=width_of(labels) + 0.15, right=0.3)


def width_of(texts: Sequence[str], size: float = 9) -> float:
    """Return the inches that the widest of ``texts`` needs at most, in letters of ``size`` points."""
    fine, coarser = 720, 1.04  # letters are set a little wider where there are fewer dots
    renderer: Any = RendererAgg(1, 1, fine)  # type: ignore[no-untyped-call]
    font = FontProperties(size=size)
    widths = [renderer.get_text_width_height_descent(text, font, False)[0] for text in texts]
    return coarser / fine * max(widths, default=0.0)


def draw_picture(axes: Axes, picture: NDArray[np.uint8]) -> None:
    """Show RGB pixels (h, w, 3)."""
    axes.imshow(picture, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, linewidth=0.4)  # a white mask needs an edge on white paper


def draw_curves(
    axes: Axes, kind: Kind, lines: Sequence[tuple[int, Line]], limit: float | None = None
) -> None:
    """Draw numbered curves of one kind; the number decides colour and dashes, ``limit`` where x ends."""
    for index, line in lines:
        pattern = tuple(map(float, dashes(index).split()))
        axes.plot(
            line.x,
            line.y,
            color=colour(index),
            linewidth=1.5,
            linestyle=(0, pattern) if pattern else "-",
            drawstyle="steps-pre" if line.steps else "default",
            label=f" {line.label}",  # a leading underscore would hide it
        )
    if kind == "roc":
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=":")
    axes.set(xlim=(0, limit or 1), ylim=(0, 1.02), xlabel=AXES[kind][0], ylabel=AXES[kind][1])


def histogram_svg(normal: Sequence[float], anomalous: Sequence[float]) -> str:
    """Return how image scores are spread as an SVG element: normal images filled, anomalous ones outlined.

    Heights are shares of each kind.  It is written out, because matplotlib takes a tenth of a second for
    one and a report may have thousands.
    """
    width, height, left, right, top, bottom = 259, 158, 40, 253, 8, 122
    values = np.array([*normal, *anomalous], np.float64)
    edges = np.histogram_bin_edges(values, bins=min(40, 6 + int(values.size**0.5)))
    shares = [np.histogram(scores, edges)[0] / max(len(scores), 1) for scores in (normal, anomalous)]
    low, high, most = float(edges[0]), float(edges[-1]), 1.05 * float(max(map(max, shares)))
    x = left + (right - left) * (edges - low) / (high - low)

    def y(share: float) -> float:
        return bottom - (bottom - top) * share / most

    def outline(heights: NDArray[np.float64]) -> str:
        steps = "".join(f"V{y(share):.1f}H{end:.1f}" for share, end in zip(heights, x[1:], strict=True))
        return f"M{left} {bottom}{steps}V{bottom}"

    across = [tick for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    up = [tick for tick in MaxNLocator(4).tick_values(0, most) if 0 <= tick <= most]
    marks = [(left + (right - left) * (tick - low) / (high - low), tick) for tick in across]
    texts = [f'<text x="{place:.1f}" y="{bottom + 14}">{tick:.4g}</text>' for place, tick in marks]
    texts += [f'<text x="{left - 5}" y="{y(t) + 3:.1f}" text-anchor="end">{t:.2g}</text>' for t in up]
    texts += [f'<text x="{(left + right) / 2}" y="{height - 6}">image score</text>']
    middle = (top + bottom) / 2
    texts += [f'<text x="9" y="{middle}" transform="rotate(-90 9 {middle})">share of images</text>']
    lines = f"M{left} {top}V{bottom}H{right}" + "".join(f"M{place:.1f} {bottom}v3" for place, _ in marks)
    lines += "".join(f"M{left} {y(tick):.1f}h-3" for tick in up)
    return (
        f'<svg aria-hidden="true" focusable="false" width="{width}pt" height="{height}pt" '
        f'viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">'
        f'<path d="{outline(shares[0])}" fill="var(--series-0)" fill-opacity="0.45"/>'
        f'<path d="{outline(shares[1])}" fill="none" stroke="var(--series-1)" stroke-width="1.6"/>'
        f'<path d="{lines}" fill="none" stroke="currentColor" stroke-width="0.8"/>'
        f'<g font-size="9" fill="currentColor" text-anchor="middle">{"".join(texts)}</g></svg>'
    )


def draw_bars(axes: Axes, bars: Sequence[Bar], metric: str, *, percent: bool = True) -> None:
    """Draw one bar for each method, in percent or as it is, with its interval where there is one."""
    unit = 100 if percent else 1
    for index, bar in enumerate(bars):
        value = unit * bar.value
        axes.barh(index, value, color=colour(0), alpha=0.6, height=0.65)
        inside = value
        if bar.interval:
            low, high = (unit * bound for bound in bar.interval)
            axes.plot([low, high], [index, index], color=INK, linewidth=1.2, marker="|", markersize=7)
            inside = max(value, high)
        text = f"{value:.1f}" if percent else f"{value:.2f}"
        axes.annotate(text, (inside, index), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.invert_yaxis()
    if percent:
        axes.set(xlim=(0, 110), xlabel=f"{metric}, percent")
        axes.set_xticks(range(0, 101, 20))
    else:
        axes.set(xlim=(0, 1.2 * max(bar.value for bar in bars)), xlabel=f"{metric}, lower is better")


def add_legend(figure: Figure, axes: Axes) -> None:
    """Put the names of the lines of ``axes`` below a figure, which grows by their height."""
    handles, labels = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    entry = width_of(labels) + 0.6  # with its line and the space around it
    columns = max(1, min(len(labels), 4, int(width / entry)))
    more = 0.12 + 0.19 * -(-len(labels) // columns)
    figure.set_size_inches(width, height + more)
    for each in figure.axes:
        x, y, across, up = each.get_position().bounds
        each.set_position((x, (y * height + more) / (height + more), across, up * height / (height + more)))
    size = 9 * min(1.0, width / entry)
    figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False, fontsize=size)


def to_svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element in the colours of the page around it.

    ``name``, unique in its page, keeps the ids of several figures apart.
    """
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        none: Any = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=none)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for index, value in enumerate(COLOURS):
        svg = svg.replace(value, f"var(--series-{index})")
    svg = re.sub(r'\bid="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)  # only clip paths and markers are referred to
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PDF, PNG or SVG, by the suffix of ``path``; equal figures give equal bytes.

    Raises:
        UsageError: for another suffix.
        RecordError: if the file cannot be written.
    """
    check_format(path)
    stream = io.BytesIO()
    nothing: dict[str, Any] = {
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        ".svg": {"Date": None, "Creator": None},
        ".png": {"Software": None},
    }[path.suffix.lower()]
    figure.savefig(stream, format=path.suffix[1:].lower(), metadata=nothing)
    write_atomic(path, stream.getvalue())


def check_format(path: Path) -> None:
    """Refuse a file name whose suffix is no format of figures.

    Raises:
        UsageError: naming the formats there are.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path}: figures are written as {', '.join(FORMATS)}; give --out such a name")
