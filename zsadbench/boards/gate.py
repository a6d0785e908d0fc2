"""The regression gate: new records against a committed ``leaderboard.csv``."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import RecordError, UsageError
from ..metrics import AVERAGE_RANK, DERIVED, MAD, SEVEN, worth
from ..records import NEEDS_OTHERS, UNKNOWN, Group, Record, is_metric, read_text, shared_rules
from .beside import MEAN
from .compare import boards, inductive_records
from .rows import Row, contests, with_average_ranks
from .verdict import Change, Verdict

Line = Mapping[str, Any]
Key = tuple[str, ...]

_ROW = ("method", "variant", "backbone", "category")
_GROUP = (
    "dataset",
    "dataset_digest",
    "contents_digest",
    "protocol",
    "protocol_version",
    "mask_positive",
    "rules",
    "metric_version",
    "masks_digest",
)
_SINCE_SCHEMA_2 = {"masks_digest": UNKNOWN}
"""Columns that older boards do not have, with the value that stands for what they do not know."""
_REMEDY = "write a new baseline with `zsad compare` from results you trust"


@dataclass(frozen=True)
class _Found:
    """A row of the new results: its line, and when and where its newest record was written."""

    line: Line
    row: Row

    @property
    def created(self) -> str:
        return self.row.created

    @property
    def place(self) -> Path:
        return max(self.row.records, key=lambda record: record.created).path.parent


def gate(
    records: Sequence[Record], baseline: Path, tolerance_points: float, *, inductive_only: bool = False
) -> Verdict:
    """Compare every value of ``baseline`` (a ``leaderboard.csv``) with the same value of ``records``.

    A value fell when it is more than ``tolerance_points`` percent points lower, undefined now, a mean
    over fewer categories or taken under other rules; a row without a counterpart fell as a whole.  An
    average rank is taken again among the methods of the baseline, and fell when it is more than
    ``tolerance_points`` places further from 1; without one of them it is not compared.  Of
    several records of a row's name (method, variant, backbone) the newest is judged, and a note says so;
    where the baseline too has several, each is judged by the one with its digest.  ``inductive_only`` leaves
    out, on both sides, rows whose numbers need other test images.

    Raises:
        UsageError: for a tolerance that is no finite number from 0 upwards.
        RecordError: if the baseline cannot be read, or is of other data or rules than the records, or if
            it cannot be told which record of a name to judge.
    """
    if not 0 <= tolerance_points < float("inf"):
        raise UsageError(f"a tolerance of {tolerance_points} points is not possible; give 0 or more")
    whole = old = read_board(baseline)
    if inductive_only:
        records, old = inductive_records(records), _inductive(old, baseline)
    metrics = [name for name in old[0] if _is_column(name)]
    by = "method" if all(line["category"] == MEAN for line in old) else "category"
    computed = {metric for record in records for metric in record.metrics}
    computed |= {MAD} if computed.issuperset(SEVEN) else set()
    wanted = [metric for metric in metrics if metric in computed]
    tables = boards(records, metrics=wanted or None, by=by, published=False)
    found = [
        _Found(line, row) for board in tables for line, row in zip(board.lines(), board.rows, strict=True)
    ]
    old, new, notes = _without_unknown(old, [each.line for each in found])
    found = [replace(each, line=line) for each, line in zip(found, new, strict=True)]
    _same_groups(old, new, baseline)
    verdict = Verdict(baseline, tolerance_points, notes=notes)
    chosen = _chosen(old, found, baseline, verdict.notes)
    now: list[Line | None] = [each.line if each else None for each in chosen]
    if AVERAGE_RANK in metrics:
        alike = len(whole) == len(old) and computed.issuperset(contests(metrics))
        old, now = _ranked_alike(old, chosen, contests(metrics) if alike else (), verdict.notes)
    for line, own in zip(old, now, strict=True):
        _judge(verdict, line, own, metrics)
    return verdict


def _ranked_alike(
    old: Sequence[Line], chosen: Sequence[_Found | None], over: Sequence[str], notes: list[str]
) -> tuple[list[Line], list[Line | None]]:
    """Return both sides with average ranks ``over`` some metrics, now among the methods of then.

    Where one of these methods is missing, or no metric is named, neither side has any.
    """
    before, now = list(old), [each.line if each else None for each in chosen]
    groups: dict[Group, list[int]] = {}
    for place, line in enumerate(old):
        groups.setdefault(_group(line), []).append(place)
    for group, members in groups.items():
        ranked = [place for place in members if old[place][AVERAGE_RANK] is not None]
        rows = [each.row for place in ranked if (each := chosen[place])]
        alike = bool(over) and len(rows) == len(ranked)
        ranks = dict(zip(ranked, with_average_ranks(rows, over), strict=True)) if alike else {}
        for place in members:
            rank = ranks[place].cell(AVERAGE_RANK).value if place in ranks else None
            now[place] = {**own, AVERAGE_RANK: rank} if (own := now[place]) else None
            before[place] = old[place] if place in ranks else {**old[place], AVERAGE_RANK: None}
        if ranked and not alike:
            notes.append(f"{group}: average ranks are not compared, methods or metrics of then are missing")
    return before, now


def _inductive(lines: Sequence[Line], baseline: Path) -> list[Line]:
    """Return the lines of a baseline whose numbers need no other test image."""
    kept = [line for line in lines if NEEDS_OTHERS.isdisjoint(str(line.get("marks") or "").split("; "))]
    if not kept:
        raise RecordError(f"{baseline}: every row of it needs other test images; leave --inductive-only out.")
    return kept


def _chosen(
    old: Sequence[Line], found: Sequence[_Found], baseline: Path, notes: list[str]
) -> list[_Found | None]:
    """Return for every line of the baseline the row to judge; ``notes`` gets which of several that is."""
    names = Counter(map(_row, old))
    by_name: dict[Key, list[_Found]] = {}
    for each in found:
        by_name.setdefault(_row(each.line), []).append(each)
    chosen: list[_Found | None] = []
    for line in old:
        same = by_name.get(_row(line), [])
        if names[_row(line)] == 1:
            picked = _newest(line, same, notes)
        else:
            picked = _twin(line, same, [other for other in old if _row(other) == _row(line)], baseline)
        if picked and _group(picked.line) != _group(line):
            raise RecordError(_other_group(baseline, _group(line), _group(picked.line)))
        chosen.append(picked)
    return chosen


def _newest(line: Line, same: Sequence[_Found], notes: list[str]) -> _Found | None:
    """Return the newest of the rows of one name."""
    if not same:
        return None
    last = max(each.created for each in same)
    newest = [each for each in same if each.created == last]
    if len(newest) > 1:
        places = ", ".join(str(each.place) for each in newest)
        raise RecordError(
            f"{_called(line)}: {len(newest)} records of this name are equally new ({places}); give a "
            "folder that holds the one to judge."
        )
    if len(same) > 1:
        place = f"{newest[0].place} ({last})"
        note = f"{_called(line)}: judged the newest of {len(same)} records of this name, {place}"
        notes += [note] if note not in notes else []
    return newest[0]


def _twin(line: Line, same: Sequence[_Found], twins: Sequence[Line], baseline: Path) -> _Found | None:
    """Return the row with the digest of ``line``, one of ``twins`` of one name in the baseline."""
    digests = {other["observation"] for other in twins}
    known = [each for each in same if each.line["observation"] in digests]
    oldest = min((each.created for each in known), default="")
    if stray := next((e for e in same if e not in known and e.created > oldest), None):
        raise RecordError(
            f"{_called(line)}: {baseline} has {len(twins)} rows of this name, and {stray.place} is a newer "
            "record with another digest, so it cannot be told which to judge; give the gate a folder without "
            f"it, or {_REMEDY}."
        )
    return next((each for each in known if each.line["observation"] == line["observation"]), None)


def _without_unknown(old: list[Line], new: list[Line]) -> tuple[list[Line], list[Line], list[str]]:
    """Return both sides with what either does not know unknown on both, and notes that say so."""
    places = {
        (line["dataset"], line["protocol"]): None for line in [*old, *new] if line["masks_digest"] == UNKNOWN
    }

    def forget(line: Line) -> Line:
        return {**line, **_SINCE_SCHEMA_2} if (line["dataset"], line["protocol"]) in places else line

    notes = [
        f"{dataset} {protocol}: whether the masks are the same is unknown, as 0.1 kept no digest of them"
        for dataset, protocol in places
    ]
    return list(map(forget, old)), list(map(forget, new)), notes


def _judge(verdict: Verdict, old: Line, new: Line | None, metrics: Sequence[str]) -> None:
    def note(kind: Literal["fell", "improved"], text: str, **values: Any) -> None:
        about: dict[str, Any] = {key: old[key] for key in ("dataset", "protocol", *_ROW)}
        about["label"] = _label(old)
        verdict.changes.append(Change(kind, f"{_name(old)}{text}", **about, **values))

    if new is None:
        note("fell", ": missing from the new results")
        return
    if new["rules"] != old["rules"]:
        note("fell", f": evaluated under other rules ({new['rules']}; was {old['rules']})")
        return
    for metric in metrics:
        before, now = old[metric], new.get(metric)
        if before is None and now is None:
            continue
        verdict.compared += 1
        values = {"metric": metric, "before": before, "now": now}
        change = f" {metric}: {_shown(metric, before)} -> {_shown(metric, now)}"
        if before is None or now is None:
            note("improved" if before is None else "fell", change, **values)
            continue
        points = (now - before) * (1 if metric == AVERAGE_RANK else 100)
        change += f" ({points:+.2f} {'places' if metric == AVERAGE_RANK else 'points'})"
        fewer = _used(new, metric) < _used(old, metric)
        gained = worth(metric, points)
        if gained < -verdict.tolerance - 1e-9:
            note("fell", change, **values)
        elif fewer:
            change += f", over {_used(new, metric)} categories, were {_used(old, metric)}"
            note("fell", change, **values)
        elif gained > verdict.tolerance + 1e-9:
            note("improved", change, **values)


def _same_groups(old: Sequence[Line], new: Sequence[Line], baseline: Path) -> None:
    """Refuse a baseline of which a group meets the same dataset and protocol in another state."""
    wanted, present = ({_group(line): None for line in lines} for lines in (old, new))
    for group in wanted:
        same = (group.dataset, group.protocol)
        near = [other for other in present if (other.dataset, other.protocol) == same]
        if near and group not in near:
            raise RecordError(_other_group(baseline, group, near[0]))
    if not any(group in present for group in wanted):
        group = next(iter(wanted))
        near = [other for other in present if other.dataset == group.dataset]
        raise RecordError(_other_group(baseline, group, (near or list(present))[0]))


def _other_group(baseline: Path, group: Group, other: Group) -> str:
    differences = ", ".join(group.differences(other))
    return f"{baseline}: cannot be compared with these results, it has {differences}; {_REMEDY}."


def _group(line: Line) -> Group:
    values = {name: line[name] for name in _GROUP}
    return Group(**{**values, "rules": shared_rules(line["protocol"], line["rules"])})


def _row(line: Line) -> Key:
    """Return what a row is called by, in whatever state its images, masks and versions are."""
    rules = shared_rules(line["protocol"], line["rules"])
    part = "subset" if "subset" in str(line.get("marks") or "").split("; ") else ""
    return (line["dataset"], line["protocol"], rules, part, *(str(line[name]) for name in _ROW))


def read_board(path: Path) -> list[Line]:
    """Return the rows of a ``leaderboard.csv``: texts, whole numbers, and rates or None where undefined.

    Raises:
        RecordError: if the file is missing, no board, or one of groups of images.
    """
    if not path.is_file():
        inside = path / "leaderboard.csv"
        hint = (
            f"did you mean {inside}?" if inside.is_file() else "`zsad compare RESULTS --out DIR` writes one"
        )
        raise RecordError(f"{path}: no such file; the baseline is a leaderboard.csv, {hint}")
    reader = csv.DictReader(io.StringIO(read_text(path, _REMEDY), newline=""))
    columns = reader.fieldnames or ()
    needed = [name for name in (*_GROUP, *_ROW, "observation") if name not in _SINCE_SCHEMA_2]
    missing = [name for name in needed if name not in columns]
    if other := next((name for name in ("by", "per") if name in columns), ""):
        raise RecordError(f"{path}: a board made with --{other}; the baseline is one without; {_REMEDY}.")
    if missing or not any(map(_is_column, columns)):
        missing = missing or ["image_auroc"]
        raise RecordError(f"{path}: not a leaderboard.csv, it has no column '{missing[0]}'; {_REMEDY}.")
    try:
        lines: list[Line] = [
            _SINCE_SCHEMA_2 | {name: _value(name, text) for name, text in row.items()} for row in reader
        ]
    except (TypeError, ValueError):
        raise RecordError(f"{path}: line {reader.line_num} cannot be read; {_REMEDY}.") from None
    if not lines:
        raise RecordError(f"{path}: has no row; {_REMEDY}.")
    return lines


def _value(name: str, text: str) -> Any:
    if _is_column(name):
        return _number(name, text) if text else None
    return int(text) if name in ("protocol_version", "metric_version", "categories") else text


def _is_column(name: str) -> bool:
    """Tell whether a column of a board holds numbers to compare."""
    return is_metric(name) or name in DERIVED


def _number(name: str, text: str) -> float:
    value = float(text)
    low, high = (1.0, math.inf) if name == AVERAGE_RANK else (0.0, 1.0)
    if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(text)
    return value


def _used(line: Line, metric: str) -> int:
    """Return over how many categories a mean was taken."""
    for part in str(line.get("incomplete") or "").split("; "):
        if part.startswith(f"{metric} "):
            return int(part.removeprefix(f"{metric} ").partition("/")[0])
    return int(line.get("categories", 1))


def _label(line: Line) -> str:
    """Return what a board calls a row; boards of before labels have the method alone."""
    method = line["method"] if line["variant"] == "reference" else f"{line['method']}@{line['variant']}"
    return str(line.get("label") or method)


def _name(line: Line) -> str:
    category = [] if line["category"] == MEAN else [line["category"]]
    return " ".join([line["dataset"], *category, line["protocol"], _label(line)])


def _called(line: Line) -> str:
    return _name({**line, "category": MEAN})


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value if metric == AVERAGE_RANK else 100 * value:.2f}"
