"""One command that tries a device: are its numbers right, how fast is it, may batches overlap on it.

Parts run one after the other within a budget of minutes.  What there was no time for has a row that says so,
and what fails has a row with the reason: the rest goes on.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..engine import pick_device
from ..environment import environment
from ..errors import ZsadError
from ..files import write_atomic
from ..images import prove
from . import parts
from .goldens import GOLDENS

Row = dict[str, Any]

PARTS: dict[str, tuple[float, Callable[[parts.Trial, float], Iterator[Row]]]] = {
    "products": (5, parts.products),
    "goldens": (90, parts.goldens),
    "methods": (170, parts.methods),
    "towers": (25, parts.towers),
    "reference": (20, parts.reference),
    "category": (30, parts.category),
    "visa": (110, parts.visa),
}
"""In order, with the seconds that each is meant to take of a large card: shares of the budget."""


@dataclass
class DeviceBench:
    """What :func:`bench_device` found: the machine, a row for each measurement, and the file they are in."""

    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    file: Path | None = None

    @property
    def failed(self) -> list[Row]:
        """The rows of what failed, or gave other numbers than it must."""
        return [row for row in self.rows if row["state"] == "failed"]


def bench_device(
    device: str = "auto",
    *,
    goldens: Path | None = None,
    out: Path | None = None,
    minutes: float = 7.5,
    smoke: bool = False,
    only: Sequence[str] = (),
    specs: Sequence[str] = (),
    tell: Callable[[str], None] = lambda words: None,
) -> DeviceBench:
    """Try ``device``: goldens, methods, towers, the category stage of MuSc, a run as large as VisA.

    ``smoke`` uses miniatures and a few small images; ``only`` names `PARTS` (all), ``specs`` methods.
    ``tell`` is told what is being done.  With ``out`` the rows are written as JSON after each part.

    Raises:
        MethodError: if there is no such device.
        OSError: if ``out`` cannot be written.
    """
    where = pick_device(device)
    found = DeviceBench(machine(where), file=out)
    with tempfile.TemporaryDirectory(prefix="zsad-device-") as folder, float32_is_float32():
        trial = parts.Trial(
            where, Path(folder), goldens or GOLDENS, smoke, tuple(specs) or parts.all_methods()
        )
        end, chosen = time.monotonic() + 60 * minutes, list(only or PARTS)
        for number, name in enumerate(chosen):
            left = end - time.monotonic()
            share = PARTS[name][0] / sum(PARTS[other][0] for other in chosen[number:])
            tell(f"{name}: {max(0.0, left * share):.0f} s of {max(0.0, left):.0f} s")
            start = time.monotonic()
            found.rows += _attempted(name, trial, left * share)
            found.about["seconds"][name] = round(time.monotonic() - start, 1)
            _write(found)
        found.rows += _proof(trial)
        _write(found)
    return found


def machine(where: torch.device) -> dict[str, Any]:
    """Return what the figures depend on: the card, its driver and memory, and versions."""
    about: dict[str, Any] = environment(where, "fp32") | {"cuda": torch.version.cuda or "", "seconds": {}}
    about["threads"] = torch.get_num_threads()
    if where.type == "cuda":
        card = torch.cuda.get_device_properties(where)
        about |= {"card": card.name, "memory_gb": round(card.total_memory / 2**30, 1), "driver": _driver()}
        about["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return about


def _driver() -> str:
    if not (program := shutil.which("nvidia-smi")):
        return ""
    words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip().partition("\n")[0]
    return ""


@contextlib.contextmanager
def float32_is_float32() -> Iterator[None]:
    """Keep TF32 out of matrix products and convolutions."""
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


def _attempted(name: str, trial: parts.Trial, seconds: float) -> Iterator[Row]:
    """Yield the rows of a part, and one with the reason where it breaks off: the other parts go on."""
    if seconds <= 0:
        yield parts.left_out(name, name, "no time is left; give more --minutes")
        return
    try:
        yield from PARTS[name][1](trial, seconds)
    except (ZsadError, RuntimeError, OSError, MemoryError, ArithmeticError, LookupError, TypeError) as error:
        yield parts.broken(name, name, error)


def _proof(trial: parts.Trial) -> Iterator[Row]:
    """Say whether batches may overlap on this device, and keep it where a run looks for it."""
    if not trial.equal:
        return
    row = {"part": "overlap", "what": "all methods", "value": None, "unit": ""}
    differ = [name for name, same in trial.equal.items() if not same]
    missing = [name for name in parts.all_methods() if name not in trial.equal]
    if differ:
        prove(trial.where, (), equal=False)
        yield {**row, "state": "failed", "note": f"evidence differs: {', '.join(differ)}; the path stays off"}
    elif missing or trial.smoke:
        reason = "miniatures" if trial.smoke else f"not compared: {', '.join(missing)}"
        yield {**row, "state": "left out", "note": f"no proof for this device: {reason}"}
    else:
        path = prove(trial.where, list(trial.equal), equal=True)
        yield {**row, "state": "ok", "note": f"evidence bit-equal; ZSAD_OVERLAP=1 may be set ({path})"}


def _write(found: DeviceBench) -> None:
    if found.file:
        content = {"about": found.about, "rows": found.rows}
        write_atomic(found.file, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
