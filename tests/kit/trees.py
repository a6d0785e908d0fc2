"""Makes dataset folders for tests: empty files with published names, because listing opens none."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from zsadbench.samples import Dataset

Triple = tuple[str, str, int]


def heading(masks: str) -> str:
    """Return the first lines of a description, the same in all tests: seven, then its blocks follow."""
    fields = 'id = "mine"\ntitle = "Mine"\ndomain = "industrial"\nlicense = "-"\nurl = "-"\n'
    return f'format = 1\n{fields}masks = "{masks}"\n'


def touch(root: Path, names: Iterable[str]) -> Path:
    """Create empty files below ``root``."""
    made: set[Path] = set()
    for name in names:
        path = root / name
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        os.close(os.open(path, os.O_CREAT))
    return root


def write(root: Path, files: dict[str, str]) -> Path:
    """Write text files below ``root``."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def triples(dataset: Dataset) -> set[Triple]:
    """Return (image, mask, label) of every sample, paths below the root."""
    return {
        (s.key, s.mask.relative_to(dataset.root).as_posix() if s.mask else "", int(s.anomalous))
        for s in dataset.samples
    }
