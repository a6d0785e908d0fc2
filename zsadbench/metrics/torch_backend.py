"""Counting on the device the maps live on: sort and search there, in whole numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .keys import Counts, Keys


def to_keys(values: Any) -> Tensor:
    """Return the keys of a float32 or float64 map, array or tensor, flat (the rule of :mod:`.keys`)."""
    values = torch.as_tensor(values).contiguous()
    bits = values.view(torch.int64 if values.dtype == torch.float64 else torch.int32).flatten()
    return torch.where(bits >= 0, bits, -(bits & torch.iinfo(bits.dtype).max))


def to_wide_keys(values: Any) -> Tensor:
    """Return the keys of a map as float64, whatever it is."""
    return to_keys(torch.as_tensor(values).double())


def tally(waiting: list[Tensor], keys: Keys) -> tuple[Counts, Counts]:
    """Return, per key, the waiting pixels not above it and those equal to it."""
    device = waiting[0].device
    chunk = torch.cat([pixels.to(device) for pixels in waiting]).sort().values
    wanted = torch.from_numpy(keys).to(device)
    at_most = torch.searchsorted(chunk, wanted, right=True)
    equal = at_most - torch.searchsorted(chunk, wanted)
    return at_most.cpu().numpy(), equal.cpu().numpy()
