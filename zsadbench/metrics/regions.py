"""Connected regions of a mask and what each pixel weighs in them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_STRUCTURE = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}


class Regions(NamedTuple):
    """The anomalous pixels of one mask, in row order."""

    box: tuple[slice, slice]
    """Smallest window of the mask that holds them."""
    inside: NDArray[np.bool_]
    """The mask in that window."""
    area: NDArray[np.uint32]
    """Per anomalous pixel, the number of pixels of its region."""
    regions: int


def find_regions(mask: NDArray[np.bool_], connectivity: int = 8) -> Regions:
    """Label the connected components of a non-empty (H, W) ``mask``; holes stay holes."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    inside = mask[box]
    labels, count = ndimage.label(inside, structure=_STRUCTURE[connectivity])
    of_pixel = labels[inside]
    return Regions(box, inside, np.bincount(of_pixel).astype(np.uint32)[of_pixel], int(count))
