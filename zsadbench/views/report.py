"""A static site from records: boards, a page per dataset, category and record; opens from a file.

Every number is the record's own; curves, maps and pictures are made again from the evidence and the
images.  Where those are gone, the page says so and shows the rest.  No time of building is written, so
equal records give equal files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..boards import Board, boards, nothing_there, to_csv
from ..errors import RecordError
from ..records import Record, find_records
from ..scoring import NOBODY, UserMethods
from . import plots, provenance
from .category import Entry, curve_plots, enter, halls, histogram_plots, open_replays, ranked, read_images
from .overlay import ramp
from .site import Names, Site

GALLERY = 8
"""Images of a gallery where nothing else is asked for."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Summary:
    """What was written, and what could not be read or shown."""

    index: Path
    files: int
    bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """One board with the names of its pages."""

    board: Board
    detailed: Board
    dataset_page: str
    anchor: str
    categories: Mapping[str, str] = field(default_factory=dict)
    """Category -> its page."""


def build_report(
    paths: Sequence[Path],
    out: Path,
    *,
    data: Path | None = None,
    gallery: int = GALLERY,
    intervals: bool = False,
    users: UserMethods = NOBODY,
    inductive_only: bool = False,
    say: Say = lambda line: None,
) -> Summary:
    """Write the report of all records at or below ``paths`` into the folder ``out``.

    ``data`` is where the datasets lie now, by default where they lay when they were observed;
    ``gallery`` is the number of images of each gallery; ``intervals`` adds 95 % intervals and ranks to
    the boards, which takes longer; ``users`` are the users' methods whose code may render maps;
    ``inductive_only`` leaves out rows whose numbers need other test images.

    Raises:
        RecordError: if there is no record, or a file cannot be written.
        UsageError: if ``out`` holds something that is not a report.
    """
    records, unreadable = find_records(paths)
    if not records:
        raise RecordError(nothing_there(paths))
    site = Site(out)
    made = partial(boards, records, intervals=intervals, users=users, inductive_only=inductive_only, say=say)
    means, details = made(), made(by="category")
    tables = list(zip(means, details, strict=True))
    return _Builder(site, tables, _relative(unreadable, paths), data, users, gallery, say).build()


class _Builder:
    """Holds what all pages share while a report is written."""

    def __init__(
        self,
        site: Site,
        tables: Sequence[tuple[Board, Board]],
        unreadable: Sequence[str],
        data: Path | None,
        users: UserMethods,
        gallery: int,
        say: Say,
    ) -> None:
        self.site, self.data, self.users, self.gallery, self.say = site, data, users, gallery, say
        self.names = Names()
        self.problems = list(unreadable)
        self.unreadable = tuple(unreadable)
        self.parts = self._parts(tables)
        self.record_pages = {
            record.path: self.names.new("record", record.method, record.dataset, record.digest[:12])
            for part in self.parts
            for record in part.board.records
        }

    def build(self) -> Summary:
        for part in self.parts:
            self.say(f"{part.board.group}")
            replays = open_replays(part.board.records, self.data, self.users)
            images = read_images(part.board.rows)
            for category, page in part.categories.items():
                self._category(part, category, page, enter(part.board.rows, category, replays, images))
        for page in dict.fromkeys(part.dataset_page for part in self.parts):
            own = [part for part in self.parts if part.dataset_page == page]
            self._page(page, "dataset.html", {"parts": own, "dataset": own[0].board.group.dataset})
        for part in self.parts:
            for record in part.board.records:
                self._record(record, part.dataset_page)
        self.site.write("leaderboard.csv", to_csv([part.board for part in self.parts]).encode())
        self._page("index", "index.html", {"parts": self.parts, "unreadable": self.unreadable})
        problems = tuple(dict.fromkeys(self.problems))
        return Summary(self.site.folder / "index.html", self.site.files, self.site.bytes, problems)

    def _parts(self, tables: Sequence[tuple[Board, Board]]) -> list[_Part]:
        pages: dict[str, str] = {}
        parts = []
        for board, detailed in tables:
            name = board.group.dataset
            if name not in pages:
                pages[name] = self.names.new(name)
            anchor = self.names.new(name, board.records[0].protocol_label, "board")
            categories = {
                category: self.names.new(name, category, board.records[0].protocol_label)
                for category in dict.fromkeys(row.category for row in detailed.rows)
            }
            parts.append(_Part(board, detailed, pages[name], anchor, categories))
        return parts

    def _category(self, part: _Part, category: str, page: str, entered: Sequence[Entry]) -> None:
        self.say(f"  {category}")
        entries = [entry for entry in entered if entry.rows]
        images = ranked(entries)
        reasons = [
            (what, entry.label, why) for entry in entered for what, why in sorted(entry.reasons.items())
        ]
        self.problems += [f"{category}: {label}: {why}" for what, label, why in reasons if what != "pixels"]
        rows = [row for row in part.detailed.rows if row.category == category]
        context = {
            "part": part,
            "category": category,
            "board": replace(part.detailed, rows=tuple(rows)),
            "entries": entries,
            "reasons": reasons,
            "curves": curve_plots(entries, page),
            "histograms": histogram_plots(entries),
            "halls": halls(entries, images, self.gallery, f"images/{page}", self.site.write),
            "images": images,
        }
        self._page(page, "category.html", context)

    def _record(self, record: Record, page: str) -> None:
        context = {
            "record": record,
            "dataset_page": page,
            "sections": provenance.sections(record),
            "undefined": provenance.undefined(record),
            "warnings": provenance.warnings_of(record),
            "left_out": provenance.left_out(record),
        }
        self._page(self.record_pages[record.path], "record.html", context)

    def _page(self, name: str, template: str, context: Mapping[str, Any]) -> None:
        shared = {
            "record_pages": self.record_pages,
            "colour_count": len(plots.COLOURS),
            "ramp": ramp(),
            "dashes": plots.dashes,
            "datasets": {part.board.group.dataset: part.dataset_page for part in self.parts},
        }
        self.site.page(name, template, {**shared, **context})


def _relative(problems: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Return messages without the folders above the results, which are the same on every machine."""
    for path in paths:
        problems = [problem.replace(f"{path.resolve()}/", "") for problem in problems]
    return list(problems)
