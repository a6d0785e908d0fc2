"""A generated data set as large as VisA's test images: as many per category, as large, as JPEG files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {
    "candle": (100, 100, 1284, 1168),
    "capsules": (60, 100, 1500, 1000),
    "cashew": (50, 100, 1274, 1176),
    "chewinggum": (50, 100, 1342, 1118),
    "fryum": (50, 100, 1500, 1000),
    "macaroni1": (100, 100, 1500, 1000),
    "macaroni2": (100, 100, 1500, 1000),
    "pcb1": (100, 100, 1404, 1070),
    "pcb2": (100, 100, 1404, 1070),
    "pcb3": (101, 100, 1562, 960),
    "pcb4": (101, 100, 1358, 1104),
    "pipe_fryum": (50, 100, 1300, 1154),
}
"""Normal and anomalous test images of each category, and the usual width and height."""
IMAGES = sum(normal + anomalous for normal, anomalous, _, _ in SIZES.values())
PICTURES = 4
"""Different pictures a category; the other files differ in a comment only, which costs decoding nothing."""


def write_visa(folder: Path, images: int = IMAGES, shrink: int = 1) -> int:
    """Write about ``images`` of VisA's images in MVTec layout, a part of each category; return how many.

    ``shrink`` divides the sides of the pictures.
    """
    with ThreadPoolExecutor() as pool:
        return sum(pool.map(lambda name: _category(folder / name, name, images / IMAGES, shrink), SIZES))


def _category(folder: Path, name: str, part: float, shrink: int) -> int:
    normal, anomalous, width, height = SIZES[name]
    counts = {"good": max(1, round(normal * part)), "bad": max(1, round(anomalous * part))}
    pictures = list(
        _pictures(np.random.default_rng(sorted(SIZES).index(name)), width // shrink, height // shrink)
    )
    for kind, count in counts.items():
        (folder / "test" / kind).mkdir(parents=True)
        for number in range(count):
            picture, mask = pictures[number % PICTURES][kind == "bad"], pictures[number % PICTURES][2]
            (folder / "test" / kind / f"{number:03d}.JPG").write_bytes(
                _commented(picture, f"{kind} {number}")
            )
            if kind == "bad":
                (folder / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
                (folder / "ground_truth" / kind / f"{number:03d}.png").write_bytes(mask)
    return sum(counts.values())


def _pictures(rng: np.random.Generator, width: int, height: int) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield smooth, slightly noisy pictures: normal, with a dark square, and the mask of the square."""
    for _ in range(PICTURES):
        coarse = Image.fromarray(rng.integers(60, 200, (12, 12, 3), np.uint8)).resize((width, height))
        normal = np.clip(np.asarray(coarse, np.int16) + rng.integers(-6, 7, (height, width, 1)), 0, 255)
        side = max(2, height // 12)
        top, left = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
        anomalous, mask = normal.copy(), np.zeros((height, width), np.uint8)
        anomalous[top : top + side, left : left + side] //= 3
        mask[top : top + side, left : left + side] = 255
        yield (
            _encoded(normal.astype(np.uint8), "JPEG"),
            _encoded(anomalous.astype(np.uint8), "JPEG"),
            _encoded(mask, "PNG"),
        )


def _encoded(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=92)
    return file.getvalue()


def _commented(jpeg: bytes, text: str) -> bytes:
    """Return a JPEG file with a comment behind its first marker."""
    comment = text.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]
