"""What a record says of the machine and the code it was made with.

The package imports this first, so that only what every command needs is imported at the top.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

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
