"""What a dataset is once its files are found: samples, and what is wrong with it."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from .files import sha256_of

Masks = Literal["required", "optional", "none"]
Severity = Literal["error", "warning", "note"]


def nfc(text: str) -> str:
    """Return ``text`` in Unicode form NFC: archives made on macOS hold names in NFD."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a dataset: which file, what, and what to do about it."""

    severity: Severity
    key: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        place = f"{self.key}: " if self.key and not self.reason.startswith(self.key) else ""
        return f"{self.severity}: {place}{self.reason}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Expect:
    """Counts of the full public test set: (normal, anomalous), in all and per category where known."""

    total: tuple[int, int]
    categories: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a dataset."""

    key: str
    category: str
    anomalous: bool
    image: Path
    mask: Path | None
    specie: str = ""
    groups: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What it belongs to beside its category: a lighting, a view, an object. By name of the group."""
    saturation: Path | None = field(default=None, compare=False)
    """The file that says how much of each of its defects must be found, where there is one."""


@dataclass(frozen=True)
class Dataset:
    """A description resolved against a folder: the evaluated split as a list of samples.

    ``samples`` are in class order, then by key.  ``categories`` has only those with samples.
    ``backbone`` is the CLIP that runs use unless another is named (empty: the method's own).
    ``problems`` is everything that was found while listing; samples with an error are left out.
    ``cut`` tells that a limit left samples out.
    """

    id: str
    title: str
    domain: str
    license: str
    url: str
    root: Path
    masks: Masks
    mask_positive: str | tuple[int, ...]
    mask_mismatch: str
    empty_mask: str
    categories: tuple[str, ...]
    words: Mapping[str, str]
    samples: tuple[Sample, ...] = field(repr=False)
    split: str = "test"
    expect: Expect | None = None
    backbone: str = ""
    problems: tuple[Problem, ...] = field(default=(), repr=False)
    cut: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was noticed or left out while listing, one line each."""
        return tuple(map(str, self.problems))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over key, category, label and mask of the samples; the same on every machine."""
        total = hashlib.sha256()
        for s in self.samples:
            mask = "" if s.mask is None else s.mask.relative_to(self.root).as_posix()
            line = "\t".join((s.key, s.category, str(int(s.anomalous)), nfc(mask)))
            total.update(line.encode(errors="surrogatepass") + b"\n")
        return total.hexdigest()

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the file of every image by its key, as it was when this was first asked for."""
        return {s.key: sha256_of(s.image) for s in self.samples if s.image.is_file()}

    def backbone_or(self, asked: str | None) -> str | None:
        """Return the CLIP that was ``asked`` for, else the dataset's, else None: the method's own."""
        return asked or self.backbone or None

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return (normal, anomalous) samples of each category."""
        found = Counter((s.category, s.anomalous) for s in self.samples)
        return {c: (found[c, False], found[c, True]) for c in self.categories}
