"""Figures for papers from the records of one board: examples with maps, curves and bars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..boards import MEAN, Board, Cell, Row, boards, metric_title, nothing_there
from ..errors import RecordError, UsageError, suggest
from ..metrics import AVERAGE_RANK, DERIVED
from ..records import Record, find_records
from ..scoring import NOBODY, UserMethods
from . import plots
from .category import (
    CURVES,
    Entry,
    ImagesOf,
    curves_of,
    enter,
    open_replays,
    pro_limit,
    ranked,
    read_images,
    title,
)
from .galleries import Standing
from .overlay import outlined, with_map
from .replay import CategoryMaps, Replay

LONGEST = 400
"""Longer side in pixels of the pictures of a qualitative figure."""

Pixels = NDArray[np.uint8]


def choose(
    paths: Sequence[Path],
    dataset: str | None = None,
    protocol: str | None = None,
    methods: Sequence[str] | None = None,
    *,
    metrics: Sequence[str] | None = None,
    by: str | None = None,
    intervals: bool = False,
    users: UserMethods = NOBODY,
    say: Callable[[str], None] = lambda line: None,
) -> Board:
    """Return the one board of the records at or below ``paths`` that a figure is made of.

    ``protocol`` is an id, with or without its version; ``methods`` (ids, or labels of the board) choose
    rows and their order; ``metrics``, ``by``, ``intervals`` and ``users`` are those of
    :func:`zsadbench.boards.boards`; ``say`` is told which records are left out.

    Raises:
        UsageError: if the choice leaves several boards, or names what is not there.
        RecordError: if there is no record.
    """
    records, problems = find_records(paths)
    for problem in problems:
        say(f"left out: {problem}")
    if not records:
        raise RecordError(nothing_there(paths))
    if dataset is not None:
        records = _only(records, "dataset", dataset, {record.dataset: record for record in records})
    if protocol is not None:
        records = _only(records, "protocol", protocol, {r.protocol_label: r for r in records})
    found = boards(records, metrics=metrics, by=by, published=False, intervals=intervals, users=users)
    if len(found) > 1:
        names = "; ".join(str(board.group) for board in found)
        raise UsageError(f"these results hold several boards ({names}); choose with --dataset and --protocol")
    board = found[0]
    return board.of(_chosen(board.rows, methods)) if methods else board


def _only(records: Sequence[Record], what: str, name: str, known: Iterable[str]) -> list[Record]:
    names = [
        (r, (r.dataset,) if what == "dataset" else (r.protocol_label, r.protocol["id"])) for r in records
    ]
    found = [record for record, its in names if name in its]
    if not found:
        raise UsageError(f"no record of {what} '{name}'.{suggest(name, known)}")
    return found


def _chosen(rows: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    chosen: list[Row] = []
    for name in methods:
        fitting = [row for row in rows if name in (row.label, row.record.method, row.record.method_id)]
        if not fitting:
            raise UsageError(f"no method '{name}' on this board.{suggest(name, [row.label for row in rows])}")
        chosen += [row for row in fitting if row not in chosen]
    return chosen


def qualitative_figure(
    board: Board,
    out: Path,
    *,
    keys: Sequence[str] = (),
    category: str | None = None,
    rows: int = 6,
    data: Path | None = None,
    users: UserMethods = NOBODY,
) -> None:
    """Write a figure of images in rows: the image, its mask and the map of every method in columns.

    Without ``keys`` the images are anomalous ones spread evenly from the best ranked to the worst, so
    that nobody picks.  The outline on the maps is the ground truth.

    Raises:
        UsageError: for an unknown key or category, or another file format.
        ZsadError: if maps or images of a method cannot be had.
    """
    plots.check_format(out)
    replays = open_replays(board.records, data, users)
    categories = [known_category(board, category)] if category else _categories(board)
    images = read_images(board.rows)
    entered = {name: _enter(board, name, replays, images, pixels=False) for name in categories}
    shown = _by_key(entered, keys) if keys else _spread(entered, rows)
    with plots.style():
        headings = ["image", "mask", *(entry.label for entry in shown[0][0])]
        figure, grid = plots.panels(len(shown), headings)
        for line, (entries, key) in zip(grid, shown, strict=True):
            for axes, picture in zip(line, _pictures(entries, key), strict=True):
                plots.draw_picture(axes, picture)
        plots.save(figure, out)


def _pictures(entries: Sequence[Entry], key: str) -> list[Pixels]:
    """Return an image, its mask, and the map of each method."""
    photo, mask = _maps(entries[0]).picture(key, LONGEST)
    empty = np.zeros((photo.height, photo.width), np.bool_)
    truth = np.where(empty if mask is None else mask, 255, 0).astype(np.uint8)
    found = [np.asarray(photo), np.repeat(truth[..., None], 3, axis=2)]
    for entry in entries:
        values = _maps(entry).map(key, (photo.height, photo.width))
        drawn = outlined(with_map(photo, values, entry.scale), mask)
        found.append(np.asarray(drawn))
    return found


def _enter(
    board: Board, category: str, replays: Mapping[Path, Replay | str], images: ImagesOf, *, pixels: bool
) -> list[Entry]:
    """Return the methods of a board in one category; a figure without one of them is refused."""
    entries = enter(board.rows, category, replays, images, pixels=pixels)
    for entry in entries:
        if "images" in entry.reasons:
            raise RecordError(f"{entry.label}: {entry.reasons['images']}")
    return entries


def _maps(entry: Entry) -> CategoryMaps:
    if entry.maps is None:
        raise RecordError(f"{entry.label}: {entry.reasons['maps']}")
    return entry.maps


def _by_key(entered: dict[str, list[Entry]], keys: Sequence[str]) -> list[tuple[list[Entry], str]]:
    places = {image.key: entries for entries in entered.values() for image in ranked(entries)}
    for key in keys:
        if key not in places:
            raise UsageError(f"no image '{key}' that all methods have scored.{suggest(key, places)}")
    return [(places[key], key) for key in keys]


def _spread(entered: dict[str, list[Entry]], rows: int) -> list[tuple[list[Entry], str]]:
    """Return ``rows`` images, shared out over the categories."""
    names = list(entered)[:rows]
    found = []
    for place, name in enumerate(names):
        count = rows // len(names) + (place < rows % len(names))
        found += [(entered[name], image.key) for image in _evenly(ranked(entered[name]), count)]
    if not found:
        raise RecordError("no image was scored by all methods, so there is nothing to show")
    return found


def _evenly(images: Sequence[Standing], count: int) -> list[Standing]:
    wanted = [image for image in images if image.anomalous] or list(images)
    ordered = sorted(wanted, key=lambda image: (-sum(image.ranks), image.key))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def curves_figure(
    board: Board,
    out: Path,
    *,
    category: str | None = None,
    kinds: Sequence[str] = (),
    data: Path | None = None,
    users: UserMethods = NOBODY,
) -> None:
    """Write the curves of all methods in one category, one plot for each of ``kinds``, a legend below.

    Raises:
        UsageError: for an unknown kind or category, or another file format.
        ZsadError: if a curve that was asked for cannot be had.
    """
    plots.check_format(out)
    known = {f"{level}-{kind}": (level, kind) for level, kind in CURVES}
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"unknown curve '{kind}'.{suggest(kind, known)}")
    name = known_category(board, category)
    pixels = any(kind.startswith("pixel") for kind in kinds) or not kinds
    replays = open_replays(board.records, data, users)
    entries = _enter(board, name, replays, read_images(board.rows), pixels=pixels)
    for entry in entries:
        if "pixels" in entry.reasons and any(kind.startswith("pixel") for kind in kinds):
            raise RecordError(f"{entry.label}: {entry.reasons['pixels']}")
    drawn = [known[kind] for kind in kinds] or [place for place in CURVES if curves_of(entries, *place)]
    with plots.style():
        figure, panels = plots.sheet(3.2, 3.1, len(drawn), 5, plots.Margins(top=0.3))
        for axes, (level, kind) in zip(panels, drawn, strict=True):
            curves = curves_of(entries, level, kind)
            lines = [(index, plots.line_of(label, curve, kind, 1000)) for index, label, curve in curves]
            plots.draw_curves(axes, kind, lines, pro_limit(entries) if kind == "pro" else None)
            axes.set_title(title(level, kind))
        plots.add_legend(figure, panels[0])
        plots.save(figure, out)


def bars_figure(board: Board, out: Path, *, metrics: Sequence[str] = (), category: str | None = None) -> None:
    """Write one bar per method for each metric: the mean over categories, or one category.

    ``category`` needs a board by category.  Lines over the bars are the 95 % intervals of the board, or
    where it has none the standard deviation over seeds.

    Raises:
        UsageError: for an unknown metric or category, or another file format.
        RecordError: if no method has a value.
    """
    plots.check_format(out)
    present = sorted({*DERIVED, *(metric for record in board.records for metric in record.metrics)})
    for metric in metrics:
        if metric not in present:
            raise UsageError(f"no record has the metric '{metric}'.{suggest(metric, present)}")
    place = known_category(board, category) if category else MEAN
    rows = [row for row in board.rows if row.category == place]
    shown = [(m, bars) for m in metrics or board.shown if (bars := _bars(rows, m))]
    if not shown:
        raise RecordError("no method of this board has a value to draw")
    with plots.style():
        margins = plots.bar_margins([bar.label for _, bars in shown for bar in bars])
        size = max(3.6, margins.left + 2.7), 0.9 + 0.32 * len(rows)
        figure, panels = plots.sheet(*size, len(shown), margins=margins)
        for axes, (metric, bars) in zip(panels, shown, strict=True):
            plots.draw_bars(axes, bars, metric_title(metric), percent=metric != AVERAGE_RANK)
        plots.save(figure, out)


def _bars(rows: Sequence[Row], metric: str) -> list[plots.Bar]:
    cells = [(row.label, row.cell(metric)) for row in rows]
    return [plots.Bar(label, cell.value, _bounds(cell)) for label, cell in cells if cell.value is not None]


def _bounds(cell: Cell) -> tuple[float, float] | None:
    if cell.interval:
        return cell.interval.low, cell.interval.high
    if cell.value is None or not cell.spread:
        return None
    return max(0.0, cell.value - cell.spread), min(1.0, cell.value + cell.spread)


def known_category(board: Board, name: str | None) -> str:
    """Return the category of a name; the only one where no name is given.

    Raises:
        UsageError: if there is no such category, or several and none was named.
    """
    categories = _categories(board)
    if name is None and len(categories) > 1:
        raise UsageError(f"choose one with --category: {', '.join(categories)}")
    if name is not None and name not in categories:
        raise UsageError(f"no category '{name}' on this board.{suggest(name, categories)}")
    return name or categories[0]


def _categories(board: Board) -> list[str]:
    return list(dict.fromkeys(name for record in board.records for name in record.categories))
