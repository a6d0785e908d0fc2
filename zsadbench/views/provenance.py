"""Where a record's numbers come from, as titled lists of facts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..method import method_cards
from ..records import Record

Facts = list[tuple[str, str]]

_OF_THIS_MACHINE = ("root", "spec")
"""Keys of a dataset that hold folders of the machine it lay on."""


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
