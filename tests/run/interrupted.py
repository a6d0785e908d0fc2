"""A process of its own in which runs are interrupted at every moment.

``python -m tests.run.interrupted DIR`` imports everything once and leaves no thread behind, so that
children can be forked from it: one is interrupted by a real signal, the next repeats the command, and what
lies on disk then is compared with an undisturbed run.  Prints one JSON line per interruption.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import zsadbench.metrics.numba_backend  # noqa: F401 - compiled once, not in every child
from tests.kit import tiny
from tests.kit.factory import make_folder
from zsadbench.cli import main as command_line
from zsadbench.clip.towers import Clip
from zsadbench.engine import Encoder, encoder
from zsadbench.environment import checkout_state
from zsadbench.inputs import Backbone
from zsadbench.records import contents, evidence
from zsadbench.records.files import timeless
from zsadbench.run.jobs import Request
from zsadbench.run.run import execute

SIZE, SLICE = "28", 2
WORDS = f"-m clip --backbone tiny-l14 --weights random --set size={SIZE} --workers 1 -q".split()
SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "interrupt at once": signal.SIGINT}


class Moments:
    """Counts the moments of a run and acts at one of them."""

    def __init__(self, out: Path, at: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.out, self.at, self.act = str(out), at, act
        self.names: list[str] = []

    def reach(self, name: str) -> None:
        """Stand at a moment."""
        self.names.append(name)
        if len(self.names) == self.at:
            self.act()

    def watch(self) -> None:
        """Put a moment before and after everything that is done to a file of the results, and every batch."""
        mkstemp, fsync, replace, observe = tempfile.mkstemp, os.fsync, Path.replace, Encoder.observe

        def make(*args: Any, **options: Any) -> Any:
            if str(options["dir"]).startswith(self.out):
                self.reach(f"before writing {options['prefix']}")
            return mkstemp(*args, **options)

        def flush(handle: int) -> None:
            path = str(Path(f"/proc/self/fd/{handle}").readlink())
            if path.startswith(self.out) and path.endswith(".part"):
                self.reach(f"before flushing {path}")
            fsync(handle)

        def rename(path: Path, target: Path) -> Path:
            if not str(target).startswith(self.out):
                return replace(path, target)
            self.reach(f"before renaming {target}")
            done = replace(path, target)
            self.reach(f"after renaming {target}")
            return done

        def encode(encoder: Encoder, *args: Any) -> Any:
            self.reach("before a batch")
            found = observe(encoder, *args)
            self.reach("after a batch")
            return found

        tempfile.mkstemp, os.fsync, Path.replace = make, flush, rename  # type: ignore[assignment,method-assign]
        Encoder.observe = encode  # type: ignore[method-assign,assignment]


def run(data: Path, out: Path, stop: threading.Event | None = None) -> None:
    """Do in this process what the command of ``WORDS`` does."""
    request = Request(
        backbone="tiny-l14", weights="random", settings={"size": SIZE}, out=out, workers=1, quiet=True
    )
    execute(["clip"], [str(data)], request, stop)


def child(work: Callable[[], None], watch: Callable[[int], None] = lambda pid: None) -> int:
    """Do ``work`` in a forked process; return its exit code (of the command line) or minus a signal.

    ``watch`` is called with its number; it may send it signals until it has ended, and must not wait for it.
    """
    assert threading.active_count() == 1
    sys.stdout.flush()
    if pid := os.fork():
        watch(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 70
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def interrupted(data: Path, out: Path, how: str, at: int) -> None:
    """Run and send this process a signal at a moment."""
    stop = threading.Event()
    if how == "interrupt":
        signal.signal(signal.SIGINT, lambda number, frame: stop.set())
    else:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    Moments(out, at, lambda: os.kill(os.getpid(), SIGNALS[how])).watch()
    run(data, out, stop)


def count(data: Path, out: Path, note: Path) -> None:
    """Run undisturbed and write down how many moments there are."""
    moments = Moments(out)
    moments.watch()
    run(data, out)
    note.write_text(json.dumps(moments.names))


CHECKOUT = ("commit", "dirty")


def state(out: Path) -> dict[str, Any]:
    """Return what a run left, without times and memories: evidence, tables, observation and record."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        if not path.is_file() or path.name.endswith(".part") or path.name == contents.FILES_CSV:
            continue
        content: Any = path.read_bytes()
        if path.suffix == ".json":
            content = timeless(json.loads(content))
            if "observation" in content and isinstance(content["observation"], dict):
                content["observation"] = timeless(content["observation"])
            for said in (content, content["observation"]):
                if isinstance(said, dict) and "environment" in said:  # the checkout may change meanwhile
                    said["environment"] = {k: v for k, v in said["environment"].items() if k not in CHECKOUT}
        found[path.relative_to(out).as_posix()] = content
    return found


def differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Return the files that are not the same on both sides."""
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))


def command(data: Path, out: Path) -> None:
    """Be the command, with its own answers to signals; print nothing among the lines of this module."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.argv = ["zsad", "run", *WORDS, "-d", str(data), "-o", str(out)]
    command_line()


def signalled(data: Path, out: Path, how: signal.Signals, awaited: str) -> int:
    """Carry out the command, send it a signal when a file is there, and return its exit code."""

    def watch(pid: int) -> None:
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if any(out.rglob(awaited)):
                os.kill(pid, how)
                break
            time.sleep(0.002)

    return child(partial(command, data, out), watch)


PROCESSES = [
    (signal.SIGKILL, "observation.json"),
    (signal.SIGINT, "observation.json"),
    (signal.SIGKILL, "00000.safetensors"),
    (signal.SIGINT, "00001.safetensors"),
    (signal.SIGTERM, "00003.safetensors"),
    (signal.SIGKILL, "images.csv"),
]


def main(work: Path) -> None:
    """Interrupt, repeat, compare."""
    torch.set_num_threads(1)
    Image.preinit()
    checkout_state()
    towers = tiny.clip("tiny-l14")
    towers.vision.blocks = towers.vision.blocks[:2]  # what is interrupted is no method

    def load(backbone: Backbone, device: torch.device | str, dtype: torch.dtype) -> Clip:
        return towers

    vars(encoder)["load_clip"] = load
    evidence.SLICE = SLICE
    data = make_folder(work / "parts", each=2, side=32)
    run(data, work / "first")  # children need not import what a run imports
    gc.collect()
    gc.freeze()  # children share what is there already
    gc.disable()
    note = work / "moments.json"
    assert child(lambda: count(data, work / "whole", note)) == 0
    assert child(lambda: run(data, work / "whole")) == 0
    names, whole = json.loads(note.read_text()), state(work / "whole")
    for how, every in (("kill", 1), ("interrupt", 3), ("interrupt at once", 4)):
        for at, name in enumerate(names, 1):
            if at % every:
                continue
            out = work / f"{how}-{at}"
            code = child(partial(interrupted, data, out, how, at))
            report(how, name.replace(str(out), ""), code, data, out, whole)
    for number, (signal_, awaited) in enumerate(PROCESSES):
        out = work / f"process-{number}"
        code = signalled(data, out, signal_, awaited)
        report(f"process {signal_.name}", awaited, code, data, out, whole)


def report(how: str, name: str, code: int, data: Path, out: Path, whole: dict[str, Any]) -> None:
    """Repeat the command and print what came of it."""
    repeated = child(lambda: run(data, out))
    found = {"how": how, "moment": Path(name).name, "code": code, "repeated": repeated}
    with suppress(OSError, ValueError):
        found["differs"] = differences(state(out), whole)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
