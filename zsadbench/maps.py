"""From the patch grid to pixels: up-sampling and smoothing.

Both steps are linear and separable, so they fold into two small matrix products,
``map = R @ grid @ C.T`` with ``R = gaussian @ interpolation`` per axis: about 30 times cheaper than
interpolating and filtering full maps and equal to about 1e-6.  Inside ``exact_maps()`` they are done
one after the other, as the references do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_exact: ContextVar[bool] = ContextVar("exact_maps", default=False)


@contextmanager
def exact_maps(on: bool = True) -> Iterator[None]:
    """Render maps step by step (torch interpolation, scipy filter) inside this context."""
    token = _exact.set(on)
    try:
        yield
    finally:
        _exact.reset(token)


def render(grid: Tensor, size: tuple[int, int], *, align_corners: bool = False, sigma: float = 0.0) -> Tensor:
    """Return maps (B, H, W) of patch grids (B, gh, gw): bilinear, then Gaussian of ``sigma`` pixels.

    The Gaussian is scipy's default (reflected edges, cut at 4 sigma).
    """
    grid = grid.float()
    if _exact.get():
        return smooth(upsample(grid, size, align_corners=align_corners), sigma)
    rows, columns = (
        torch.from_numpy(fold(n_in, n_out, align_corners, sigma)).to(grid.device)
        for n_in, n_out in zip(grid.shape[-2:], size, strict=True)
    )
    return rows @ grid @ columns.T


def upsample(grid: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Return ``grid`` (B, gh, gw) resized to (B, H, W), bilinear without antialiasing."""
    return F.interpolate(grid[:, None], size, mode="bilinear", align_corners=align_corners)[:, 0]


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Return ``maps`` (B, H, W) under scipy's Gaussian filter of ``sigma`` pixels, map by map."""
    if not sigma:
        return maps
    from scipy.ndimage import gaussian_filter

    filtered = [gaussian_filter(one, sigma) for one in maps.cpu().numpy()]
    return torch.from_numpy(np.stack(filtered)).to(maps.device)


@lru_cache(maxsize=64)
def fold(n_in: int, n_out: int, align_corners: bool, sigma: float) -> NDArray[np.float32]:
    """Return the matrix (n_out, n_in) of interpolation and smoothing along one axis."""
    matrix = interpolation(n_in, n_out, align_corners)
    if sigma:
        matrix = gaussian(n_out, sigma) @ matrix
    return matrix.astype(np.float32)


def interpolation(n_in: int, n_out: int, align_corners: bool) -> NDArray[np.float64]:
    """Return the 1-D linear interpolation matrix (n_out, n_in) of torch's bilinear resize."""
    if align_corners:
        place = np.arange(n_out) * ((n_in - 1) / max(n_out - 1, 1))
    else:
        place = np.clip((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0, None)
    low = np.minimum(place.astype(int), n_in - 1)
    high = np.minimum(low + 1, n_in - 1)
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out), low), 1 - (place - low))
    np.add.at(matrix, (np.arange(n_out), high), place - low)
    return matrix


def gaussian(n: int, sigma: float) -> NDArray[np.float64]:
    """Return scipy's 1-D Gaussian filter as a matrix (n, n), edges reflected."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    source = (np.arange(n)[:, None] + offsets) % (2 * n)
    source = np.where(source >= n, 2 * n - 1 - source, source)
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], source), weights)
    return matrix
