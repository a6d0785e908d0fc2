"""``inspect``: what a finished run knows of one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import RecordError, UsageError, suggest
from ..method import override
from ..records import (
    RECORD,
    EvidenceStore,
    ImageRow,
    Record,
    Slice,
    check_run,
    read_observation,
    read_record,
    select_rows,
)
from ..scoring import NOBODY, EvidenceMaps, UserMethods, restore
from ..text import terminal
from .overlay import Scale, draw_scale, heat, resized, write_png

NEIGHBOURS = 2
"""Images shown on either side in the ranking of a category."""

SIDE = 336
"""Pixels of the longer side of a map's picture."""

FEW = 24
"""Numbers of one evidence entry that are shown one by one."""


def inspect_image(run_dir: Path, key: str, protocol: str | None = None) -> dict[str, Any]:
    """Return what a run holds of the image ``key``, as JSON values.

    ``evidence`` has the numbers, and of grids the shape and range; ``rank`` 1 is the most anomalous image
    of the category, ties share the better rank; ``neighbours`` are those ranked next to it.

    Raises:
        UsageError: for an unknown key or protocol, with the nearest one.
        RecordError: if the run has no record, failed on this image, or is damaged.
    """
    observation = read_observation(run_dir)
    record = _record(run_dir, protocol)
    rows = {row.key: row for row in record.images()}
    row = rows.get(key)
    if row is None:
        raise _unknown(run_dir, key, rows, observation)
    part = _find(run_dir, key) if _has_evidence(observation) else None
    return {
        "run": terminal(run_dir),
        "method": record.method,
        "dataset": record.dataset,
        "protocol": record.path.parent.name,
        "key": row.key,
        "category": row.category,
        "words": (observation.get("wordings") or {}).get(row.category, ""),
        "label": _label(row),
        "score": row.image_score,
        **ranking(row, [other for other in rows.values() if other.category == row.category]),
        "evidence": {name: _summary(values[0]) for name, values in part.evidence.items()} if part else {},
        "map": {"min": row.map_min, "max": row.map_max},
        "sha256": part.hashes[0] if part else "",
    }


def write_map(run_dir: Path, found: Mapping[str, Any], out: Path, users: UserMethods = NOBODY) -> Path:
    """Write a picture of the map of the image ``inspect_image`` has ``found``; returns the file.

    ``out`` is a .png or a folder.  Its colours span the maps of the whole category, so that pictures of one
    category can be compared.

    Raises:
        RecordError: if the run has no evidence, its method has another version now, or it is a user's that
            ``users`` lacks.
    """
    observation = read_observation(run_dir)
    if not _has_evidence(observation):
        raise RecordError(f"{terminal(run_dir)}: foreign maps leave no evidence; look at the maps themselves")
    record = _record(run_dir, found["protocol"])
    check_run(record.path, observation, record.protocol)
    part, resolved = _find(run_dir, found["key"]), restore(observation, users)
    said = record.protocol
    method = override(resolved.method, said.get("map_parameters") or {})
    size = said.get("size")
    maps = EvidenceMaps(method, part, bool(said.get("exact_maps")))
    values = maps.render(0, (size, size) if isinstance(size, int) else maps.own_size(0))
    factor = SIDE / max(values.shape)
    values = resized(
        values, (max(1, round(values.shape[0] * factor)), max(1, round(values.shape[1] * factor)))
    )
    scale = _category_scale(record, found["category"])
    picture = Image.fromarray(heat(values, scale))
    draw_scale(picture, values, scale)
    path = out if out.suffix.lower() == ".png" else out / f"{Path(found['key']).stem}.png"
    write_png(path, picture, {"Software": "zsadbench", "Scale": f"{scale[0]!r} to {scale[1]!r}"})
    return path


def describe(found: Mapping[str, Any]) -> list[str]:
    """Return what ``inspect_image`` found as lines of text."""
    lines = [
        f"{found['method']} on {found['dataset']}, protocol {found['protocol']}",
        f"image     {terminal(found['key'])}",
        f"category  {found['category']} (words: {found['words'] or '-'})",
        f"label     {found['label']}",
        f"score     {_number(found['score'])}",
        f"rank      {found['rank']} of {found['of']} in its category (1 = most anomalous)",
    ]
    lines += [f"  {_number(one['score'])}  {one['label']:9}  {_pointed(one)}" for one in found["neighbours"]]
    lines += [f"map       {_number(found['map']['min'])} to {_number(found['map']['max'])}"]
    lines += ["evidence"] if found["evidence"] else []
    lines += [f"  {name:10}{_evidence_text(entry)}" for name, entry in found["evidence"].items()]
    picture = found["map"].get("picture")
    return lines + ([f"picture   {picture}"] if picture else [])


def _record(run_dir: Path, protocol: str | None) -> Record:
    """Return the record of a protocol: the one asked for, else ``reference``, else the first."""
    names = sorted(path.parent.name for path in run_dir.glob(f"*/{RECORD}"))
    if not names:
        raise RecordError(
            f"{terminal(run_dir)}: has no record yet; repeat the zsad run command, or zsad score it"
        )
    if protocol is not None and protocol not in names:
        raise UsageError(f"{terminal(run_dir)}: was not scored under '{protocol}'.{suggest(protocol, names)}")
    name = protocol or ("reference" if "reference" in names else names[0])
    return read_record(run_dir / name / RECORD)


def _unknown(
    run_dir: Path, key: str, rows: Mapping[str, ImageRow], observation: Mapping[str, Any]
) -> UsageError | RecordError:
    for failed in observation.get("failed") or ():
        if failed["key"] == key:
            return RecordError(f"{terminal(run_dir)}: this image could not be read: {failed['reason']}")
    if not key:
        return UsageError(f"name an image with --key, such as --key {terminal(next(iter(rows), 'KEY'))}")
    return UsageError(f"{terminal(run_dir)}: has no image '{terminal(key)}'.{suggest(key, rows)}")


def _has_evidence(observation: Mapping[str, Any]) -> bool:
    return not observation["method"].get("foreign")


def _find(run_dir: Path, key: str) -> Slice:
    """Return the evidence of one image as a slice of one row."""
    store = EvidenceStore(run_dir)
    for number in range(len(list(store.folder.glob("*.safetensors")))):
        part = store.read(number)
        if key in part.keys:
            row = part.keys.index(key)
            return Slice(select_rows(part.evidence, [row]), [key], [part.hashes[row]])
    raise RecordError(f"{terminal(run_dir)}: no evidence of {terminal(key)}; repeat the zsad run command")


def ranking(row: ImageRow, category: Sequence[ImageRow]) -> dict[str, Any]:
    """Return ``rank``, ``of`` and ``neighbours`` of one row among all of its category."""
    scored = sorted(
        (other for other in category if other.image_score is not None),
        key=lambda other: (-(other.image_score or 0.0), other.key),
    )
    place = scored.index(row) if row in scored else 0
    near = scored[max(0, place - NEIGHBOURS) : place + NEIGHBOURS + 1] if row in scored else []
    return {
        "rank": 1 + sum((other.image_score or 0.0) > (row.image_score or 0.0) for other in scored),
        "of": len(scored),
        "neighbours": [
            {"key": other.key, "label": _label(other), "score": other.image_score, "self": other == row}
            for other in near
        ],
    }


def _label(row: ImageRow) -> str:
    return "anomalous" if row.anomalous else "normal"


def _summary(values: Tensor) -> Any:
    """Return one image's evidence: a number, a few numbers, or the shape and range of a grid."""
    if values.ndim == 0:
        return float(values)
    if values.ndim == 1 and len(values) <= FEW:
        return values.tolist()
    array = values.double().numpy()
    return {
        "shape": list(values.shape),
        "min": float(array.min()),
        "mean": float(np.mean(array)),
        "max": float(array.max()),
    }


def _category_scale(record: Record, category: str) -> Scale:
    rows = [row for row in record.images() if row.category == category]
    lows = [row.map_min for row in rows if row.map_min is not None]
    highs = [row.map_max for row in rows if row.map_max is not None]
    return (min(lows), max(highs)) if lows and highs else (0.0, 1.0)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _pointed(neighbour: Mapping[str, Any]) -> str:
    return terminal(neighbour["key"]) + ("  <" if neighbour["self"] else "")


def _evidence_text(entry: Any) -> str:
    if isinstance(entry, Mapping):
        size = " x ".join(map(str, entry["shape"]))
        return f"{size}, {entry['min']:.6g} to {entry['max']:.6g}, mean {entry['mean']:.6g}"
    values = entry if isinstance(entry, list) else [entry]
    return " ".join(f"{value:.6g}" for value in values)
