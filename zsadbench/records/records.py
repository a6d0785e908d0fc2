"""Records on disk: the numbers an observation gave under one protocol.

A run folder holds ``observation.json``; beside it every protocol has a folder with ``record.json``
(the whole truth, full precision), ``categories.csv`` (the same numbers for a spreadsheet) and
``images.csv`` (one row per image).  ``record.json`` is written last and holds the digests of both tables,
so a record that exists is whole.  Means over categories are computed when a record is read, never stored.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RecordError
from ..files import digest_of, hash_file, write_atomic
from ..metrics import MAD, SEVEN, mean_of_seven
from .files import (
    EDITED,
    RESCORE,
    SCHEMA,
    UNKNOWN,
    RecordWarning,
    check_record,
    encode,
    is_metric,
    is_sealed,
    metric_order,
    plain,
    read_json,
    sealed,
    timeless,
)
from .groups import Group, rules_of, shared_rules
from .tables import CATEGORIES_CSV, IMAGE_COLUMNS, IMAGES_CSV, ImageRow, read_images, table

RECORD = "record.json"
NEEDS_OTHERS = frozenset({"transductive", "related maps"})
"""Marks of numbers that an image alone does not have."""


class Mean(NamedTuple):
    """A mean over categories: its value (None when no category has one) and the categories it used."""

    value: float | None
    used: int
    total: int


@dataclass(frozen=True)
class Record:
    """One method's numbers for one dataset under one protocol, as ``record.json`` holds them.

    ``edited`` names the files that were changed after they were written: their seal is broken.  ``notes``
    are what the user should be told of how this record came about; ``kept`` is whether it stood there
    before, and nothing that its numbers depend on has changed since.
    """

    path: Path
    content: Mapping[str, Any] = field(repr=False)
    edited: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    kept: bool = field(default=False, compare=False, kw_only=True)

    @property
    def digest(self) -> str:
        """Digest of all that the record says, except times."""
        return str(self.content["record"])

    @property
    def observation(self) -> Mapping[str, Any]:
        """Whole content of the observation this record was computed from."""
        observation: Mapping[str, Any] = self.content["observation"]
        return observation

    @property
    def observation_digest(self) -> str:
        """Digest of what was observed: method, parameters, weights, samples and number type."""
        return str(self.observation["observation"])

    @property
    def method_id(self) -> str:
        """Id of the method's card, or the name given to foreign maps."""
        return str(self.observation["method"]["id"])

    @property
    def variant(self) -> str:
        """Name of the variant; ``reference`` when it is the authors' own."""
        return str(self.observation["method"].get("variant") or "reference")

    @property
    def method(self) -> str:
        """``id`` or ``id@variant``."""
        return self.method_id if self.variant == "reference" else f"{self.method_id}@{self.variant}"

    @property
    def masks_digest(self) -> str:
        """Digest of the masks and how they are read; ``unknown`` where schema 1 did not keep it."""
        return str(self.content.get("masks") or UNKNOWN)

    @property
    def backbone(self) -> str:
        """``architecture/weights``, without the seed of random ones; empty for foreign maps."""
        backbone = self.observation["backbone"] or {}
        weights = "random" if self.untrained else str(backbone.get("weights") or "")
        return "/".join(filter(None, [str(backbone.get("name") or ""), weights]))

    @property
    def untrained(self) -> bool:
        """Whether the backbone has random weights."""
        weights = (self.observation["backbone"] or {}).get("weights")
        return str(weights).partition(":")[0] == "random"

    @property
    def dataset(self) -> str:
        """Id of the dataset."""
        return str(self.observation["dataset"]["id"])

    @property
    def protocol(self) -> Mapping[str, Any]:
        """How evidence became numbers."""
        protocol: Mapping[str, Any] = self.content["protocol"]
        return protocol

    @property
    def protocol_label(self) -> str:
        """Id and version, ``common-1`` or ``reference-1``."""
        name, version = str(self.protocol["id"]), self.protocol["version"]
        return name if name.endswith(f"-{version}") else f"{name}-{version}"

    @property
    def rules(self) -> str:
        """Evaluation size, mask rule and whatever else decides the numbers, as text."""
        return rules_of(self.protocol)

    @property
    def legacy(self) -> bool:
        """Whether approximate metrics of other code bases stand in place of exact ones."""
        return bool(self.protocol.get("legacy"))

    @property
    def group(self) -> Group:
        """The records this one may be compared with."""
        dataset = self.observation["dataset"]
        positive = self.protocol.get("mask_positive", dataset.get("mask_positive", ""))
        return Group(
            dataset=self.dataset,
            dataset_digest=str(dataset["digest"]),
            contents_digest=str(dataset["contents"]),
            protocol=str(self.protocol["id"]),
            protocol_version=int(self.protocol["version"]),
            mask_positive=str(positive),
            rules=shared_rules(self.protocol["id"], self.rules),
            metric_version=int(self.content["metric_version"]),
            masks_digest=self.masks_digest,
        )

    @property
    def seed(self) -> int | None:
        """Seed of the run, else of the method's parameters, else of random weights."""
        parameters = self.observation["method"].get("parameters") or {}
        for seed in (self.observation.get("seed"), parameters.get("seed")):
            if seed is not None:
                return int(seed)
        if not self.untrained:
            return None
        seed = str(self.observation["backbone"]["weights"]).partition(":")[2]
        return int(seed) if seed.isdecimal() else 0

    @property
    def created(self) -> str:
        """When the record was written, ISO 8601."""
        return str(self.content.get("created", ""))

    @property
    def selection(self) -> Mapping[str, Any]:
        """What restricted the dataset (``limit``, ``categories``); empty when it was whole."""
        chosen = self.observation["dataset"].get("selection") or {}
        return {key: value for key, value in chosen.items() if value}

    @property
    def failed(self) -> int:
        """Number of images left out because they could not be read in mid-run."""
        return len(self.observation.get("failed") or ())

    @property
    def skipped(self) -> int:
        """Number of files left out beforehand because the user said so."""
        return len(self.observation["dataset"].get("skipped") or ())

    @cached_property
    def categories(self) -> Mapping[str, Mapping[str, Any]]:
        """Rows of numbers by category, in the order of the dataset."""
        return {row["category"]: row for row in self.content["categories"]}

    @property
    def metrics(self) -> list[str]:
        """Ids of all metrics any category has a key for, in the usual order."""
        present = {key for row in self.categories.values() for key in row if is_metric(key)}
        return sorted(present, key=metric_order)

    @property
    def marks(self) -> list[str]:
        """Words that must stand beside the numbers, in a fixed order."""
        method = self.observation["method"]
        image_rule = self.protocol.get("image_score", "reference")
        found = {
            "transductive": bool(method.get("transductive")) and image_rule == "reference",
            "related maps": bool(method.get("relates")),
            "constants per dataset": bool(method.get("constants_per_dataset")),
            "order-dependent": bool(method.get("order_dependent")),
            "subset": bool(self.selection),
            f"{self.failed} failed": self.failed > 0,
            f"{self.skipped} skipped": self.skipped > 0,
            "legacy": self.legacy,
            "custom": self.protocol["id"] == "custom",
            "random weights": self.untrained,
            "changed code": bool(self.content.get("changed_code")),
            "incomplete": self.observation.get("complete") is False,
            EDITED: bool(self.edited),
        }
        marks = [mark for mark, holds in found.items() if holds]
        extra = [str(mark) for mark in self.observation.get("marks") or ()]
        return list(dict.fromkeys(marks + [mark for mark in extra if mark == EDITED or mark not in found]))

    @property
    def inductive(self) -> bool:
        """Whether the scores and the map of an image need no other test image."""
        return NEEDS_OTHERS.isdisjoint(self.marks)

    def value(self, category: str, metric: str) -> float | None:
        """Return one number in [0, 1], or None where it is undefined or was not computed.

        ``mad`` is made of what the record holds (:func:`zsadbench.metrics.mean_of_seven`).
        """
        row = self.categories[category]
        value = mean_of_seven(row) if metric == MAD else row.get(metric)
        return None if value is None else float(value)

    def threshold(self, category: str, metric: str) -> float | None:
        """Return the threshold that a metric was taken at, where it is not chosen by test labels."""
        found = self.categories[category].get(f"{metric}_threshold")
        return float(found) if isinstance(found, int | float) else None

    def mean(self, metric: str) -> Mean:
        """Return the unweighted mean over the categories in which the metric is defined."""
        values = [value for name in self.categories if (value := self.value(name, metric)) is not None]
        mean = math.fsum(values) / len(values) if values else None
        return Mean(mean, len(values), len(self.categories))

    def reasons(self, metric: str) -> list[str]:
        """Return why the metric is undefined somewhere, each reason once."""
        names = SEVEN if metric == MAD else (metric,)
        said = (row.get("reasons", {}).get(name) for row in self.categories.values() for name in names)
        return list(dict.fromkeys(str(reason) for reason in said if reason))

    def images(self) -> list[ImageRow]:
        """Read the rows of ``images.csv``, which lies beside the record."""
        return read_images(self.path.parent)


def record_digest(content: Mapping[str, Any]) -> str:
    """Return the digest of a record: all it says of observation, protocol and numbers, but no time."""
    if content["schema"] < 2:
        keys = ("protocol", "metric_version", "categories")
        shown = {key: content[key] for key in keys}
        return digest_of({"observation": content["observation"]["observation"], **shown})
    bare = {key: value for key, value in timeless(content).items() if key != "record"}
    return digest_of({**bare, "observation": timeless(content["observation"])})


def write_record(
    run_dir: Path,
    protocol_id: str,
    record: Mapping[str, Any],
    images: Iterable[Mapping[str, Any]],
) -> Record:
    """Write ``record.json``, ``categories.csv`` and ``images.csv`` into ``run_dir / protocol_id``.

    ``schema``, ``record`` (the digest) and, where it is missing, ``created`` are filled in.  Rows of
    ``images`` have the keys of :data:`IMAGE_COLUMNS`; more keys become more columns.

    Raises:
        RecordError: if a key is missing, a metric is neither null nor in [0, 1], or a file cannot be
            written.
    """
    folder = run_dir / protocol_id
    path = folder / RECORD
    now = datetime.now(UTC).isoformat(timespec="seconds")
    first = {"schema": SCHEMA, "record": ""}
    content = plain(path, first | {"created": now} | dict(record) | first)
    check_record(path, content, "correct what is written")
    rows = [{key: value for key, value in row.items() if key != "reasons"} for row in content["categories"]]
    tables = {
        IMAGES_CSV: table(folder / IMAGES_CSV, IMAGE_COLUMNS, images),
        CATEGORIES_CSV: table(folder / CATEGORIES_CSV, ("category",), rows),
    }
    digests = {name: hashlib.sha256(text).hexdigest() for name, text in tables.items()}
    content["tables"] = digests
    content["record"] = record_digest(content)
    content = sealed(content)
    if any(_digest(folder / name) not in (None, digest) for name, digest in digests.items()):
        path.unlink(missing_ok=True)  # a record never stands over tables of another one
    for name, text in tables.items():
        write_atomic(folder / name, text)
    write_atomic(path, encode(content))
    return Record(path, content)


def read_record(path: Path) -> Record:
    """Return the record in a ``record.json``; what was changed after it was written is in ``edited``.

    Raises:
        NewerSchema: if a newer zsadbench wrote it.
        RecordError: if the file is missing, cut short, lacks a key, or is of schema 1 and does not have
            the digest it was written with.
    """
    content = read_json(path, RESCORE)
    check_record(path, content, RESCORE)
    whole = is_sealed(content) and content["record"] == record_digest(content)
    if content["schema"] < 2:
        if not whole:
            raise RecordError(f"{path}: was changed after it was written (its digest differs); {RESCORE}.")
        return Record(path, content)
    digests = content.get("tables") or {}
    tables = [
        name for name in (IMAGES_CSV, CATEGORIES_CSV) if _digest(path.parent / name) != digests.get(name, "")
    ]
    edited = ((path.name,) if not whole else ()) + tuple(tables)
    return Record(path, content, edited, _edit_notes(path, edited))


def _edit_notes(path: Path, edited: Sequence[str]) -> tuple[str, ...]:
    if not edited:
        return ()
    return (
        f"{path}: {' and '.join(edited)} changed after it was written (the seal is broken), as its mark "
        f"'{EDITED}' says; run `zsad score` on the run folder again, it needs no CLIP",
    )


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a table; None where there is none."""
    try:
        return hash_file(path) if path.is_file() else None
    except OSError:
        return None


def find_records(paths: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """Return the records at or below ``paths``, by path, and one line for each that cannot be read.

    Raises:
        RecordError: if a path does not exist or is a file of another name.
    """
    found: list[Record] = []
    problems: list[str] = []
    for path in sorted({file.parent.resolve(): file for given in paths for file in _files(given)}.values()):
        try:
            found.append(read_record(path))
        except RecordError as error:
            problems.append(str(error))
    return found, problems


def load_records(paths: Sequence[Path]) -> list[Record]:
    """Return the records at or below ``paths``; what is wrong with one is a :class:`RecordWarning`.

    Raises:
        RecordError: if a path does not exist or is a file of another name.
    """
    found, problems = find_records(paths)
    for problem in [*problems, *(note for record in found for note in record.notes)]:
        warnings.warn(problem, RecordWarning, stacklevel=2)
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        # Whatever bears the name, a broken link too: it is named where it cannot be read.
        return [Path(place, RECORD) for place, *inside in os.walk(path) if any(RECORD in of for of in inside)]
    if not path.exists():
        raise RecordError(f"{path}: no such folder; name one that `zsad run` wrote, by default results/.")
    if path.name != RECORD:
        raise RecordError(f"{path}: not a record; name a folder of results or a {RECORD}.")
    return [path]
