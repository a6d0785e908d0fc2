"""What a board says in words: its title, its rules, and what a reader must know below it."""

from __future__ import annotations

from ..records import Record
from .board import Board

MARKS = {
    "transductive": "image scores use all test images of a category, so a single image has none",
    "order-dependent": "results depend on the order of the images",
    "subset": "only a part of the dataset was evaluated",
    "failed": "images that could not be read are left out of the numbers",
    "skipped": "files with problems were left out on request",
    "foreign maps": "maps of another code base, scored here",
    "seen data": "tested on images that were trained on",
    "legacy": "approximate metrics as other code bases print them",
    "custom": "rules changed by hand: neither the authors' nor the common protocol",
    "random weights": "an untrained network: a test of the machinery, no result of the method",
    "incomplete": "the observation had not ended when it was scored",
}
"""Mark -> what it means; a count before it, as in ``3 failed``, is left aside."""

SYMBOLS = {"transductive": "†", "order-dependent": "‡"}


def title(board: Board) -> str:
    """Return the dataset with its number of images."""
    name = str(board.records[0].observation["dataset"].get("title") or board.group.dataset)
    name += f" ({board.group.dataset})" if name != board.group.dataset else ""
    return f"{name}: {_counts(board.records[0])}"


def subtitle(board: Board) -> str:
    """Return the protocol and, where they are one for all, its rules."""
    return _protocol(board, "see below")


def footer(board: Board) -> list[str]:
    """Return what a reader must know: means, rules, gaps, marks and versions."""
    return [*_conditions(board), *board.notes, *_explanations(board), _versions(board)]


def sources(board: Board) -> list[str]:
    """Return where the published figures beside the rows come from."""
    found: dict[str, list[str]] = {}
    for row in board.rows:
        for metric, entry in row.published.items():
            about = ", ".join(filter(None, [entry.variant, entry.backbone, entry.source]))
            rule = ", rule not stated" if entry.rule_unknown else ""
            found.setdefault(f"{entry.kind}{rule}: {about}", []).append(f"{row.record.method} {metric}")
    return [f"{', '.join(dict.fromkeys(names))}: {text}." for text, names in found.items()]


def _protocol(board: Board, where: str) -> str:
    rules = {record.rules for record in board.records}
    rule = rules.pop() if len(rules) == 1 else f"rules of each method's authors, {where}"
    return f"Protocol {board.records[0].protocol_label}: {rule}"


def _conditions(board: Board) -> list[str]:
    lines = [_unit(board)]
    rules: dict[str, dict[str, None]] = {}
    for row in board.rows:
        rules.setdefault(row.record.rules, {})[row.record.method] = None
    if len(rules) > 1:
        each = (f"{', '.join(methods)}: {rule}" for rule, methods in rules.items())
        lines.append(f"Rules of each method's authors: {'; '.join(each)}.")
    missing: dict[str, list[str]] = {}
    for metric in board.metrics:
        for reason in dict.fromkeys(r for record in board.records for r in record.reasons(metric)):
            missing.setdefault(reason, []).append(metric)
    return lines + [f"n/a in {', '.join(metrics)}: {reason}." for reason, metrics in missing.items()]


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
    words = dict.fromkeys(mark.lstrip("0123456789 ") for mark in board.marks)
    symbols = {word: f"{SYMBOLS[word]} " if word in SYMBOLS else "" for word in words}
    return [f"{symbols[word]}{word}: {MARKS[word]}." for word in words if word in MARKS]


def _versions(board: Board) -> str:
    environments = [record.observation.get("environment") or {} for record in board.records]
    versions = sorted({str(found["zsadbench"]) for found in environments if "zsadbench" in found})
    program = f", zsadbench {' and '.join(versions)}" if versions else ""
    data = f"samples {board.group.dataset_digest[:12]}, contents {board.group.contents_digest[:12]}"
    return f"{_protocol(board, 'see above')}. Metrics version {board.group.metric_version}{program}; {data}."


def _counts(record: Record) -> str:
    rows = record.categories.values()
    normal, anomalous = (sum(row.get(label) or 0 for row in rows) for label in ("normal", "anomalous"))
    plural = f"{len(rows)} categories" if len(rows) > 1 else "1 category"
    return f"{normal + anomalous} images ({normal} normal, {anomalous} anomalous, {plural})"
