"""Maps, masks, labels and scores as the engine wants them; refused when they make no sense."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MetricError
from .keys import Floats


def is_tensor(values: Any) -> bool:
    """Whether ``values`` is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def to_numpy(values: Any) -> NDArray[Any]:
    """Return an array, or a tensor of any device and type (bfloat16 as float32), as a numpy array."""
    if not is_tensor(values):
        return np.asarray(values)
    values = values.detach()
    if str(values.dtype) == "torch.bfloat16":
        values = values.float()
    return np.asarray(values.cpu().numpy())


def as_real(values: NDArray[Any]) -> Floats:
    """Return real numbers of any shape as float32 where that keeps every one of them, else as float64."""
    if values.dtype.kind == "f" and values.dtype.itemsize <= 4:
        return np.require(values, np.float32, ["C", "ALIGNED"])
    double = np.require(values, np.float64, ["C", "ALIGNED"])
    with np.errstate(over="ignore"):
        single = double.astype(np.float32)
    return single if np.array_equal(single, double, equal_nan=True) else double


def as_map(values: Any, where: str, on_device: bool = False) -> tuple[Any, float, float]:
    """Return one anomaly map as contiguous reals (H, W) with its lowest and highest score.

    It is float32, or float64 where float32 would make equal what differs (a large offset, scores next to
    one).  ``on_device`` keeps (or makes) a tensor, for the torch back end.  Raises :class:`MetricError`
    for another shape, for no pixel, and for NaN or infinity.
    """
    if on_device and is_tensor(values):
        values = values.detach()
        single = values.float()
        short = values.is_floating_point() and values.dtype.itemsize <= 4
        exact = short or bool((single.double() == values.double()).all())
        values = single if exact else values.double()
        values = values.reshape(_plane(tuple(values.shape), "map", where)).contiguous()
        low, high = (float(bound) for bound in values.aminmax())
    else:
        array = to_numpy(values)
        if array.dtype.kind not in "fiub":
            raise MetricError(f"map of {where} holds {array.dtype}, not real numbers")
        array = as_real(array)
        values = array.reshape(_plane(array.shape, "map", where))
        low, high = float(values.min()), float(values.max())
        if on_device:
            import torch

            values = torch.from_numpy(np.require(values, requirements="W"))
    if not np.isfinite(low) or not np.isfinite(high):
        raise MetricError(
            f"map of {where} holds NaN or infinity: "
            "no metric can rank such pixels; find the cause, or leave the image out"
        )
    return values, low, high


def as_mask(values: Any, where: str) -> NDArray[np.bool_]:
    """Return one mask as bool (H, W): anomalous where the value is above 0.

    A float mask must hold 0 and 1 only: the grey rim of a resized mask has no meaning here.
    """
    array = to_numpy(values)
    array = array.reshape(_plane(array.shape, "mask", where))
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iuf":
        raise MetricError(f"mask of {where} holds {array.dtype}: give bool, or integers with 0 = normal")
    if array.dtype.kind == "f" and not np.isin(array, (0, 1)).all():
        raise MetricError(
            f"mask of {where} holds fractions: threshold it first "
            "(above 0 at its own size, above 0.5 after a bilinear resize)"
        )
    return np.asarray(array > 0)


def as_scores(values: Any, names: Sequence[str] | None = None) -> NDArray[np.float64]:
    """Return finite float64 image scores, flat; :class:`MetricError` names the first bad one."""
    scores = to_numpy(values).astype(np.float64).reshape(-1)
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        first = int(bad[0])
        where = f"position {first}" if names is None else f"image '{names[first]}'"
        raise MetricError(
            f"image score at {where} is NaN or infinite, "
            f"one of {bad.size} in {scores.size}: no metric can rank them"
        )
    return scores


def as_labels(values: Any) -> NDArray[np.bool_]:
    """Return labels (n,) as bool; anything but 0, 1, False and True is refused."""
    labels = to_numpy(values).reshape(-1)
    if labels.dtype != np.bool_ and not np.isin(labels, (0, 1)).all():
        raise MetricError("labels must be 0 (normal) or 1 (anomalous)")
    return labels.astype(np.bool_)


def resize_bilinear(values: Floats, size: tuple[int, int]) -> Floats:
    """Return a map resized to ``size`` (H, W) with half-pixel centres and no antialiasing."""
    for axis, wanted in enumerate(size):
        have = values.shape[axis]
        place = np.clip((np.arange(wanted) + 0.5) * (have / wanted) - 0.5, 0, have - 1)
        left = place.astype(np.int64)
        right = np.minimum(left + 1, have - 1)
        share = (place - left).astype(values.dtype)
        share = share[:, None] if axis == 0 else share
        values = values.take(left, axis) * (1 - share) + values.take(right, axis) * share
    return values


def _plane(shape: tuple[int, ...], what: str, where: str) -> tuple[int, int]:
    """Return (H, W) of ``shape``, which may have leading axes of length 1."""
    if len(shape) < 2 or any(side != 1 for side in shape[:-2]) or 0 in shape:
        raise MetricError(f"{what} of {where} has shape {shape}, wanted (H, W)")
    return shape[-2], shape[-1]
