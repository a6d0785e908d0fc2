"""The files of records: JSON that reads back exactly, sealed, and what their keys must be."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..files import digest_of, stand_in
from ..inputs import Within
from ..metrics import METRICS
from .shapes import LARGEST, OBSERVATION_KEYS, RECORD_KEYS, RULE_KEYS, RUN_KEYS, check_bounds, check_shape

SCHEMA = 2
"""Raised whenever older code could misread what is written; 2: seals, digests of evidence and masks."""

UNKNOWN = "unknown"
"""Stands for a digest that an older schema does not hold."""

EDITED = "edited"
"""The mark of what was changed after it was written."""

RERUN = "repeat the `zsad run` command, it writes this file again from the evidence"
RESCORE = "delete this file and run `zsad score` on the run folder again, it needs no CLIP"

_TIMES = ("created", "seconds", "images_per_second", "peak_memory_mb", "devices", "cost", "command", "basis")


class NewerSchema(RecordError):
    """A record or observation of a newer zsadbench."""


class RecordWarning(UserWarning):
    """A record or observation that was left out, or that was changed after it was written."""


def timeless(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record or an observation without what differs from one time to the next, and without seals.

    The command is among it, as other words may ask for the same, and the code that took the numbers.
    """
    return {key: value for key, value in content.items() if key not in _TIMES and key != "seal"}


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content with a seal: the SHA-256 over everything else that it says."""
    bare = {key: value for key, value in content.items() if key != "seal"}
    return {**bare, "seal": digest_of(bare)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Tell whether content is as it was written; schema 1 had no seal, so nothing can be broken there."""
    return bool(content["schema"] < 2 or content.get("seal") == sealed(content)["seal"])


def check_run(path: Path, observation: Mapping[str, Any], protocol: Mapping[str, Any] | None = None) -> None:
    """Refuse an observation, and a protocol, without what it takes to render maps again.

    Raises:
        RecordError: with the file and what it lacks.
    """
    if not observation["method"].get("foreign"):
        check_shape(path, observation, RUN_KEYS, RERUN)
    if protocol is not None:
        check_shape(path, protocol, RULE_KEYS, RESCORE, "protocol.")
        if isinstance(size := protocol["size"], int) and size not in (sizes := Within(1, 8192)):
            raise RecordError(f"{path}: 'protocol.size' is {str(size)[:40]}, no number {sizes}; {RESCORE}.")


def is_metric(name: str) -> bool:
    """Tell whether a column is a metric: an id such as ``pixel_aupro@0.05``, no threshold and no spread."""
    base, _, limit = name.partition("@")
    return name in METRICS or (base in METRICS and re.fullmatch(r"[0-9.e-]+", limit) is not None)


def metric_order(name: str) -> tuple[int, str]:
    """Return a sorting key that puts metric ids in the usual order."""
    order = list(METRICS)
    base = name if name in METRICS else name.partition("@")[0]
    return (order.index(base), name)


def check_record(path: Path, content: Mapping[str, Any], remedy: str) -> None:
    """Refuse the content of a record that lacks a key or has a metric outside [0, 1]."""
    _check_schema(path, content, remedy)
    check_shape(path, content, RECORD_KEYS, remedy)
    check_shape(path, content["observation"], OBSERVATION_KEYS, remedy, "observation.")
    names: set[str] = set()
    for row in content["categories"]:
        if row["category"] in names:
            raise RecordError(f"{path}: category '{row['category']}' stands there twice; {remedy}.")
        names.add(row["category"])
        for key, value in row.items():
            if is_metric(key) and not _is_rate(value):
                where = f"{key} of '{row['category']}'"
                raise RecordError(f"{path}: {where} is {value!r:.40}, not null or within [0, 1]; {remedy}.")
    if not names:
        raise RecordError(f"{path}: has no category; {remedy}.")


def _is_rate(value: Any) -> bool:
    if value is None:
        return True
    rounding = 1e-9
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 + rounding


def check_observation(path: Path, content: Mapping[str, Any], remedy: str) -> None:
    """Refuse the content of an observation that lacks a key or has one of a wrong type."""
    _check_schema(path, content, remedy)
    check_shape(path, content, OBSERVATION_KEYS, remedy)


def _check_schema(path: Path, content: Mapping[str, Any], remedy: str) -> None:
    schema = content.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise RecordError(f"{path}: has no schema number; {remedy}.")
    if schema > SCHEMA:
        raise NewerSchema(
            f"{path}: has schema {schema}, this zsadbench reads up to {SCHEMA}; "
            "install a newer zsadbench (pip install --upgrade zsadbench)."
        )


def read_text(path: Path, remedy: str) -> str:
    """Return a text file.

    Raises:
        RecordError: whatever prevents it, ending with the ``remedy``.
    """
    if os.path.lexists(path) and not path.is_file():
        raise RecordError(f"{path}: no file that can be read; {remedy}.")
    try:
        content = path.read_bytes()
        if other := stand_in(content[:512]):
            raise RecordError(f"{path}: {other}; or {remedy}.")
        return content.decode()
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file; name a folder that `zsad run` wrote.") from None
    except UnicodeDecodeError:
        raise RecordError(f"{path}: not UTF-8 text; {remedy}.") from None
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return a JSON object; a file that is missing or cut short is a :class:`RecordError`."""
    if path.is_file() and path.stat().st_size > LARGEST:
        raise RecordError(f"{path}: larger than the {LARGEST >> 20} MiB of any record; {remedy}.")
    text = read_text(path, remedy)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: cut short or damaged ({error}); {remedy}.") from None
    if not isinstance(content, dict):
        raise RecordError(f"{path}: not a JSON object; {remedy}.")
    check_bounds(path, content, remedy)
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def plain(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``content`` as JSON would hand it back, so that what is in memory is what is on disk."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False, default=_scalar))
    except (TypeError, ValueError) as error:
        raise RecordError(f"{path}: cannot be written as JSON ({error}); use null for undefined.") from None
    return copy


def _scalar(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def encode(content: Mapping[str, Any]) -> bytes:
    """Return JSON for people and programs alike."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # half of a surrogate pair, as in names that are no text
