"""``observation.json``: what was observed, of which images, with what, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..files import write_atomic
from .files import EDITED, RERUN, SCHEMA, check_observation, encode, is_sealed, plain, read_json, sealed

OBSERVATION = "observation.json"
_SHOWN = 8
"""Runs that a message names."""


def write_observation(run_dir: Path, observation: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``observation.json`` and return it as written: ``schema`` and ``seal`` are filled in.

    Raises:
        RecordError: if a key is missing or of a wrong type, a number is not finite, or the folder
            cannot be written.
    """
    path = run_dir / OBSERVATION
    content = sealed(plain(path, {**observation, "schema": SCHEMA}))
    check_observation(path, content, "correct what is written")
    write_atomic(path, encode(content))
    return content


def read_observation(run_dir: Path) -> dict[str, Any]:
    """Return the content of ``observation.json`` of a run folder.

    One that was changed after it was written has the mark ``edited``.

    Raises:
        NewerSchema: if a newer zsadbench wrote it.
        RecordError: if the file is missing, cut short or lacks a key.
    """
    path = run_dir / OBSERVATION
    if not path.is_file():
        raise RecordError(
            f"{run_dir}: not the folder of a run, it has no {OBSERVATION}; {near_runs([run_dir])}."
        )
    content = read_json(path, RERUN)
    check_observation(path, content, RERUN)
    if not is_sealed(content):
        content["marks"] = [*(content.get("marks") or ()), EDITED]
    return content


def near_runs(paths: Sequence[Path]) -> str:
    """Return in words which folders of runs lie at, below or just above some paths."""
    found = [run for path in paths for run in _below(path) or _above(path)]
    runs = [str(run) for run in dict.fromkeys(found)]
    if not runs:
        return "`zsad run --method clip --dataset NAME` makes one"
    more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
    return f"runs there: {', '.join(runs[:_SHOWN])}{more}"


def _below(path: Path) -> list[Path]:
    return sorted(file.parent for file in path.rglob(OBSERVATION)) if path.is_dir() else []


def _above(path: Path) -> list[Path]:
    """Return the run that a path is a part of."""
    return [parent for parent in list(path.absolute().parents)[:3] if (parent / OBSERVATION).is_file()][:1]
