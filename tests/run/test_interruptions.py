"""A run that was interrupted at any moment and repeated leaves what an undisturbed one leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_run_interrupted_at_any_moment_is_finished_by_its_repeat(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.run.interrupted", str(tmp_path)]
    surroundings = os.environ | {"ZSAD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [one for one in found if one["repeated"] != 0 or one.get("differs") != []]
    assert not wrong, f"{len(wrong)} of {len(found)}, first {wrong[:3]}\n{done.stderr[-3000:]}"
    codes = {
        how: [one["code"] for one in found if one["how"] == how] for how in {one["how"] for one in found}
    }
    assert len(found) >= 60 + 6 and sum(len(codes[how]) for how in codes if "process" in how) >= 6
    assert set(codes["kill"]) == {-9}
    assert set(codes["interrupt at once"]) == {130}
    assert codes["interrupt"].count(130) > len(codes["interrupt"]) / 2  # the others had nothing left to do
