"""Connected regions of a mask and what each pixel weighs in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from .inputs import as_mask
from .keys import Keys

_STRUCTURE = {4: np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]), 8: np.ones((3, 3))}


class Regions(NamedTuple):
    """The anomalous pixels of one mask, in row order."""

    box: tuple[slice, slice]
    """Smallest window of the mask that holds them."""
    inside: NDArray[np.bool_]
    """The mask in that window."""
    area: NDArray[np.uint32]
    """Per anomalous pixel, the number of pixels of its region."""
    regions: int


class Defect(NamedTuple):
    """A ground-truth region of its own, which may overlap others and need not be connected."""

    mask: Any
    """(H, W) bool or integer, 0 = not in it."""
    saturation: float
    """How many of its pixels, at most all, must be found for it to count as found wholly."""


def find_regions(mask: NDArray[np.bool_], connectivity: int = 8) -> Regions:
    """Label the connected components of a non-empty (H, W) ``mask``; holes stay holes."""
    from scipy import ndimage  # half a second that a run without new numbers does not need

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    inside = mask[box]
    labels, count = ndimage.label(inside, structure=_STRUCTURE[connectivity])
    of_pixel = labels[inside]
    return Regions(box, inside, np.bincount(of_pixel).astype(np.uint32)[of_pixel], int(count))


def saturated_weights(
    defects: Sequence[Defect], found: Regions, keys: Keys, shape: tuple[int, ...], where: str
) -> NDArray[np.float64]:
    """Return what each anomalous pixel adds to the sum of saturated overlaps, in the order of ``keys``.

    Of a defect with saturation s the k-th highest pixel adds min(k / s, 1) - min((k - 1) / s, 1): the sum
    over the pixels at or above a threshold is the defect's sPRO there, so sPRO is PRO with other weights.

    Raises:
        MetricError: for a defect of another size, outside the mask, or with a saturation that it cannot have.
    """
    weights = np.zeros(keys.size)
    for mask, saturation in defects:
        inside = as_mask(mask, where)
        if inside.shape != shape:
            raise MetricError(f"{where}: defect of size {inside.shape} but mask of size {shape}")
        own = np.flatnonzero(inside[found.box][found.inside])
        if own.size < np.count_nonzero(inside):
            raise MetricError(f"{where}: a defect reaches outside the mask, which must be the union of all")
        if not 0 < saturation <= own.size:
            raise MetricError(
                f"{where}: a defect of {own.size} pixels has a saturation of {saturation:g}: give more than "
                "0, and no more than its pixels"
            )
        share = np.minimum(np.arange(own.size + 1) / saturation, 1)
        weights[own[np.argsort(keys[own], kind="stable")[::-1]]] += np.diff(share)
    return weights


def sums_by_key(keys: Keys, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of the weights at each distinct key, rising; the order of the pairs changes no digit."""
    if not keys.size:
        return weights
    order = np.lexsort((weights, keys))
    start = np.flatnonzero(np.append(True, np.diff(keys[order]) != 0))
    return np.add.reduceat(weights[order], start)
