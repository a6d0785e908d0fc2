"""Stored evidence: fixed slices of the sample list, one safetensors file each.

A slice never crosses a category, so scores of a category read its own files alone; for an
order-dependent method the whole category is one slice, the unit of resume.  A file carries the SHA-256
of itself (with zeros where it stands), so that one wrong bit anywhere is noticed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..errors import RecordError
from ..files import digest_of, write_atomic
from ..samples import Sample

SLICE = 64

_BLANK = "0" * 64
_BEFORE = rb"{\"digest\": \""
"""What stands before the digest in the header of a file."""
_SCHEMA_1 = {"keys", "sha256", "failed"}


@dataclass
class Slice:
    """Evidence of consecutive samples of one category.

    ``evidence`` tensors have one row per key of ``keys``; ``hashes`` are SHA-256 of the image files in
    the same order; ``failed`` maps the keys of unreadable images to the reason.  ``checked`` tells whether
    its file had a digest (schema 1 had none), ``digest`` is that of the file, or over those of several.
    """

    evidence: dict[str, Tensor]
    keys: list[str]
    hashes: list[str]
    failed: dict[str, str] = field(default_factory=dict)
    checked: bool = field(default=True, compare=False)
    digest: str = field(default="", compare=False)


def plan(samples: Sequence[Sample], *, whole_categories: bool = False) -> list[range]:
    """Return the slices of a sample list (grouped by category) as ranges of its indices."""
    slices: list[range] = []
    for _, group in groupby(range(len(samples)), key=lambda i: samples[i].category):
        indices = list(group)
        step = len(indices) if whole_categories else SLICE
        slices += [range(start, min(start + step, indices[-1] + 1)) for start in indices[::step]]
    return slices


class EvidenceStore:
    """The evidence folder of one observation."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "evidence"

    def path(self, number: int) -> Path:
        """Return the file of slice ``number``."""
        return self.folder / f"{number:05d}.safetensors"

    def write(self, number: int, part: Slice) -> None:
        """Write a slice, whole or not at all.

        Raises:
            RecordError: if the folder cannot be written or the disk is full.
        """
        self.put(number, encoded(part))

    def put(self, number: int, content: bytes) -> None:
        """Write what ``encoded`` made of a slice, whole or not at all.

        Raises:
            RecordError: if the folder cannot be written or the disk is full.
        """
        write_atomic(self.path(number), content)

    def content(self, number: int) -> bytes:
        """Return what the file of a slice holds.

        Raises:
            RecordError: if it is missing or cannot be read.
        """
        path = self.path(number)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise RecordError(
                f"{path}: this slice of evidence is missing; repeat the zsad run command, it observes only "
                "what is missing"
            ) from None
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None

    def read(self, number: int, *, tensors: bool = True) -> Slice:
        """Read a slice, the whole of it or with ``tensors=False`` all but the evidence itself.

        Raises:
            RecordError: if the file is missing or damaged; the same run again observes that slice anew.
        """
        path, content = self.path(number), self.content(number)
        try:
            return _decoded(content, tensors)
        except Exception as error:  # safetensors raises a type of its own
            raise RecordError(
                f"{path}: damaged evidence ({error}); repeat the zsad run command, it observes only this "
                "slice again"
            ) from None

    def find(self, number: int, keys: Sequence[str]) -> Slice | None:
        """Return slice ``number`` without its tensors if it is whole: every key is observed or failed."""
        try:
            part = self.read(number, tensors=False)
        except RecordError:
            return None
        good = [key for key in keys if key not in part.failed]
        if part.keys != good or len(good) + len(part.failed) != len(keys):
            return None
        # Of a million images and many methods, texts are held once.
        return replace(part, keys=good, hashes=[*map(sys.intern, part.hashes)])

    def copy(self, number: int, other: EvidenceStore) -> None:
        """Take over slice ``number`` of another observation as it is.

        Raises:
            RecordError: if it is damaged, or the folder cannot be written.
        """
        self.write(number, other.read(number))

    def cut(self, slices: int) -> None:
        """Remove what lies beyond so many slices: evidence of images that are no longer listed."""
        for path in self.folder.glob("*.safetensors"):
            if path.stem.isdecimal() and int(path.stem) >= slices:
                path.unlink(missing_ok=True)

    def category(self, numbers: Sequence[int]) -> Slice:
        """Return the slices ``numbers`` joined into one.

        Raises:
            RecordError: if a slice is missing or damaged, or holds evidence of other shapes than the first.
        """
        parts = [self.read(number) for number in numbers]
        filled = [part for part in parts if part.keys]
        names = list(filled[0].evidence) if filled else []
        shapes = [shapes_of(part.evidence) for part in filled]
        if other := next((found for found in shapes if found != shapes[0]), None):
            raise RecordError(
                f"{self.folder}: holds evidence of {shapes[0]} for some images and of {other} for others; "
                "the method must keep the same of every image"
            )
        return Slice(
            {name: torch.cat([part.evidence[name] for part in filled]) for name in names},
            [key for part in parts for key in part.keys],
            [digest for part in parts for digest in part.hashes],
            {key: reason for part in parts for key, reason in part.failed.items()},
            digest=joined_digest(parts),
        )


class Kept(EvidenceStore):
    """Evidence in memory: what the files of a run's folder would hold, by number."""

    def __init__(self, run_dir: Path, contents: Mapping[int, bytes] | None = None) -> None:
        super().__init__(run_dir)
        self.contents = dict(contents or {})

    def put(self, number: int, content: bytes) -> None:
        """Keep what ``encoded`` made of a slice."""
        self.contents[number] = content

    def content(self, number: int) -> bytes:
        """Return what was kept of a slice."""
        return self.contents[number]


def encoded(part: Slice) -> bytes:
    """Return the content of a slice's file."""
    # One entry, because safetensors writes several in no fixed order and files must be reproducible.
    about = {"digest": _BLANK, "keys": part.keys, "sha256": part.hashes, "failed": part.failed}
    header = {"samples": json.dumps(about, ensure_ascii=False)}
    tensors = {name: tensor.contiguous() for name, tensor in part.evidence.items()}
    content = save(tensors, metadata=header)
    before, after = _around_digest(content)
    return before + _digest(before, after).encode() + after


def joined_digest(parts: Sequence[Slice]) -> str:
    """Return the digest over the files of some slices."""
    return digest_of([part.digest for part in parts])


def _decoded(content: bytes, tensors: bool) -> Slice:
    """Return what the bytes of a slice's file say; ValueError where they are not what was written."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["samples"])
    checked = about.keys() != _SCHEMA_1
    if checked and about["digest"] != _digest(*_around_digest(content)):
        raise ValueError("its content does not have the digest it was written with")
    rows = len(about["keys"])
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    if len(about["sha256"]) != rows or any(shape[0] != rows for shape in shapes):
        raise ValueError("its rows do not match its keys")
    evidence = load(content) if tensors or not checked else {}  # which also finds a file that is cut short
    digest = about["digest"] if checked else hashlib.sha256(content).hexdigest()
    return Slice(evidence, about["keys"], about["sha256"], dict(about["failed"]), checked, digest)


def _around_digest(content: bytes) -> tuple[bytes, bytes]:
    """Return the bytes of a slice's file before and after its digest."""
    start = content.index(_BEFORE) + len(_BEFORE)
    return content[:start], content[start + len(_BLANK) :]


def _digest(before: bytes, after: bytes) -> str:
    total = hashlib.sha256(before)
    total.update(_BLANK.encode())
    total.update(after)
    return total.hexdigest()


def by_category(samples: Sequence[Sample], slices: Sequence[range]) -> Iterator[tuple[str, list[int]]]:
    """Yield each category with the numbers of its slices."""
    numbered = ((samples[part.start].category, number) for number, part in enumerate(slices))
    for category, group in groupby(numbered, key=lambda item: item[0]):
        yield category, [number for _, number in group]


def select_rows(evidence: Mapping[str, Tensor], rows: Sequence[int] | slice) -> dict[str, Tensor]:
    """Return the given rows of every tensor (N, ...)."""
    return {name: tensor[rows] for name, tensor in evidence.items()}


def shapes_of(evidence: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of one row of every tensor (N, ...)."""
    return {name: tuple(value.shape[1:]) for name, value in evidence.items()}


def undefined(values: Tensor, keys: Sequence[str]) -> str:
    """Return the key of the first row of ``values`` (N, ...) that is not finite; else nothing."""
    finite = torch.isfinite(values.flatten(1) if values.ndim > 1 else values[:, None]).all(dim=1)
    return "" if bool(finite.all()) else keys[int((~finite).nonzero()[0])]
