"""Ours beside what its authors published: is a method reproduced?

A figure is judged where it was made under the same conditions and is the most trusted of its kind; the
others are listed.  What is known to set paper and code apart stands on the method's card.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import RecordError
from ..files import write_atomic
from ..method import method_cards
from ..metrics import METRICS
from ..records import Published, Record, published_figures
from ..text import markdown
from .beside import CHECKPOINT, MEAN, differences
from .gate import read_board

TOLERANCES = {"author-log": 0.5, "paper": 1.0, "board": 0.5}
"""Points that ours may lie from a figure, by where the figure comes from; others are not judged."""

Verdict = Literal["agrees", "differs", "not judged"]
AGREES: Verdict = "agrees"
DIFFERS: Verdict = "differs"
UNJUDGED: Verdict = "not judged"
REPRODUCTION_COLUMNS = (
    "protocol",
    "category",
    "metric",
    "ours",
    "published",
    "kind",
    "difference",
    "allowed",
    "verdict",
    "source",
)
"""What :func:`reproduction_cells` returns."""
_SLACK = 1e-9


@dataclass(frozen=True)
class Line:
    """One value of ours and one published; rates in [0, 1], ``difference`` and ``tolerance`` in points."""

    protocol: str
    category: str
    metric: str
    ours: float | None
    published: float
    kind: str
    source: str
    difference: float | None
    tolerance: float | None
    verdict: Verdict
    why: str = ""
    """Why it is not judged."""


@dataclass(frozen=True)
class Reproduction:
    """Every figure of a method on a dataset beside ours, and what is known to set them apart."""

    method: str
    dataset: str
    lines: tuple[Line, ...]
    reasons: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    """Digests of the records that ours come from."""
    command: tuple[str, ...] = field(default=())
    """The words of ``zsad run`` that make them again."""

    @property
    def verdict(self) -> Verdict:
        """Agrees if every judged line does; not judged where no figure could be."""
        judged = {line.verdict for line in self.lines} - {UNJUDGED}
        return DIFFERS if DIFFERS in judged else AGREES if judged else UNJUDGED

    @property
    def summary(self) -> str:
        """The verdict in one line."""
        judged = [line for line in self.lines if line.verdict != UNJUDGED]
        off = [line for line in judged if line.verdict == DIFFERS]
        if not judged:
            return f"{self.method} on {self.dataset}: not judged, no figure was made under these conditions"
        largest = max(abs(line.difference or 0.0) for line in judged)
        found = f"{len(off)} of {len(judged)} figures differ" if off else f"all {len(judged)} figures agree"
        return (
            f"{self.method} on {self.dataset}: {self.verdict}; {found}, the largest by {largest:.2f} points"
        )


def reproduction(records: Sequence[Record], figures: Iterable[Published] | None = None) -> Reproduction:
    """Return what ``records`` of one method on one dataset, one per protocol, make of what is published.

    ``figures`` stand in place of the published ones, such as those of a committed board.
    """
    lines = [line for record in records for line in _lines(record, figures)]
    first = records[0]
    words = tuple(str(word) for word in first.content.get("command") or ())
    return Reproduction(
        first.method,
        first.dataset,
        tuple(lines),
        tuple(_reasons(records, lines)),
        tuple(record.digest for record in records),
        words,
    )


def board_figures(path: Path) -> list[Published]:
    """Return the values of a ``leaderboard.csv`` under ``reference`` as figures of kind ``board``.

    Raises:
        RecordError: if the file is missing, no board, or one without a row of that protocol.
    """
    lines = [line for line in read_board(path) if line["protocol"] == "reference"]
    if not lines:
        raise RecordError(
            f"{path}: has no row under the protocol 'reference', under which methods are run here."
        )
    return [
        Published(
            line["method"],
            line["variant"],
            line["dataset"],
            line["category"],
            metric,
            line[metric],
            "board",
            line["backbone"],
            "",
            path.name,
            "",
        )
        for line in lines
        for metric in METRICS
        if line.get(metric) is not None
    ]


def _lines(record: Record, figures: Iterable[Published] | None) -> list[Line]:
    metrics = [name for name in METRICS if not record.legacy or name == "pixel_aupro"]
    found: list[Line] = []
    for category in (MEAN, *record.categories):
        judged: set[str] = set()
        for figure in _figures(record, category, metrics, figures):
            line = _line(record, category, figure, figure.metric in judged)
            judged |= {figure.metric} if line.verdict != UNJUDGED else set()
            found.append(line)
    return found


def _figures(
    record: Record, category: str, metrics: Sequence[str], figures: Iterable[Published] | None
) -> list[Published]:
    """Return the figures of a record's method in a category, the most trusted first."""
    if figures is None:
        return published_figures(
            record.method_id, record.variant, record.dataset, category, metrics, record.legacy
        )
    place = (record.method_id, record.variant, record.dataset, category, record.backbone)
    return [
        one
        for one in figures
        if (one.method, one.variant, one.dataset, one.category, one.backbone) == place
        and one.metric in metrics
        and not record.legacy
    ]


def _line(record: Record, category: str, figure: Published, judged: bool) -> Line:
    mean = record.mean(figure.metric)
    ours = mean.value if category == MEAN else record.value(category, figure.metric)
    tolerance, why = TOLERANCES.get(figure.kind), ""
    apart = () if figure.kind == "board" else differences(record, figure)
    if ours is None:
        why = "ours is undefined"
    elif tolerance is None:
        why = f"{figure.kind} figures are not judged"
    elif marks := [mark for mark in apart if mark != CHECKPOINT]:
        why = ", ".join(marks)
    elif category == MEAN and mean.used < mean.total:
        why = f"ours is a mean over {mean.used} of {mean.total} categories"
    elif judged:
        why = "a more trusted figure is judged"
    points = None if ours is None else 100 * (ours - figure.value)
    near = points is not None and tolerance is not None and abs(points) <= tolerance + _SLACK
    return Line(
        record.protocol_label,
        category,
        figure.metric,
        ours,
        figure.value,
        figure.kind,
        figure.about,
        points,
        tolerance,
        UNJUDGED if why else AGREES if near else DIFFERS,
        why,
    )


def _reasons(records: Sequence[Record], lines: Sequence[Line]) -> list[str]:
    """Return what is known to set ours apart from what is published."""
    card = method_cards().get(records[0].method_id)
    found = list(card.deviations) if card else []
    checkpoint = records[0].observation.get("checkpoint") or {}
    if checkpoint and not checkpoint.get("source"):
        found.append("The checkpoint was trained here by the shipped recipe; it is not the authors' file.")
    if any(line.metric.startswith("pixel_aupro") for line in lines):
        found.append(
            "AUPRO from 200 thresholds (protocol legacy200) and exact AUPRO differ; a source that does not "
            "say which it gives is compared with the exact one."
        )
    return found


def to_json(found: Sequence[Reproduction]) -> str:
    """Return reproductions as JSON."""
    content: list[dict[str, Any]] = [{**asdict(one), "verdict": one.verdict} for one in found]
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(found: Sequence[Reproduction], environment: str) -> str:
    """Return reproductions as a page fit for an issue report; ``environment`` names versions and machine."""
    return "\n".join(line for one in found for line in _page(one)) + f"\n{environment}\n"


def _page(one: Reproduction) -> list[str]:
    lines = [f"## {markdown(one.method)} on {markdown(one.dataset)}: {one.verdict}", "", one.summary, ""]
    table = [REPRODUCTION_COLUMNS, ["---"] * len(REPRODUCTION_COLUMNS), *map(reproduction_cells, one.lines)]
    lines += ["| " + " | ".join(map(markdown, row)) + " |" for row in table]
    if one.reasons:
        lines += ["", "What is known to set them apart:", ""]
        lines += [f"- {markdown(reason)}" for reason in one.reasons]
    if one.command:
        lines += ["", f"    zsad run {' '.join(one.command)}"]
    return [*lines, "", f"Records: {', '.join(digest[:12] for digest in one.records)}", ""]


def reproduction_cells(line: Line) -> list[str]:
    """Return a line as texts: rates in percent, differences and tolerances in points."""
    return [
        line.protocol,
        line.category,
        line.metric,
        "n/a" if line.ours is None else f"{100 * line.ours:.2f}",
        f"{100 * line.published:.2f}",
        line.kind,
        "n/a" if line.difference is None else f"{line.difference:+.2f}",
        "-" if line.tolerance is None else f"{line.tolerance:g}",
        line.verdict + (f": {line.why}" if line.why else ""),
        line.source,
    ]


def write_reproductions(found: Sequence[Reproduction], folder: Path, environment: str) -> list[Path]:
    """Write ``reproduction.json`` and ``reproduction.md`` into ``folder``; returns both.

    Raises:
        RecordError: if a file cannot be written.
    """
    texts = {"reproduction.json": to_json(found), "reproduction.md": to_markdown(found, environment)}
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return [folder / name for name in texts]
