"""The regression gate: new records against a committed ``leaderboard.csv``."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RecordError, UsageError
from ..records import Group, Record, is_metric, read_text, shared_rules
from .compare import boards
from .rows import MEAN

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
)
_REMEDY = "write a new baseline with `zsad compare` from results you trust"


@dataclass
class Verdict:
    """What the gate found, in words; it is passed when nothing ``fell``."""

    fell: list[str] = field(default_factory=list)
    improved: list[str] = field(default_factory=list)
    compared: int = 0


def gate(records: Sequence[Record], baseline: Path, tolerance_points: float) -> Verdict:
    """Compare every value of ``baseline`` (a ``leaderboard.csv``) with the same value of ``records``.

    A value fell when it is more than ``tolerance_points`` percent points lower, undefined now, a mean
    over fewer categories or taken under other rules; a row without a counterpart fell as a whole.

    Raises:
        UsageError: for a tolerance that is no finite number from 0 upwards.
        RecordError: if the baseline cannot be read, or is of other data or rules than the records.
    """
    if not 0 <= tolerance_points < float("inf"):
        raise UsageError(f"a tolerance of {tolerance_points} points is not possible; give 0 or more")
    old = _read(baseline)
    metrics = [name for name in old[0] if is_metric(name)]
    by = "method" if all(line["category"] == MEAN for line in old) else "category"
    computed = {metric for record in records for metric in record.metrics}
    wanted = [metric for metric in metrics if metric in computed]
    tables = boards(records, metrics=wanted or None, by=by, published=False)
    new = [line for board in tables for line in board.lines()]
    _same_groups(old, new, baseline)
    verdict = Verdict()
    present = dict(zip(_keys(new, old), new, strict=True))
    for key, line in zip(_keys(old, new), old, strict=True):
        _judge(verdict, line, present.get(key), metrics, tolerance_points)
    return verdict


def _judge(verdict: Verdict, old: Line, new: Line | None, metrics: Sequence[str], tolerance: float) -> None:
    name = _name(old)
    if new is None:
        verdict.fell.append(f"{name}: missing from the new results")
        return
    if new["rules"] != old["rules"]:
        verdict.fell.append(f"{name}: evaluated under other rules ({new['rules']}; was {old['rules']})")
        return
    for metric in metrics:
        before, now = old[metric], new.get(metric)
        if before is None and now is None:
            continue
        verdict.compared += 1
        if before is None or now is None:
            change = f"{name} {metric}: {_points(before)} -> {_points(now)}"
            (verdict.improved if before is None else verdict.fell).append(change)
            continue
        points = 100 * (now - before)
        change = f"{name} {metric}: {_points(before)} -> {_points(now)} ({points:+.2f} points)"
        fewer = _used(new, metric) < _used(old, metric)
        if points < -tolerance - 1e-9:
            verdict.fell.append(change)
        elif fewer:
            verdict.fell.append(f"{change}, over {_used(new, metric)} categories, were {_used(old, metric)}")
        elif points > tolerance + 1e-9:
            verdict.improved.append(change)


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


def _keys(lines: Sequence[Line], others: Sequence[Line]) -> list[Key]:
    """Return what names each line on both sides; the digest too where the name alone is not enough."""
    counts, opposite = Counter(map(_row, lines)), Counter(map(_row, others))
    return [
        (*name, line["observation"]) if max(counts[name], opposite[name]) > 1 else name
        for name, line in zip(map(_row, lines), lines, strict=True)
    ]


def _row(line: Line) -> Key:
    group = _group(line)
    return (group.dataset, str(group), group.rules, *(str(line[part]) for part in _ROW))


def _read(path: Path) -> list[Line]:
    reader = csv.DictReader(io.StringIO(read_text(path, _REMEDY), newline=""))
    columns = reader.fieldnames or ()
    missing = [name for name in (*_GROUP, *_ROW, "observation") if name not in columns]
    if missing or not any(map(is_metric, columns)):
        missing = missing or ["image_auroc"]
        raise RecordError(f"{path}: not a leaderboard.csv, it has no column '{missing[0]}'; {_REMEDY}.")
    try:
        lines: list[Line] = [{name: _value(name, text) for name, text in row.items()} for row in reader]
    except (TypeError, ValueError):
        raise RecordError(f"{path}: line {reader.line_num} cannot be read; {_REMEDY}.") from None
    if not lines:
        raise RecordError(f"{path}: has no row; {_REMEDY}.")
    return lines


def _value(name: str, text: str) -> Any:
    if is_metric(name):
        return _rate(text) if text else None
    return int(text) if name in ("protocol_version", "metric_version", "categories") else text


def _rate(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def _used(line: Line, metric: str) -> int:
    """Return over how many categories a mean was taken."""
    for part in str(line.get("incomplete") or "").split("; "):
        if part.startswith(f"{metric} "):
            return int(part.removeprefix(f"{metric} ").partition("/")[0])
    return int(line.get("categories", 1))


def _name(line: Line) -> str:
    method = line["method"] if line["variant"] == "reference" else f"{line['method']}@{line['variant']}"
    category = [] if line["category"] == MEAN else [line["category"]]
    return " ".join([line["dataset"], *category, line["protocol"], method])


def _points(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.2f}"
