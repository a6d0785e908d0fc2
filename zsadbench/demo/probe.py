"""A quick look at a miniature CLIP under training: does it find faults of categories it has never seen?"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor

from .factory import HELD_OUT, Picture, bad, faults_of, generator, good
from .student import Student, normalised

PROBE_SEED = 1


@cache
def pictures(category: str, each: int = 12) -> list[Picture]:
    """Return ``each`` sound and ``each`` faulty pictures of ``category``."""
    faults = faults_of(category)
    return [good(category, generator(PROBE_SEED, category, k)) for k in range(each)] + [
        bad(category, generator(PROBE_SEED, category, each + k), faults[k % len(faults)]) for k in range(each)
    ]


@torch.inference_mode()
def report(student: Student) -> str:
    """Return image AUROC and pixel AUROC of plain patch tokens and of the value-value stream, in percent."""
    rows = np.array([aurocs(student, category) for category in HELD_OUT])
    image, plain, local = 100 * rows.mean(axis=0)
    low, high = 100 * rows[:, 0].min(), 100 * rows[:, 0].max()
    return (
        f"held out: image {image:.1f} ({low:.0f} to {high:.0f}), plain {plain:.1f}, value-value {local:.1f}"
    )


def aurocs(student: Student, category: str) -> tuple[float, float, float]:
    """Return image AUROC, pixel AUROC of plain patch tokens, and of the value-value stream."""
    shown = pictures(category)
    words = category.replace("_", " ")
    texts = F.normalize(
        student.read([f"a photo of a normal {words}", f"a photo of an anomalous {words}"]), dim=-1
    )
    direction = texts[1] - texts[0]
    images = normalised(np.stack([picture.image for picture in shown]))
    features, local, _ = student.see(images)
    x = student.vision.embed(images)
    for block in student.vision.blocks:
        x = block(x)
    masks = np.stack([picture.mask for picture in shown])
    score = F.normalize(features, dim=-1) @ direction
    plain = student.vision.project(x[:, 1:])
    labels = [picture.fault != "good" for picture in shown]
    return (
        float(roc_auc_score(labels, score)),
        pixels(plain, direction, masks),
        pixels(local, direction, masks),
    )


def pixels(
    tokens: Tensor, direction: Tensor, masks: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> float:
    """Return the pixel AUROC of patch features (B, N, C) against masks (B, H, W)."""
    grid = F.normalize(tokens, dim=-1) @ direction
    side = round(grid.shape[1] ** 0.5)
    maps = F.interpolate(grid.view(-1, 1, side, side), masks.shape[1:], mode="bilinear")
    return float(roc_auc_score(masks.ravel(), maps.numpy().ravel()))
