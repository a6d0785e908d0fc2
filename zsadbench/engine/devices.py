"""Devices and number types by their names."""

from __future__ import annotations

import torch

from ..errors import MethodError, UsageError, suggest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; ``auto`` is the GPU if there is one.

    Raises:
        MethodError: if that device is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` makes tensors that hold no number
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise MethodError(
            f"device '{name}' cannot be used ({reason[:100]}); use --device auto or cpu"
        ) from None
    return device


def images_at_once(device: torch.device) -> int:
    """Return how many images are encoded together where nothing is said."""
    return 32 if device.type == "cuda" else 8


def pick_dtype(name: str) -> torch.dtype:
    """Return the number type of the image tower called ``name``.

    Raises:
        UsageError: for an unknown one.
    """
    if name not in DTYPES:
        raise UsageError(f"unknown dtype '{name}'.{suggest(name, DTYPES)}")
    return DTYPES[name]
