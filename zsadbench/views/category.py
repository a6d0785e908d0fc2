"""What a report shows of one category: its curves, histograms and galleries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from ..boards import Row, percent
from ..errors import ZsadError
from ..images import default_workers
from ..metrics import Curve, image_curve
from ..records import ImageRow, Record
from ..scoring import NOBODY, Map, UserMethods
from . import plots
from .galleries import Gallery, Standing, galleries, standings
from .overlay import LONGEST, Scale, encoded, outlined, with_map
from .replay import CategoryMaps, Mask, PixelCurve, Replay

Write = Callable[[str, bytes], None]
CURVES: tuple[tuple[str, plots.Kind], ...] = (
    ("image", "roc"),
    ("image", "pr"),
    ("pixel", "roc"),
    ("pixel", "pr"),
    ("pixel", "pro"),
)
"""Every plot of curves: level and kind."""


@dataclass(frozen=True)
class Entry:
    """A method of a board in one category; what could not be had is None and ``reasons`` say why."""

    label: str
    record: Record
    rows: Sequence[ImageRow]
    maps: CategoryMaps | None = None
    pixels: PixelCurve | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    """``"images"``, ``"maps"`` or ``"pixels"`` -> why there are none."""

    @property
    def image_curve(self) -> Curve:
        """The curve over image scores."""
        scored = [row for row in self.rows if row.image_score is not None]
        return image_curve([row.image_score for row in scored], [row.anomalous for row in scored])

    @property
    def scale(self) -> Scale:
        """Lowest and highest map value of the category: all its maps share one range of colours."""
        lows = [row.map_min for row in self.rows if row.map_min is not None]
        highs = [row.map_max for row in self.rows if row.map_max is not None]
        return (min(lows), max(highs)) if lows and highs else (0.0, 1.0)


@dataclass(frozen=True)
class Plot:
    """A drawing with a title and what it shows in words."""

    title: str
    summary: str
    svg: Markup


@dataclass(frozen=True)
class Tile:
    """A picture of a gallery, or ``missing``: why there is none."""

    title: str
    lines: tuple[str, ...]
    alt: str = ""
    file: str = ""
    size: tuple[int, int] = (0, 0)
    missing: str = ""


@dataclass(frozen=True)
class Exhibit:
    """One image of a gallery with all its tiles."""

    key: str
    about: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Hall:
    """A gallery ready to be shown."""

    title: str
    rule: str
    exhibits: tuple[Exhibit, ...]


ImagesOf = Mapping[Path, Mapping[str, Sequence[ImageRow]] | str]
"""The images of each record by category, by the record's path, or why there are none."""


def read_images(rows: Iterable[Row]) -> ImagesOf:
    """Return the images of the records of a board, each table read once."""
    found: dict[Path, dict[str, list[ImageRow]] | str] = {}
    for record in (row.record for row in rows):
        held: dict[str, list[ImageRow]] = {}
        try:
            for image in record.images():
                held.setdefault(image.category, []).append(image)
            found[record.path] = held
        except ZsadError as error:
            found[record.path] = str(error)
    return found


def enter(
    rows: Sequence[Row],
    category: str,
    replays: Mapping[Path, Replay | str],
    images: ImagesOf,
    *,
    pixels: bool = True,
) -> list[Entry]:
    """Return the methods of a board in one category, with maps and pixel curves where they can be had."""
    held = [row for row in rows if category in row.record.categories]
    with ThreadPoolExecutor(default_workers(), thread_name_prefix="zsad-report") as pool:
        return list(
            pool.map(
                lambda row: _entry(row, category, replays[row.record.path], images[row.record.path], pixels),
                held,
            )
        )


def open_replays(
    records: Iterable[Record], data: Path | None, users: UserMethods = NOBODY
) -> dict[Path, Replay | str]:
    """Return what renders the maps of each record, by its path, or why nothing does."""
    found: dict[Path, Replay | str] = {}
    for record in records:
        try:
            found[record.path] = Replay(record, data, users)
        except ZsadError as error:
            found[record.path] = str(error)
    return found


def _entry(
    row: Row,
    category: str,
    replay: Replay | str,
    images: Mapping[str, Sequence[ImageRow]] | str,
    pixels: bool,
) -> Entry:
    record, label = row.record, _label(row)
    reasons = {"images": images} if isinstance(images, str) else {}
    rows = () if isinstance(images, str) else images.get(category, ())
    if isinstance(replay, str):
        return Entry(label, record, rows, reasons=reasons | {"maps": replay, "pixels": replay})
    try:
        maps = replay.category(category)
    except ZsadError as error:
        return Entry(label, record, rows, reasons=reasons | dict.fromkeys(("maps", "pixels"), str(error)))
    if not pixels:
        return Entry(label, record, rows, maps, None, reasons)
    try:
        return Entry(label, record, rows, maps, maps.pixel_curve(), reasons)
    except ZsadError as error:
        return Entry(label, record, rows, maps, None, reasons | {"pixels": str(error)})


def _label(row: Row) -> str:
    """Return the label of what is drawn: of several seeds the first."""
    several = len(row.records)
    return row.label.replace(f"({several} seeds)", f"(seed {row.record.seed})") if several > 1 else row.label


def curve_plots(entries: Sequence[Entry], name: str) -> list[Plot]:
    """Return the curves of a category, all methods in one plot each: image ROC and PR, pixel ROC, PR, PRO."""
    return [plot for level, kind in CURVES if (plot := _curve_plot(entries, level, kind, name))]


def curves_of(entries: Sequence[Entry], level: str, kind: plots.Kind) -> list[tuple[int, str, Curve]]:
    """Return the curves that can be drawn as number of the entry, label and curve."""
    if level == "image":
        all_curves = [(i, entry.label, entry.image_curve) for i, entry in enumerate(entries) if entry.rows]
    else:
        all_curves = [(i, e.label, e.pixels.curve) for i, e in enumerate(entries) if e.pixels]
    return [
        (index, label, curve)
        for index, label, curve in all_curves
        if curve.hits.size and (kind == "pr" or curve.normals)
    ]


def pro_limit(entries: Sequence[Entry]) -> float:
    """Return the false-positive rate up to which a protocol takes AUPRO."""
    limits = entries[0].record.protocol.get("aupro_limits") if entries else None
    return float(limits[0]) if limits else 0.3


def _curve_plot(entries: Sequence[Entry], level: str, kind: plots.Kind, name: str) -> Plot | None:
    curves, limit = curves_of(entries, level, kind), pro_limit(entries)
    if not curves:
        return None
    lines = [(index, plots.line_of(label, curve, kind)) for index, label, curve in curves]
    with plots.style():
        figure, (axes,) = plots.sheet(3.6, 3.0)
        plots.draw_curves(axes, kind, lines, limit if kind == "pro" else None)
        svg = plots.to_svg(figure, f"{name}-{level}-{kind}")
    unit = {"roc": "AUROC", "pr": "AP", "pro": f"AUPRO at {limit:g}"}[kind]
    areas = [(label, _area(curve, kind, limit)) for _, label, curve in curves]
    text = "; ".join(f"{label} {'n/a' if area is None else percent(area)}" for label, area in areas)
    return Plot(title(level, kind), f"{unit} in percent: {text}.", Markup(svg))


def title(level: str, kind: plots.Kind) -> str:
    """Return the name of a plot for people."""
    return f"{level.capitalize()} {plots.NAMES[kind]}"


def _area(curve: Curve, kind: plots.Kind, limit: float) -> float | None:
    if kind == "pro":
        return curve.aupro(limit)
    return curve.auroc if kind == "roc" else curve.ap


def histogram_plots(entries: Sequence[Entry]) -> list[Plot]:
    """Return one histogram of image scores for each method, normal against anomalous images."""
    found = []
    for entry in entries:
        scored = [row for row in entry.rows if row.image_score is not None]
        if not scored:
            continue
        normal, anomalous = (
            [row.image_score for row in scored if row.anomalous is label and row.image_score is not None]
            for label in (False, True)
        )
        svg = plots.histogram_svg(normal, anomalous)
        about = [_range("normal", normal), _range("anomalous", anomalous)]
        found.append(Plot(entry.label, f"{'; '.join(about)}.", Markup(svg)))
    return found


def _range(label: str, scores: Sequence[float]) -> str:
    if not scores:
        return f"no {label} image"
    middle = sorted(scores)[len(scores) // 2]
    return f"{len(scores)} {label}, median {middle:.4g}, from {min(scores):.4g} to {max(scores):.4g}"


def ranked(entries: Sequence[Entry]) -> list[Standing]:
    """Return the images of a category that every method scored."""
    return standings([entry.rows for entry in entries])


def halls(
    entries: Sequence[Entry], images: Sequence[Standing], count: int, folder: str, write: Write
) -> list[Hall]:
    """Return the galleries of a category; their pictures are written below ``folder``, each once."""
    numbers = {image.key: number for number, image in enumerate(images)}
    shown: dict[str, Exhibit] = {}

    def exhibit(image: Standing) -> Exhibit:
        if image.key not in shown:
            stem = f"{folder}/{numbers[image.key]:05d}"
            shown[image.key] = _exhibit(entries, image, stem, write)
        return shown[image.key]

    def hall(gallery: Gallery) -> Hall:
        return Hall(gallery.title, gallery.rule, tuple(map(exhibit, gallery.images)))

    return [hall(gallery) for gallery in galleries(images, count)]


def _exhibit(entries: Sequence[Entry], image: Standing, stem: str, write: Write) -> Exhibit:
    photo, mask, problem = _photo(entries, image.key)
    label = "anomalous" if image.anomalous else "normal"
    species = {e.maps.samples[image.key].specie for e in entries if e.maps and image.key in e.maps.samples}
    kind = ", ".join(sorted(filter(None, species)))
    tiles = [_tile("Image", (), f"{image.key}, {label}", outlined(photo, mask), stem, write)] if photo else []
    if problem:
        tiles.append(Tile("Image", (), missing=problem))
    for index, entry in enumerate(entries):
        lines = _caption(entry, image, index)
        values = _values(entry, image.key, photo)
        if photo is None or isinstance(values, str):
            why = values if isinstance(values, str) else "no picture to lay the map over"
            tiles.append(Tile(entry.label, lines, missing=why))
            continue
        drawn = outlined(with_map(photo, values, entry.scale), mask)
        alt = f"Anomaly map of {entry.label} over {image.key}"
        tiles.append(_tile(entry.label, lines, alt, drawn, f"{stem}-{index}", write))
    return Exhibit(image.key, f"{label}, {kind}" if kind and kind != label else label, tuple(tiles))


def _photo(entries: Sequence[Entry], key: str) -> tuple[Image.Image | None, Mask | None, str]:
    """Return an image and its mask from the first method that has it, or why nobody has."""
    for entry in entries:
        if entry.maps and key in entry.maps.hashes:
            try:
                return *entry.maps.picture(key, LONGEST), ""
            except ZsadError as error:
                return None, None, str(error)
    return None, None, next((entry.reasons["maps"] for entry in entries if "maps" in entry.reasons), "")


def _values(entry: Entry, key: str, photo: Image.Image | None) -> Map | str:
    """Return the map of an image, or why there is none."""
    if entry.maps is None:
        return entry.reasons["maps"]
    if key not in entry.maps.hashes:
        return "no evidence of this image"
    size = (photo.height, photo.width) if photo else (LONGEST, LONGEST)
    try:
        return entry.maps.map(key, size)
    except ZsadError as error:  # a user's code
        return str(error)


def _caption(entry: Entry, image: Standing, index: int) -> tuple[str, ...]:
    lines = [f"score {image.scores[index]:.4g}", f"rank {percent(image.ranks[index])} %"]
    found = entry.pixels.found.get(image.key) if entry.pixels else None
    return (*lines, f"found {percent(found)} %") if found is not None else tuple(lines)


def _tile(
    title: str, lines: tuple[str, ...], alt: str, picture: Image.Image, stem: str, write: Write
) -> Tile:
    write(f"{stem}.webp", encoded(picture))
    return Tile(title, lines, alt, f"{stem}.webp", picture.size)
