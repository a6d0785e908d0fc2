"""The demo as a folder: a tree in the layout of MVTec AD, written from a seed.

``category/test/good/NNN.png``, ``category/test/<fault>/NNN.png`` and
``category/ground_truth/<fault>/NNN_mask.png``.  Same seed, same bytes (with the same library versions).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import DatasetError, UsageError
from ..files import draft_folder
from .factory import AUXILIARY, HELD_OUT, Picture, bad, faults_of, generator, good

VERSION = 3
"""Of the rendered sets: pictures that differ are another version, in a folder of their own in the cache."""

NORMAL, ANOMALOUS = 12, 18
"""Pictures of a category."""


def categories_of(auxiliary: bool) -> tuple[str, ...]:
    """Return the categories of the auxiliary or of the held-out set."""
    return AUXILIARY if auxiliary else HELD_OUT


def write_demo(
    out: Path, *, auxiliary: bool = False, seed: int = 0, say: Callable[[str], None] = lambda line: None
) -> int:
    """Render the held-out (or the auxiliary) set into the empty or new folder ``out``; return its images.

    Raises:
        UsageError: if ``out`` holds something already, or cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: exists and is not an empty folder; choose another with --out")
    try:
        return _render(out, auxiliary, seed, say)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}); choose another with --out") from error


def _render(out: Path, auxiliary: bool, seed: int = 0, say: Callable[[str], None] = lambda line: None) -> int:
    total = 0
    for category in categories_of(auxiliary):
        total += _write_category(out / category, category, seed)
        say(f"{category}: {NORMAL} normal, {ANOMALOUS} anomalous")
    return total


def ensure_demo(cache: Path, *, auxiliary: bool = False) -> Path:
    """Return the folder of the demo set below ``cache``, rendering it on first use (a few seconds).

    Raises:
        DatasetError: if the cache cannot be written.
    """
    name = "demo-aux" if auxiliary else "demo"
    final = cache / "demo" / f"{name}-{VERSION}"
    if not final.is_dir():
        try:
            with draft_folder(final) as draft:
                _render(draft, auxiliary)
        except OSError as error:
            raise DatasetError(
                f"{cache}: the demo cannot be rendered into this cache ({error.strerror or error}); set "
                "ZSAD_CACHE to a folder that can be written, or write it with "
                f"`zsad demo data{' --aux' * auxiliary} --out DIR` and give --data DIR"
            ) from None
    return final


def pictures(category: str, seed: int) -> list[Picture]:
    """Return the pictures of a category: sound ones, then its faults in turn."""
    faults = faults_of(category)
    sound = [good(category, generator(seed, category, k)) for k in range(NORMAL)]
    return sound + [
        bad(category, generator(seed, category, NORMAL + k), faults[k % len(faults)])
        for k in range(ANOMALOUS)
    ]


def _write_category(folder: Path, category: str, seed: int) -> int:
    numbers: Counter[str] = Counter()
    shown = pictures(category, seed)
    for picture in shown:
        stem = f"{numbers[picture.fault]:03d}"
        numbers[picture.fault] += 1
        _write_png(folder / "test" / picture.fault / f"{stem}.png", picture.image[..., ::-1])
        if picture.fault != "good":
            mask = picture.mask.astype(np.uint8) * 255
            _write_png(folder / "ground_truth" / picture.fault / f"{stem}_mask.png", mask)
    return len(shown)


def _write_png(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(image))[1].tobytes())
