"""Folded maps against torch's interpolation and scipy's filter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from zsadbench.maps import exact_maps, gaussian, interpolation, render, smooth, upsample


def grids(rows: int, columns: int, count: int = 2) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(rows * 100 + columns).random((count, rows, columns))
    ).float()


@pytest.mark.parametrize("size", [(240, 240), (37, 518), (5, 9), (15, 11), (1, 1), (3, 1)])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 4.0, 8.0, 0.7])
def test_folded_maps_equal_exact_ones(size: tuple[int, int], corners: bool, sigma: float) -> None:
    grid = grids(15, 11)
    with exact_maps():
        wanted = render(grid, size, align_corners=corners, sigma=sigma)
    found = render(grid, size, align_corners=corners, sigma=sigma)
    assert found.dtype == torch.float32 and found.shape == (2, *size)
    assert float((found - wanted).abs().max()) <= 1e-6 * float(grid.max() - grid.min())


@pytest.mark.parametrize("grid", [(1, 1), (1, 4), (2, 3), (37, 37)])
@pytest.mark.parametrize("corners", [False, True])
def test_any_grid_is_resized_as_torch_does(grid: tuple[int, int], corners: bool) -> None:
    values = grids(*grid)
    found = render(values, (33, 50), align_corners=corners)
    wanted = upsample(values.double(), (33, 50), align_corners=corners)
    assert float((found - wanted).abs().max()) <= 1e-6


@pytest.mark.parametrize(("n", "sigma"), [(1, 4.0), (2, 8.0), (5, 8.0), (16, 4.0), (200, 4.0), (33, 1.3)])
def test_the_filter_reflects_as_often_as_it_must(n: int, sigma: float) -> None:
    unit = np.eye(n)
    wanted = np.stack([gaussian_filter(row, sigma) for row in unit], axis=1)
    assert np.allclose(gaussian(n, sigma), wanted, atol=1e-12)


def test_a_row_of_weights_sums_to_one() -> None:
    for matrix in (interpolation(15, 240, False), interpolation(15, 7, True), gaussian(50, 4.0)):
        assert np.allclose(matrix.sum(axis=1), 1.0)


def test_exact_maps_ends_with_its_context() -> None:
    grid = grids(37, 37)
    folded = render(grid, (518, 518), sigma=4.0)
    with pytest.raises(RuntimeError), exact_maps():
        raise RuntimeError
    with exact_maps(), exact_maps(False):
        assert torch.equal(render(grid, (518, 518), sigma=4.0), folded)
    assert torch.equal(render(grid, (518, 518), sigma=4.0), folded)


def test_smoothing_does_not_reach_from_map_to_map() -> None:
    maps = torch.zeros(2, 20, 20)
    maps[0] = 1.0
    assert torch.equal(smooth(maps, 4.0)[1], torch.zeros(20, 20))
    assert smooth(maps, 0.0) is maps


def test_half_precision_evidence_gives_float32_maps() -> None:
    assert render(grids(4, 4).half(), (8, 8)).dtype == torch.float32
