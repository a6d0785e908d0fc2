"""What a board says in words: its title, its rules, and what a reader must know below it."""

from __future__ import annotations

from ..metrics import AVERAGE_RANK, DERIVED, METRICS
from ..records import UNKNOWN, Record
from .beside import BACKBONE, CHECKPOINT, INCOMPLETE, OTHER_IMAGES, SETTINGS
from .board import Board
from .rows import contests

MARKS = {
    "transductive": "image scores use all test images of a category, so a single image has none",
    "related maps": "maps use all test images of a category",
    "constants per dataset": "the reference picks constants by the dataset's name",
    "order-dependent": "results depend on the order of the images",
    "subset": "only a part of the dataset was evaluated",
    "failed": "images that could not be read, or judged, are left out of the numbers",
    "skipped": "files with problems were left out on request",
    "foreign maps": "maps of another code base, scored here",
    "seen data": "tested on images that were trained on",
    "legacy": "approximate metrics as other code bases print them",
    "custom": "rules changed by hand: neither the authors' nor the common protocol",
    "random weights": "an untrained network: a test of the machinery, no result of the method",
    INCOMPLETE: "fewer images than the dataset has",
    BACKBONE: "the figure was published with another backbone or weights",
    SETTINGS: "the figure was published with other parameters, prompts, size or rules",
    CHECKPOINT: "trained here, the figure with the authors' own checkpoint",
    OTHER_IMAGES: "other images than those of the published dataset",
    "incomplete": "the observation had not ended when it was scored",
    "edited": "changed after it was written (the seal is broken), so nothing vouches for these numbers",
}
"""Mark -> what it means; a count before it, as in ``3 failed``, is left aside."""

SYMBOLS = {
    "transductive": "†",
    "order-dependent": "‡",
    "related maps": "§",
    "constants per dataset": "¶",
}


def metric_title(metric: str) -> str:
    """Return the title of a metric for people."""
    base, at, limit = metric.partition("@")
    titles = METRICS | DERIVED
    title = titles.get(metric) or titles.get(base, base)
    return title if metric in titles or not at else f"{title.partition(' at ')[0]} at {limit}"


def title(board: Board) -> str:
    """Return the dataset with its number of images."""
    name = str(board.records[0].observation["dataset"].get("title") or board.group.dataset)
    name += f" ({board.group.dataset})" if name != board.group.dataset else ""
    record = board.records[0]
    if board.axis != "category":
        return f"{name} by {board.axis}: {_counts(whole_of(record))}"
    return f"{name}: {_counts(record, f'groups of {board.unit!r}' if board.unit else 'images')}"


def subtitle(board: Board) -> str:
    """Return the protocol and, where they are one for all, its rules."""
    rules = {record.rules for record in board.records}
    rule = rules.pop() if len(rules) == 1 else "rules of each method's authors, see below"
    return f"Protocol {board.records[0].protocol_label}: {rule}"


def footer(board: Board) -> list[str]:
    """Return what a reader must know: means, rules, gaps, marks and versions."""
    return [*_conditions(board), *board.notes, *_explanations(board), _versions(board)]


def sources(board: Board) -> list[str]:
    """Return where the published figures beside the rows come from."""
    found: dict[str, list[str]] = {}
    for row in board.rows:
        for metric, entry in row.published.items():
            about = entry.about
            rule = ", rule not stated" if entry.rule_unknown else ""
            name = f"{row.record.method} {metric_title(metric)}"
            found.setdefault(f"{entry.kind}{rule}: {about}", []).append(name)
    lines = [f"{', '.join(dict.fromkeys(names))}: {text}." for text, names in found.items()]
    return lines + [f"[{number}] {kind}: {about}." for (kind, about), number in board.other_sources.items()]


def _conditions(board: Board) -> list[str]:
    lines = [_unit(board)]
    if board.unit:
        lines.append(f"One score per '{board.unit}': the highest of its images, anomalous if any of them is.")
    if board.axis != "category":
        lines.append(
            f"By '{board.axis}': each number is the unweighted mean over the categories that have the value."
        )
    rules: dict[str, dict[str, None]] = {}
    for row in board.rows:
        rules.setdefault(row.record.rules, {})[row.record.method] = None
    if len(rules) > 1:
        each = (f"{', '.join(methods)}: {rule}" for rule, methods in rules.items())
        lines.append(f"Rules of each method's authors: {'; '.join(each)}.")
    lines += [*_average_ranks(board), *_costs(board)]
    missing: dict[str, list[str]] = {}
    for metric in board.metrics:
        for reason in dict.fromkeys(r for record in board.records for r in record.reasons(metric)):
            missing.setdefault(reason, []).append(metric_title(metric))
    return lines + [f"n/a in {', '.join(metrics)}: {reason}." for reason, metrics in missing.items()]


def _average_ranks(board: Board) -> list[str]:
    """Return what average ranks are taken over, and who has none."""
    if AVERAGE_RANK not in (*board.metrics, board.sorted_by):
        return []
    ranked = {row.label: bool(row.average_ranks) for row in board.rows}
    over = [
        metric_title(metric)
        for metric in contests(board.metrics)
        if any(record.mean(metric).used for record in board.records)
    ]
    several = max(len(record.categories) for record in board.records)
    what = "categories" if board.axis == "category" else f"values of '{board.axis}'"
    within = f" in {several} {what}" if several > 1 else ""
    line = (
        f"Average rank: mean place among {sum(ranked.values())} methods{within} by {', '.join(over)}; "
        "1 is best, equal ones share the mean of their places."
    )
    without = [label for label, has in ranked.items() if not has]
    return ([line] if any(ranked.values()) else []) + (
        [f"No average rank without every value: {', '.join(without)}."] if without else []
    )


def _costs(board: Board) -> list[str]:
    """Return what is meant by what the runs took, and which machines they ran on."""
    if not board.costs:
        return []
    places = dict.fromkeys(_place(record) for record in board.records)
    apart = ": times of different machines do not compare" if len(places) > 1 else ""
    return [
        "Encode: what a method takes from an image on the device to its evidence, in its own steps and in "
        "those that the methods of its pass share, which count whole for each; own: without these. Latency: "
        "of single images, from the file to the map. Peak: of the whole process or GPU, with all methods.",
        f"Run on {'; '.join(places)}{apart}.",
    ]


def _place(record: Record) -> str:
    """Return what a record was observed on."""
    seen, cost = record.observation.get("environment") or {}, record.observation.get("cost")
    threads = cost.get("threads") if isinstance(cost, dict) else None
    known = [str(seen.get("device") or "an unknown machine"), str(seen.get("dtype") or "")]
    return ", ".join([*filter(None, known), *([f"threads: {threads}"] if threads else [])])


def _unit(board: Board) -> str:
    seeds = any(len(row.records) > 1 for row in board.rows)
    return _averages(board) + (" ±: sample standard deviation over seeds." if seeds else "")


def _averages(board: Board) -> str:
    counts = {len(record.categories) for record in board.records}
    if board.by == "category" or max(counts) == 1:
        return "In percent."
    numbers = " or ".join(map(str, sorted(counts)))
    partial = any(row.cell(metric).partial for row in board.rows for metric in board.metrics)
    gaps = ", (n/N): over n of N only" if partial else ""
    return f"In percent, unweighted mean over {numbers} categories{gaps}."


def _explanations(board: Board) -> list[str]:
    differences = [mark for row in board.rows for source in row.others for mark in source.differences]
    words = dict.fromkeys(mark.lstrip("0123456789 ") for mark in [*board.marks, *differences])
    symbols = {word: f"{SYMBOLS[word]} " if word in SYMBOLS else "" for word in words}
    return [f"{symbols[word]}{word}: {MARKS[word]}." for word in words if word in MARKS]


def _versions(board: Board) -> str:
    environments = [record.observation.get("environment") or {} for record in board.records]
    versions = sorted({str(found["zsadbench"]) for found in environments if "zsadbench" in found})
    program = f", zsadbench {' and '.join(versions)}" if versions else ""
    data = f"samples {board.group.dataset_digest[:12]}, contents {board.group.contents_digest[:12]}"
    data += f", masks {board.group.masks_digest[:12]}"
    if board.group.masks_digest == UNKNOWN:
        data += " (written by zsadbench 0.1, which kept no digest of them; `zsad score RUN_DIR` does)"
    return f"Metrics version {board.group.metric_version}{program}; {data}."


def whole_of(record: Record) -> Record:
    """Return the record that a view of one is made of, else the record itself."""
    return getattr(record, "whole", None) or record


def _counts(record: Record, what: str = "images") -> str:
    rows = record.categories.values()
    normal, anomalous = (sum(row.get(label) or 0 for row in rows) for label in ("normal", "anomalous"))
    plural = f"{len(rows)} categories" if len(rows) > 1 else "1 category"
    return f"{normal + anomalous} {what} ({normal} normal, {anomalous} anomalous, {plural})"
