"""Stored evidence: fixed slices of the sample list, one safetensors file each.

A slice never crosses a category, so scores of a category read its own files alone; for an
order-dependent method the whole category is one slice, the unit of resume.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import RecordError
from ..files import write_atomic
from ..samples import Sample

SLICE = 64


@dataclass
class Slice:
    """Evidence of consecutive samples of one category.

    ``evidence`` tensors have one row per key of ``keys``; ``hashes`` are SHA-256 of the image files in
    the same order; ``failed`` maps the keys of unreadable images to the reason.
    """

    evidence: dict[str, Tensor]
    keys: list[str]
    hashes: list[str]
    failed: dict[str, str] = field(default_factory=dict)


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
        # One entry, because safetensors writes several in no fixed order and files must be reproducible.
        about = {"keys": part.keys, "sha256": part.hashes, "failed": part.failed}
        header = {"samples": json.dumps(about, ensure_ascii=False)}
        tensors = {name: tensor.contiguous() for name, tensor in part.evidence.items()}
        write_atomic(self.path(number), save(tensors, metadata=header))

    def read(self, number: int) -> Slice:
        """Read a slice.

        Raises:
            RecordError: if the file is missing or damaged; the same run again observes that slice anew.
        """
        path = self.path(number)
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["samples"])
                evidence = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            part = Slice(evidence, about["keys"], about["sha256"], about["failed"])
        except FileNotFoundError:
            raise RecordError(
                f"{path}: this slice of evidence is missing; repeat the zsad run command, it observes only "
                "what is missing"
            ) from None
        except Exception as error:  # safetensors raises a type of its own
            raise RecordError(
                f"{path}: damaged evidence ({error}); repeat the zsad run command, it observes only this "
                "slice again"
            ) from None
        if any(len(tensor) != len(part.keys) for tensor in evidence.values()):
            raise RecordError(
                f"{path}: damaged evidence (rows do not match its keys); delete it and repeat the run"
            )
        return part

    def is_whole(self, number: int, keys: Sequence[str]) -> bool:
        """Tell whether slice ``number`` holds evidence of all ``keys``: failed images are tried again."""
        if not self.path(number).is_file():
            return False
        try:
            part = self.read(number)
        except RecordError:
            return False
        return part.keys == list(keys)

    def category(self, numbers: Sequence[int]) -> Slice:
        """Return the slices ``numbers`` joined into one."""
        parts = [self.read(number) for number in numbers]
        filled = [part for part in parts if part.keys]
        names = list(filled[0].evidence) if filled else []
        return Slice(
            {name: torch.cat([part.evidence[name] for part in filled]) for name in names},
            [key for part in parts for key in part.keys],
            [digest for part in parts for digest in part.hashes],
            {key: reason for part in parts for key, reason in part.failed.items()},
        )


def by_category(samples: Sequence[Sample], slices: Sequence[range]) -> Iterator[tuple[str, list[int]]]:
    """Yield each category with the numbers of its slices."""
    numbered = ((samples[part.start].category, number) for number, part in enumerate(slices))
    for category, group in groupby(numbered, key=lambda item: item[0]):
        yield category, [number for _, number in group]


def select_rows(evidence: Mapping[str, Tensor], rows: Sequence[int] | slice) -> dict[str, Tensor]:
    """Return the given rows of every tensor."""
    return {name: tensor[rows] for name, tensor in evidence.items()}
