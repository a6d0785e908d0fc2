"""Operations of an encoder, counted as it runs, beside what the device makes of a plain matrix product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..engine import Encoder, Task
from ..images import Loaded, decode, preprocess, read
from ..method import Resolved
from ..records import EvidenceStore
from ..samples import Sample

SIDES = {"cuda": 8192, "cpu": 1024}
"""Side of the matrices whose product is timed: large enough for the device to be at its best."""


def counted(call: Callable[[], Any]) -> int:
    """Return the floating-point operations of ``call``: matrix products, convolutions and attention.

    A multiplication and an addition are two, as usual; what is cheap (norms, activations) is not counted.
    """
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    counter = FlopCounterMode(display=False, custom_mapping={cpu_attention: _attention})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what other threads compute is not counted
    try:
        with counter:
            call()
    finally:
        torch.set_num_threads(threads)
    return counter.get_total_flops()


def _attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **options: Any) -> int:
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]


def encoder_flop(resolved: Resolved, sample: Sample, encoder: Encoder) -> int:
    """Return the operations of the encoder for one image of a method, all its views and texts of the image.

    The texts that all images share are encoded before; what relates images is not counted.
    """
    task = Task(resolved.id, resolved.method, {sample.category: "part"}, EvidenceStore(Path()))
    spec = resolved.method.preprocess
    image = decode(read(sample.image), name=sample.key)
    loaded = [Loaded(0, sample, {spec: preprocess(image, spec)})]
    encoder.prepare(task, sample.category)
    return counted(lambda: encoder.observe(loaded, [task]))


def product_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5, side: int = 0) -> float:
    """Return the floating-point operations per second of a square matrix product, median of ``repeats``."""
    side = side or SIDES.get(device.type, SIDES["cpu"])
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b, device) for _ in range(repeats + 2)]  # the first two warm up
    return 2 * side**3 / statistics.median(seconds[2:])


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of ``call`` until the device has done it."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
