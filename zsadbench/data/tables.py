"""Reads the tables that list samples: ``.csv``, ``.jsonl`` and ``.json`` such as the shared ``meta.json``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DatasetError, suggest
from ..files import stand_in
from .templates import Segment

Fields = dict[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One record: where it stands (for messages) and its fields under our names."""

    where: str
    fields: Fields


def read_rows(
    path: Path,
    name: str,
    columns: Mapping[str, str],
    records: tuple[Segment, ...] | None,
    header: Sequence[str] = (),
    separator: str = ",",
) -> Iterator[Row]:
    """Yield the records of a .csv, .jsonl or .json; ``columns`` maps our field names to the table's.

    ``name`` is the path shown in messages; ``records`` is the key path to the lists inside a json.
    A missing or null field is the empty string, except that a csv must have every column.  A csv without
    a line of headings has the columns ``header``; ``separator`` is a character, a space for one or more.
    """
    suffix = path.suffix.lower()
    text = _text(path, name)
    if suffix == ".csv":
        return _csv_rows(text, name, columns, list(header), separator)
    if suffix == ".jsonl":
        return _picked(_jsonl_records(text, name), columns)
    return _picked(_json_records(text, name, records or ()), columns)


def as_text(value: object) -> str:
    """Return a cell or json value as text: null is empty, whole numbers have no fraction."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def same_value(text: str, wanted: object) -> bool:
    """Tell whether a field has the wanted value; numbers are compared as numbers, ``0`` == ``"0.0"``."""
    other = as_text(wanted)
    if text == other:
        return True
    try:
        return float(text) == float(other)
    except ValueError:
        return False


def _text(path: Path, name: str) -> str:
    try:
        content = path.read_bytes()
        if other := stand_in(content[:512]):
            raise DatasetError(f"{name}: {other}.")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DatasetError(
            f"{name}: not UTF-8 text (byte {exc.start}); save it with that encoding."
        ) from None
    except OSError as exc:
        raise DatasetError(f"{name}: cannot be read ({exc.strerror}); check the permissions.") from None


def _csv_rows(
    text: str, name: str, columns: Mapping[str, str], header: list[str], separator: str
) -> Iterator[Row]:
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=separator, skipinitialspace=separator == " ")
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not header:
                header = cells
                _check_header(header, name, columns)
                continue
            if len(cells) < len(header) or any(cells[len(header) :]):
                raise DatasetError(
                    f"{name}:{reader.line_num}: {len(cells)} cells, but the header has {len(header)}; "
                    "correct that line."
                )
            found = dict(zip(header, cells, strict=False))
            yield Row(f"{name}:{reader.line_num}", {ours: found[theirs] for ours, theirs in columns.items()})
    except csv.Error as exc:
        raise DatasetError(f"{name}:{reader.line_num}: not valid csv ({exc}); correct that line.") from None


def _check_header(header: list[str], name: str, columns: Mapping[str, str]) -> None:
    for theirs in columns.values():
        if header.count(theirs) != 1:
            problem = "no column" if theirs not in header else "more than one column"
            raise DatasetError(
                f"{name}:1: {problem} '{theirs}'; the header has {', '.join(header)}."
                f"{suggest(theirs, header) if theirs not in header else ''} "
                "Correct the header, or `columns` of the description."
            )


def _jsonl_records(text: str, name: str) -> Iterator[tuple[str, Fields, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{name}:{number}", {}, _parsed(line, name, number)


def _json_records(text: str, name: str, path: tuple[Segment, ...]) -> Iterator[tuple[str, Fields, Any]]:
    yield from _below(_parsed(text, name, 1), name, path, {})


def _parsed(text: str, name: str, first_line: int) -> Any:
    """Parse JSON that starts on a line of the file ``name``."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as exc:
        line, reason = first_line + exc.lineno - 1, exc.msg
    except RecursionError:
        line, reason = first_line, "nested too deeply"
    except ValueError:
        line, reason = first_line, "a number is too long"
    raise DatasetError(f"{name}:{line}: not valid JSON ({reason}); correct that line.")


def _below(
    node: Any, where: str, path: tuple[Segment, ...], captured: Fields
) -> Iterator[tuple[str, Fields, Any]]:
    if not path:
        if not isinstance(node, list):
            raise DatasetError(f"{where}: a list of records is expected, not {type(node).__name__}.")
        yield from ((f"{where}[{index}]", captured, record) for index, record in enumerate(node))
        return
    if not isinstance(node, dict):
        raise DatasetError(f"{where}: an object with keys is expected, not {type(node).__name__}.")
    hits = [(key, found) for key in node if (found := match_key(path[0], key)) is not None]
    if not hits and node:
        raise DatasetError(
            f"{where}: no key fits `records` of the description; the keys are {', '.join(map(str, node))}."
        )
    for key, found in hits:
        if all(captured.get(name, value) == value for name, value in found.items()):
            yield from _below(node[key], f"{where} {key}", path[1:], captured | found)


def match_key(segment: Segment, key: str) -> Fields | None:
    """Return the captures of a json key; listed alternatives are compared without regard to case."""
    choices = [c for token in segment.tokens for c in token.choices]
    for spelled in dict.fromkeys((key, *(c for c in choices if c.lower() == key.lower()))):
        found = segment.match(spelled)
        if found is not None:
            return found
    return None


def _picked(records: Iterator[tuple[str, Fields, Any]], columns: Mapping[str, str]) -> Iterator[Row]:
    for where, captured, record in records:
        if not isinstance(record, dict):
            raise DatasetError(f"{where}: a record must be an object with keys, not {type(record).__name__}.")
        found = {ours: as_text(record.get(theirs)) for ours, theirs in columns.items()}
        yield Row(where, captured | found)
