"""Prepared images become a batch on the device: the one step of the loader that needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..inputs import Preprocess
from .loader import Prepared
from .transfer import Lanes


def to_batch_images(
    prepared: Sequence[Prepared],
    spec: Preprocess,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    lanes: Lanes | None = None,
) -> Tensor:
    """Return normalised images (B, T, 3, S, S) on ``device``; with ``lanes`` nobody waits for them.

    Bytes travel, then /255, - mean, / std in float32 on the device: on the CPU the same bits as
    torchvision's ToTensor and Normalize; another ``dtype`` is rounded to at the end.
    Raises UsageError when frames without tiles differ in shape, so that they cannot be one batch.
    """
    shapes = {p.tiles.shape for p in prepared}
    if len(shapes) != 1:
        raise UsageError(f"images of shapes {sorted(shapes)} cannot be one batch; use batch size 1 or tiles")
    # Tiles lie in memory as PIL wrote them, colour last: the device turns them, after the copy.
    if lanes:
        there = lanes.upload(lanes.stacked([torch.from_numpy(p.tiles) for p in prepared]))
    else:
        there = torch.from_numpy(np.stack([p.tiles for p in prepared])).to(device)
    mean, std = (_colour(value, there.device) for value in spec.normalisation)
    images = there.permute(0, 1, 4, 2, 3).contiguous().float()
    return images.div_(255).sub_(mean).div_(std).to(dtype)


@lru_cache(maxsize=64)
def _colour(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return numbers of the three colours as (3, 1, 1); made once, for a device waits where they come in."""
    return torch.tensor(values, device=device).view(3, 1, 1)
