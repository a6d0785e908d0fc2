"""A static site from records: boards, a page per dataset, category and record; opens from a file.

Every number is the record's own; curves, maps and pictures are made again from the evidence and the
images.  Where those are gone, the page says so and shows the rest.  No time of building is written, so
equal records give equal files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..boards import Board, boards, nothing_there, to_csv
from ..errors import RecordError
from ..method import method_cards
from ..records import Record, find_records
from ..scoring import NOBODY, UserMethods
from . import plots
from .category import Entry, curve_plots, enter, halls, histogram_plots, open_replays, ranked, read_images
from .overlay import ramp
from .site import Names, Site

GALLERY = 8
"""Images of a gallery where nothing else is asked for."""

Say = Callable[[str], None]
Facts = list[tuple[str, str]]

_OF_THIS_MACHINE = ("root", "spec")
"""Keys of a dataset that hold folders of the machine it lay on."""


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
    metrics: Sequence[str] | None = None,
    intervals: bool = False,
    users: UserMethods = NOBODY,
    inductive_only: bool = False,
    say: Say = lambda line: None,
) -> Summary:
    """Write the report of all records at or below ``paths`` into the folder ``out``.

    ``data`` is where the datasets lie now, by default where they lay when they were observed;
    ``gallery`` is the number of images of each gallery; ``metrics`` are the columns of the boards, as
    :func:`zsadbench.boards.boards` takes them; ``intervals`` adds 95 % intervals and ranks to the boards,
    which takes longer; ``users`` are the users' methods whose code may render maps;
    ``inductive_only`` leaves out rows whose numbers need other test images.

    Raises:
        RecordError: if there is no record, or a file cannot be written.
        UsageError: if ``out`` holds something that is not a report, or for an unknown metric.
    """
    records, unreadable = find_records(paths)
    if not records:
        raise RecordError(nothing_there(paths))
    site = Site(out)
    made = partial(
        boards,
        records,
        metrics=metrics,
        intervals=intervals,
        users=users,
        inductive_only=inductive_only,
        say=say,
    )
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
            "sections": sections(record),
            "undefined": undefined(record),
            "warnings": warnings_of(record),
            "left_out": left_out(record),
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


@dataclass(frozen=True)
class Section:
    """A title and the facts below it."""

    title: str
    facts: Facts


def sections(record: Record) -> list[Section]:
    """Return every fact of a record but its numbers, by theme; empty themes are left out."""
    seen = record.observation
    method = dict(seen["method"])
    parameters = method.pop("parameters", None) or {}
    data = {key: value for key, value in seen["dataset"].items() if key not in _OF_THIS_MACHINE}
    run = {
        key: seen.get(key) for key in ("created", "images_per_second", "peak_memory_mb", "batch_size", "seed")
    }
    towers = seen.get("second_towers") or {}
    spent = dict(seen.get("seconds") or {}) | dict(record.content.get("seconds") or {})
    digests = {
        "record": record.digest,
        "observation": record.observation_digest,
        "samples": data.pop("digest"),
        "contents": data.pop("contents"),
        "backbone weights": (seen["backbone"] or {}).get("sha256"),
        **{f"{field} weights": tower.get("sha256") for field, tower in towers.items()},
        "checkpoint": (seen.get("checkpoint") or {}).get("sha256"),
    }
    found: list[tuple[str, dict[str, Any]]] = [
        ("Method", {key: value for key, value in method.items() if key != "spec"}),
        ("Paper and code", _card_of(record)),
        ("Parameters", parameters),
        ("Backbone", {key: value for key, value in (seen["backbone"] or {}).items() if key != "sha256"}),
        *(
            (f"Second tower ({field})", {key: value for key, value in tower.items() if key != "sha256"})
            for field, tower in towers.items()
        ),
        ("Checkpoint", {k: v for k, v in (seen.get("checkpoint") or {}).items() if k != "sha256"}),
        ("Wordings", seen.get("wordings") or {}),
        ("Dataset", data),
        ("Protocol", dict(record.protocol) | {"metric version": record.content["metric_version"]}),
        ("Digests (SHA-256)", {key: value for key, value in digests.items() if value}),
        ("Environment", seen.get("environment") or {}),
        ("Run", {key: value for key, value in run.items() if value is not None} | {"scored": record.created}),
        ("What it took of the pass", seen["cost"] if isinstance(seen.get("cost"), Mapping) else {}),
        ("Seconds", {key: round(value, 3) for key, value in spent.items()}),
        ("Marks", {str(number): mark for number, mark in enumerate(record.marks, 1)}),
    ]
    return [Section(title, list(flat(facts))) for title, facts in found if facts]


def _card_of(record: Record) -> dict[str, Any]:
    """Return what the method's card says of its origin; nothing for a card of another version."""
    card = method_cards().get(record.method_id)
    if card is None or card.version != record.observation["method"].get("version"):
        return {}
    facts = {"paper": card.paper, "code": card.code, "known deviations": list(card.deviations)}
    return {name: value for name, value in facts.items() if value}


def flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested facts under dotted names."""
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", as_text(value)


def as_text(value: Any) -> str:
    """Return a fact as people write it; lists keep one entry per line."""
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        separator = "\n" if any(isinstance(item, str) and " " in item for item in value) else ", "
        return separator.join(map(as_text, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def undefined(record: Record) -> Facts:
    """Return which numbers a record does not have, and why."""
    return [
        (f"{metric} of {name}", str(reason))
        for name, row in record.categories.items()
        for metric, reason in (row.get("reasons") or {}).items()
    ]


def warnings_of(record: Record) -> list[str]:
    """Return what was noticed when the record was made."""
    return [str(warning) for warning in record.content.get("warnings") or ()]


def left_out(record: Record) -> Facts:
    """Return the images that are not in the numbers, and why."""
    failed = [(str(entry["key"]), str(entry["reason"])) for entry in record.observation.get("failed") or ()]
    skipped = record.observation["dataset"].get("skipped") or ()
    return failed + [(str(key), "left out on request") for key in skipped]
