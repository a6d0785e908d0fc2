"""A method in a user's file: how bright each patch is.  Tests change a line of it."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F

from zsadbench.errors import MethodError
from zsadbench.maps import render
from zsadbench.method import Backbone, Preprocess


@dataclass(frozen=True)
class Mine:
    """Brightness as anomaly. The second sentence is no title."""

    map_parameters: ClassVar[tuple[str, ...]] = ("sigma",)

    backbone: Backbone = Backbone("tiny-l14", "random")
    preprocess: Preprocess = Preprocess(84)
    normal: tuple[str, ...] = ("a dark {}",)
    anomalous: tuple[str, ...] = ("a bright {}",)
    sigma: float = 2.0
    gain: float = 1.0
    layers: tuple[int, ...] = (6, 12, 18, 24)
    depth: int = 19
    window: tuple[int, int] = (2, 3)
    limit: int | None = None
    rule: Literal["mean", "max"] = "max"
    fast: bool = True
    note: str = "plain"

    def prepare(self, clip, wordings):
        return Eyes(self, tuple(wordings))

    def maps(self, evidence, size):
        return render(evidence["map"], size, sigma=self.sigma * size[0] / self.preprocess.size)

    def image_scores(self, evidence, extrema):
        return evidence["score"]


class Eyes:
    def __init__(self, method, categories):
        self.method, self.categories, self.seen = method, categories, 0

    def observe(self, batch):
        for category in batch.categories:
            if category not in self.categories:
                raise MethodError(f"category '{category}' was not prepared")
        images = batch.images
        grid = self.method.gain * F.avg_pool2d(images[:, 0].mean(1, keepdim=True), 14)[:, 0].float()
        return {"map": grid, "score": grid.flatten(1).amax(1)}
'''

RELATING = """    @property
    def fewest(self):
        return 2

    def relate(self, evidence, device, tell):
        tell(1.0)
        mean = evidence["map"].float().mean(0, keepdim=True)
        return {"map": evidence["map"].float() - mean, "score": evidence["score"]}

    def image_scores"""
"""Makes it a method that takes the mean map of a category from every map."""


def write(folder: Path, old: str = "", new: str = "") -> str:
    """Write the method with ``old`` replaced by ``new``; return its spec."""
    assert old in SOURCE, old
    path = folder / "mine.py"
    path.write_text(SOURCE.replace(old, new, 1) if old else SOURCE)
    return f"{path}:Mine"


def write_relating(folder: Path, old: str = "", new: str = "") -> str:
    """Write the method that relates images, with ``old`` of ``RELATING`` replaced by ``new``."""
    assert old in RELATING, old
    return write(folder, "    def image_scores", RELATING.replace(old, new, 1) if old else RELATING)
