"""Speed measurements as ratios within one run.

Enter: methods, sizes, repeats. Leave: tables of seconds and ratios. Not known here: records, boards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..surface import room

if TYPE_CHECKING:
    from .device import DeviceBench, bench_device
    from .latency import LatencyBench, bench_latency
    from .loader import bench_loader, bench_memory
    from .methods import MethodBench, bench_methods
    from .metrics import bench_metrics
    from .train import bench_train

__all__ = [
    "DeviceBench",
    "LatencyBench",
    "MethodBench",
    "bench_device",
    "bench_latency",
    "bench_loader",
    "bench_memory",
    "bench_methods",
    "bench_metrics",
    "bench_train",
]
room(__name__)
