"""The way in and the way out: what a mistake, an interruption and a fault of ours look like.

Nothing heavy is imported before ``main`` stands ready to answer an interruption.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TextIO

from ..errors import Interrupted, ZsadError, is_out_of_memory

FAULT = 70
"""Exit code of a mistake of ours."""
PACKAGE = Path(__file__).parents[1]
_interrupts: list[int] = []


def main() -> None:
    """Run the command line; every end has its exit code, and no mistake of the user's has a traceback."""
    _watch()
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # registered first, so it is done last
    words = sys.argv[1:]
    debug = "--debug" in words
    with _patient_streams():
        try:
            code = _run([word for word in words if word != "--debug"])
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            if debug and not isinstance(error, KeyboardInterrupt):
                raise
            code = _told(error)
        finally:
            _watch()
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Run the verb that ``words`` name and return its exit code."""
    from .app import app

    code = app(words, prog_name="zsad", standalone_mode=False)
    if code == Interrupted.exit_code:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _told(error: BaseException) -> int:
    """Say in one line what ended the command and return the exit code."""
    from ..text import say

    line, code = _verdict(error)
    with suppress(OSError):  # where nothing can be said the code must do
        if line:
            say(line, sys.stderr)
    return code


def _verdict(error: BaseException) -> tuple[str, int]:
    import typer

    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", Interrupted.exit_code
    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    if isinstance(error, ZsadError):
        return f"error: {error}", error.exit_code
    if hasattr(error, "format_message"):
        return _usage(error), ZsadError.exit_code
    if _interrupts:  # a library that was interrupted while it was imported may raise anything
        return "interrupted", Interrupted.exit_code
    if is_out_of_memory(error):
        line = "the memory is used up; give a smaller --batch-size, fewer --workers or a smaller size"
        return f"error: {line}", ZsadError.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror or error}", ZsadError.exit_code
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return (
        f"internal error in {_place(error.__traceback__)} ({said}); run again with --debug and report it",
        FAULT,
    )


def _usage(error: Any) -> str:
    """Return what is wrong with the words of a command; nothing where its help was printed in place of it."""
    said = " ".join(error.format_message().split())
    if not said or type(error).__name__ == "NoArgsIsHelpError":
        return ""
    end = "" if said.endswith((".", "?", "!")) else "."
    context = getattr(error, "ctx", None)
    return f"error: {said}{end}" + (f" See: {context.command_path} --help" if context else "")


def _place(trace: TracebackType | None) -> str:
    """Return file and line of the innermost frame that is ours, else of the innermost."""
    place = "unknown"
    ours = False
    while trace:
        path = Path(trace.tb_frame.f_code.co_filename)
        own = path.is_relative_to(PACKAGE.parent)
        if own or not ours:
            shown = path.relative_to(PACKAGE.parent) if own else path
            place, ours = f"{shown}:{trace.tb_lineno}", own or ours
        trace = trace.tb_next
    return place


def _watch() -> None:
    """Answer Ctrl-C with KeyboardInterrupt while a verb runs, with an end before and after."""
    _interrupts.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupted)
        sys.unraisablehook = _unraisable


def _interrupted(number: int, frame: FrameType | None) -> None:
    _interrupts.append(number)
    while frame and frame.f_code is not _run.__code__:
        frame = frame.f_back
    if frame:
        raise KeyboardInterrupt
    # Outside of a verb nobody is left to catch it, and Python would print a traceback.
    os.write(2, b"interrupted\n")
    os._exit(Interrupted.exit_code)


def _unraisable(told: Any) -> None:
    """Interrupt again where Python drops the exception, as while an object is taken down."""
    if issubclass(told.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(told)


class _Patient(io.FileIO):
    """Output whose reader may leave, as ``head`` does: the rest is dropped, the work goes on."""

    def write(self, data: Any) -> int:
        """Write bytes, or drop them where nobody reads any more."""
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return memoryview(data).nbytes


@contextmanager
def _patient_streams() -> Iterator[None]:
    """Let standard output and error outlive their readers and show every name."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_patient, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _patient(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed by the caller, as `zsad ... >&-` does
        return io.StringIO()
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        stream.flush()
        raw = _Patient(stream.fileno(), "wb", closefd=False)
    except (OSError, ValueError):  # no file behind it
        stream.reconfigure(errors="backslashreplace")
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
