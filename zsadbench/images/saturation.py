"""How much of a defect must be found, and no more counts: MVTec LOCO's ``defects_config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DatasetError

_LARGEST = 1 << 20
_KEYS = "pixel_value, saturation_threshold and relative_saturation"


class Saturation(NamedTuple):
    """A share of a defect's area, or a number of its pixels where it is not ``relative``."""

    threshold: float
    relative: bool

    def pixels(self, area: int) -> float:
        """Return how many pixels of a defect of ``area`` pixels must be found, as MVTec's evaluation does."""
        return max(int(self.threshold * area), 1) if self.relative else min(self.threshold, area)


def read_saturations(path: Path) -> Mapping[int, Saturation]:
    """Return the saturation of each kind of defect by the value of its pixels in masks.

    Raises:
        DatasetError: if the file cannot be read or is no such list.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"larger than {_LARGEST >> 20} MiB")
        entries = json.loads(content)
        return dict(map(_entry, entries))
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DatasetError(
            f"{path}: no list of defects with {_KEYS} ({str(error)[:80]}); restore the file of the dataset"
        ) from None


def _entry(entry: Any) -> tuple[int, Saturation]:
    value, threshold, relative = (
        entry["pixel_value"],
        entry["saturation_threshold"],
        entry["relative_saturation"],
    )
    if type(value) is not int or not isinstance(relative, bool):
        raise ValueError(f"pixel_value {value!r}, relative_saturation {relative!r}")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise ValueError(f"saturation_threshold {threshold!r}")
    if not 0 < threshold <= (1 if relative else 1 << 40):
        raise ValueError(f"saturation_threshold {threshold!r}")
    return value, Saturation(float(threshold), relative)
