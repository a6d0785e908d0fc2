"""Tests of the CPU on another device: what they make lies there, and comes home where NumPy reads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kit import tiny


@contextmanager
def working_on(device: torch.device, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Make the miniatures with their image towers in ``dtype``, and every tensor, lie on ``device``."""
    from_numpy = torch.from_numpy

    def there(array: Any) -> Tensor:
        return from_numpy(array).to(device)

    def as_array(tensor: Tensor, dtype: Any = None, **options: Any) -> Any:
        return np.asarray(Tensor.numpy(tensor), dtype)

    def numpy(tensor: Tensor, **options: Any) -> Any:
        home = tensor.detach().cpu()
        return torch._C.TensorBase.numpy(home.float() if home.dtype == torch.bfloat16 else home)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "place", (device, dtype))
        if device.type != "cpu" or dtype != torch.float32:
            patch.setattr(torch, "from_numpy", there)
            patch.setattr(Tensor, "numpy", numpy)
            patch.setattr(Tensor, "__array__", as_array)
        if device.type == "cpu":
            yield
            return
        with device:
            yield
