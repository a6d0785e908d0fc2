"""The golden arrays of the authors' own code, checked on a device by the checkers of a checkout."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CHECKOUT = Path(__file__).parents[2]
GOLDENS = CHECKOUT / "tests" / "goldens"
"""Where a checkout keeps them; a wheel holds neither the arrays nor their checkers."""


def absent(folder: Path) -> str:
    """Return why the arrays in ``folder`` cannot be checked; empty where they can."""
    if not (CHECKOUT / "tests" / "test_goldens.py").is_file():
        return "the checkers are not in a wheel; run this in a checkout"
    if not find_spec("pytest"):
        return "pytest is not installed; pip install -e '.[dev]' in the checkout"
    return "" if any(folder.glob("*/*.npz")) else f"{folder}: no <method>/*.npz"


def check_goldens(folder: Path, device: str, dtype: str, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Check every file of ``folder`` on ``device`` with image towers in ``dtype``, in processes of their own.

    Returns what the check of each file has measured, by its folder; after ``seconds`` what is there.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    with TemporaryDirectory(prefix="zsad-goldens-") as place:
        measured = Path(place) / "measured.jsonl"
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_goldens.py"]
        words += ["--goldens", str(folder.resolve()), "--device", device, "--dtype", dtype]
        words += ["--measured", str(measured)]
        if find_spec("xdist") and (workers := min(8, (os.cpu_count() or 1) // 2)) > 1:
            words += ["-n", str(workers)]
        process = subprocess.Popen(
            words, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            pass
        finally:
            _end(process)
        for line in measured.read_text().splitlines() if measured.is_file() else ():
            said = json.loads(line)
            found.setdefault(said["file"].partition("/")[0], []).append(said)
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    import signal

    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def golden_rows(found: dict[str, list[dict[str, Any]]], dtype: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each folder: in fp32 the largest share of a tolerance, below it the largest error."""
    for method, files in sorted(found.items()):
        broken = [said for said in files if said["failed"]]
        errors = [(error, allowed) for said in files for _, error, allowed in said["errors"]]
        row: dict[str, Any] = {"part": f"goldens {dtype}", "what": method, "unit": "of the largest value"}
        if dtype == "fp32":
            worst = max((error / allowed for error, allowed in errors if allowed), default=None)
            named = "; ".join(f"{said['file']}: {said['failed']}" for said in broken)
            state = "failed" if broken else "ok"
            row |= {"value": worst, "unit": "of what is allowed", "state": state}
            row["note"] = named or f"{len(files)} files, {len(errors)} stages"
        else:
            middle = statistics.median(error for error, _ in errors) if errors else None
            row |= {"value": max((error for error, _ in errors), default=None), "state": "measured"}
            row["note"] = f"{len(files) - len(broken)} files" + (f", median {middle:.1e}" if errors else "")
            row["note"] += f"; {len(broken)} did not run ({broken[0]['failed'][:80]})" if broken else ""
        yield row
