"""Ctrl-C while the command starts and while it ends: one line, exit code 130, no traceback.

Real signals to whole processes: some 15 s on one core.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

MOMENTS = {
    "before anything of the package": "zsadbench.errors",
    "while typer is imported": "typer.main",
    "while the verbs are imported": "zsadbench.cli.compare",
    "while numpy is imported": "numpy.linalg",
    "while boards are imported": "zsadbench.boards.statistics",
    "while records are read": "zsadbench.records.published",
}
"""The module during whose import the signal comes."""

AT_IMPORT = """
import importlib.abc, os, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
from zsadbench.cli.entry import main
sys.argv = ["zsad", "compare", "results"]
for name in [name for name in sys.modules if name == {module!r}]:
    del sys.modules[name]
sys.meta_path.insert(0, Interrupt())
main()
"""
AT_EXIT = """
import atexit, os, signal, sys
from zsadbench.cli.entry import main
sys.argv = ["zsad", "--version"]
{moment}
main()
"""
ENDS = {
    "in an exit handler": "atexit.register(os.kill, os.getpid(), signal.SIGINT)",
    "in an exit handler of before": "import threading; threading._register_atexit(os.kill, os.getpid(), 2)",
    "when modules are taken down": (
        "class Last:\n"
        "    def __init__(self): self.kill, self.me = os.kill, os.getpid()\n"
        "    def __del__(self): self.kill(self.me, 2)\n"
        "sys.last_of_all = Last()"
    ),
}


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", code]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("module", MOMENTS.values(), ids=MOMENTS)
def test_while_it_starts(module: str, tmp_path: Path) -> None:
    done = run(AT_IMPORT.format(module=module), tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")


@pytest.mark.parametrize("moment", ENDS.values(), ids=ENDS)
def test_while_it_ends_what_was_done_is_done(moment: str, tmp_path: Path) -> None:
    done = run(AT_EXIT.format(moment=moment), tmp_path)
    assert done.stdout.startswith("zsad ") and "Traceback" not in done.stderr
    assert (done.returncode, done.stderr) in ((0, ""), (130, "interrupted\n"))


IN_A_RUN = """
import os, sys
from zsadbench.cli import entry
sys.argv = ["zsad", "compare", "results"]
{moment}
entry.main()
"""
UNCAUGHT = {
    "while an error is told": (
        "told = entry._told\n"
        "def interrupted(error):\n"
        "    os.kill(os.getpid(), 2)\n"
        "    return told(error)\n"
        "entry._told = interrupted"
    ),
    "while an object is taken down": (
        "import time\n"
        "import importlib\n"
        "verbs = importlib.import_module('zsadbench.cli.app')\n"
        "class Last:\n"
        "    def __del__(self): os.kill(os.getpid(), 2)\n"
        "def interrupted(*words, **options):\n"
        "    Last()\n"
        "    time.sleep(20)\n"
        "verbs.app = interrupted"
    ),
}


@pytest.mark.parametrize("moment", UNCAUGHT.values(), ids=UNCAUGHT)
def test_where_no_exception_would_be_caught(moment: str, tmp_path: Path) -> None:
    done = run(IN_A_RUN.format(moment=moment), tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (130, "interrupted\n", "")


@pytest.mark.parametrize("wait", [0.05, 0.15, 0.3, 0.6])
def test_at_any_moment_of_the_clock(wait: float, tmp_path: Path) -> None:
    code = "from zsadbench.cli.entry import main; print('there', flush=True); main()"
    words = [sys.executable, "-c", code, "compare", "results"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as child:
        assert child.stdout and child.stdout.readline() == "there\n"
        try:
            child.wait(wait)
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=120)
    assert "Traceback" not in err
    assert (child.returncode == 130 and err == "interrupted\n") or child.returncode == 2
