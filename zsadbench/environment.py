"""What machine this is: its devices, and what a record says of it and of the code it was made with.

The package imports this first, so that only what every command needs is imported at the top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import UsageError

VERSION = "0.2.0"


def environment(device: Any, dtype: str) -> dict[str, Any]:
    """Return versions, device, dtype and, in a checkout, the commit with a flag for local changes."""
    import platform

    commit, dirty = checkout_state()
    return {
        "zsadbench": VERSION,
        "python": platform.python_version(),
        "torch": installed("torch"),
        "open_clip": installed("open_clip_torch"),
        "platform": platform.platform(terse=True),
        "device": device_name(device),
        "dtype": dtype,
        "commit": commit,
        "dirty": dirty,
    }


@cache
def installed(package: str) -> str:
    """Return the installed version of ``package``, empty if there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def device_name(device: Any) -> str:
    """Return the device with the name of its GPU or processor."""
    import platform

    if getattr(device, "type", "cpu") == "cuda":
        import torch

        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()})"


_HALF_UNITS = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "fphp", "asimdhp"},
}
"""What Linux calls the instructions for half precision of processors, x86 and ARM."""


@cache
def emulates(dtype: str) -> bool:
    """Tell whether this machine's processor has no instructions for ``bf16`` or ``fp16``.

    Half precision is then several times slower than ``fp32``.  False where the system does not say.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return False
    said = [line.partition(":") for line in lines]
    flags = {flag for key, _, value in said if key.strip() in ("flags", "Features") for flag in value.split()}
    return dtype in _HALF_UNITS and bool(flags) and flags.isdisjoint(_HALF_UNITS[dtype])


@cache
def code_digest() -> str:
    """Return the SHA-256 over the source of the toolkit, its methods and their cards, the same everywhere."""
    import hashlib
    from importlib import import_module

    methods = Path(import_module(f"{__package__}.methods").__path__[0])
    total = hashlib.sha256()
    for folder in (Path(__file__).parent, methods):
        for path in sorted(folder.rglob("*")):
            inside = folder != methods and path.is_relative_to(methods)  # in a wheel
            if path.suffix in (".py", ".toml") and not inside:
                total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


@cache
def checkout_state() -> tuple[str, bool]:
    """Return the commit of the checkout (empty in a wheel) and whether tracked files were changed."""
    import subprocess

    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return "", False
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False


def _git(root: Path, *words: str) -> str:
    import subprocess

    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


@dataclass(frozen=True)
class Seat:
    """What a worker runs on: its device, threads, and what it takes of Ray's resources."""

    device: str
    threads: int = 1
    cpus: int = 1


@dataclass(frozen=True)
class Devices:
    """What ``--devices`` says: GPUs by their numbers, or so many of a kind; ``auto`` is every device."""

    kind: str = "auto"
    count: int = 0
    numbers: tuple[int, ...] = ()

    @classmethod
    def of(cls, text: str) -> Devices:
        """Read ``auto``, ``0,1``, ``cpu:2`` or ``gpu:8``.

        Raises:
            UsageError: for anything else.
        """
        kind, _, count = text.partition(":")
        if text == "auto":
            return cls()
        if kind in ("cpu", "gpu") and whole_number(count or "1") and 0 < int(count or "1") <= 1024:
            return cls(kind, int(count or "1"))
        numbers = text.split(",")
        if all(map(whole_number, numbers)) and len({*map(int, numbers)}) == len(numbers):
            return cls("gpu", len(numbers), tuple(map(int, numbers)))
        raise UsageError(
            f"--devices {text}: give auto, numbers of GPUs as in 0,1, or cpu:2 for two CPU workers"
        )


def whole_number(text: str, digits: int = 4) -> bool:
    """Tell whether a text is a whole number of so many digits at most."""
    return text.isascii() and text.isdigit() and len(text) <= digits


def seats_here(devices: Devices) -> tuple[list[Seat], tuple[int, ...]]:
    """Return the seats on this machine, and the numbers of the GPUs among them.

    Raises:
        UsageError: for a GPU that is not here.
    """
    import os

    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices.kind == "cpu" or (devices.kind == "auto" and not gpus):
        count = devices.count or 1
        return [Seat("cpu", max(1, torch.get_num_threads() // count))] * count, ()
    numbers = devices.numbers or tuple(range(devices.count or gpus))
    if missing := [number for number in numbers if number >= gpus]:
        raise UsageError(
            f"--devices: GPU {missing[0]} is not on this machine, which has {gpus}; give others, or cpu:2"
        )
    return [Seat("cuda", max(1, (os.cpu_count() or 1) // len(numbers)))] * len(numbers), numbers


def seats_of(devices: Devices, nodes: Sequence[Mapping[str, float]]) -> list[Seat]:
    """Return the seats on a cluster: a GPU each, or without any a machine each."""
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if devices.numbers:
        raise UsageError(
            "--devices: numbers are those of GPUs of one machine; on a cluster give auto or gpu:8"
        )
    if devices.kind == "cpu" and devices.count > sum(cpus):
        raise UsageError(f"--devices cpu:{devices.count}: the cluster has {sum(cpus)} CPUs; give fewer")
    if devices.kind == "gpu" and devices.count > sum(gpus):
        raise UsageError(f"--devices gpu:{devices.count}: the cluster has {sum(gpus)} GPUs; give fewer")
    if devices.kind == "cpu":
        threads = max(1, min(max(cpus), sum(cpus) // devices.count))
        return [Seat("cpu", threads, threads)] * devices.count
    if sum(gpus):
        threads = max(1, min(c // g for c, g in zip(cpus, gpus, strict=True) if g))
        return [Seat("cuda", threads)] * (devices.count or sum(gpus))
    return [Seat("cpu", count, count) for count in cpus if count]


INSTALL = "pip install 'zsadbench[cluster]'"


@dataclass(frozen=True)
class Spread:
    """Workers that were asked for: those of this machine (``address`` is "local"), or a cluster's."""

    address: str
    devices: Devices


def where(device: str, devices: str | None, cluster: str | None) -> str | Spread:
    """Return the device of this process that was asked for, or workers.

    Raises:
        UsageError: for words that name none, or where Ray is missing.
    """
    if devices is None and cluster is None:
        return device
    if device != "auto":
        raise UsageError(f"--device {device} is that of one process; with workers say --devices 0,1 or cpu:2")
    chosen = Devices.of(devices or "auto")
    if cluster is None:
        seats, numbers = seats_here(chosen)
        if len(seats) == 1:
            return f"cuda:{numbers[0]}" if numbers else "cpu"
    if not find_spec("ray"):
        raise UsageError(f"workers need Ray: {INSTALL}")
    return Spread(cluster or "local", chosen)


def peak_memory_mb(device: Any) -> float:
    """Return the peak memory of the process (CPU) or of the device, in MB."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
