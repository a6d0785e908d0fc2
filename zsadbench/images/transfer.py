"""Batches on their way to the device and evidence on its way back, beside the work in hand.

This is the one place that knows streams.  On a CPU the same steps are done at once.  The overlapped path is
off unless it is asked for: a missing synchronisation would give wrong numbers without a word, so on a GPU
``zsad bench device`` must first have found its evidence bit-equal to that of the ordinary path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..environment import VERSION, checkout_state, device_name
from ..errors import UsageError
from ..files import cache_dir, digest_of, write_atomic

VARIABLE = "ZSAD_OVERLAP"
"""Environment variable that asks for the overlapped path: 1, or 0 for the ordinary one."""


class Lanes:
    """The ways to a device and back.  Work given to it goes on while bytes travel on streams of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.streams = device, device.type == "cuda"
        if self.streams:
            self._there, self._back = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def stacked(self, parts: Sequence[Tensor]) -> Tensor:
        """Return ``parts`` (...) of one shape as one (n, ...), in memory that the device reads by itself."""
        shape = (len(parts), *parts[0].shape)
        return torch.stack(list(parts), out=torch.empty(shape, dtype=parts[0].dtype, pin_memory=self.streams))

    def upload(self, host: Tensor) -> Tensor:
        """Return ``host`` (n, ...) on the device; what the device is given from now on waits for it."""
        if not self.streams:
            return host.to(self.device)
        now = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._there):
            there = host.to(self.device, non_blocking=True)
        now.wait_stream(self._there)
        there.record_stream(now)  # its memory is of the other stream, and must not be given away too early
        return there

    def download(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Begin to bring ``tensors`` (...) back; what is returned waits for them.

        They must not be written to any more.
        """
        if not self.streams:
            return lambda: [tensor.to("cpu") for tensor in tensors]
        self._back.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._back):
            found = [self._home(tensor) for tensor in tensors]
        there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        there.record(self._back)

        def landed() -> list[Tensor]:
            there.synchronize()
            return found

        return landed

    def _home(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu":
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._back)
        return host


def lanes(device: torch.device, overlap: bool | None = None) -> Lanes | None:
    """Return the lanes of the overlapped path, or None for the ordinary one; by default ``VARIABLE`` decides.

    Raises:
        UsageError: if it is asked for on a GPU where its evidence was not found equal.
    """
    if overlap is None:
        overlap = os.environ.get(VARIABLE, "").strip() not in ("", "0")
        if overlap and device.type != "cpu" and not proof(device).is_file():
            raise UsageError(
                f"{VARIABLE} is set, but on {device_name(device)} the overlapped path was not found to give "
                f"the evidence of the ordinary one; run zsad bench device first, or unset {VARIABLE}"
            )
    return Lanes(device) if overlap else None


def proof(device: torch.device) -> Path:
    """Return the file that says that both paths were found equal on this card, by this torch and code."""
    commit, _ = checkout_state()
    known = {"card": device_name(device), "torch": torch.__version__, "code": [VERSION, commit]}
    return cache_dir() / "overlap" / f"{digest_of(known)[:16]}.json"


def prove(device: torch.device, methods: Sequence[str], equal: bool) -> Path:
    """Keep, or take away, the word that both paths give ``methods`` the same evidence on ``device``.

    Raises:
        OSError: if the cache cannot be written.
    """
    path = proof(device)
    if not equal:
        path.unlink(missing_ok=True)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    said = {"device": device_name(device), "torch": torch.__version__, "methods": list(methods)}
    write_atomic(path, json.dumps(said, indent=1).encode())
    return path
