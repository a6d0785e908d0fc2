"""Progress of a pass: a live bar on a terminal, a plain line now and then elsewhere, JSON for machines."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

from .errors import UsageError, ZsadError, suggest
from .text import console, say, terminal

PLAIN_EVERY_SECONDS = 15.0
JSON_EVERY_SECONDS = 1.0
FORMS = ("auto", "lines", "json")
"""A live bar where there is a terminal, plain lines anywhere, or one JSON object a line."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Progress:
    """Counts the images of each dataset and of all, with images per second and the time left.

    ``parts`` are the title and the number of images of each pass, in order; ``form`` is one of
    :data:`FORMS`.
    """

    def __init__(self, parts: Sequence[tuple[str, int]], *, quiet: bool = False, form: str = "auto") -> None:
        self.parts, self.quiet, self.form = list(parts), quiet, known_form(form)
        self.total = sum(count for _, count in self.parts)
        self.console = console(stderr=True)
        self.live: RichProgress | None = None
        self.part = -1
        self.done = self.done_of_part = 0
        self.began = self.told = time.monotonic()

    def __enter__(self) -> Progress:
        if not self.quiet and self.total and self.form == "auto" and self.console.is_terminal:
            self.live = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            for title, count in [*self.parts, *([("all", self.total)] if len(self.parts) > 1 else [])]:
                self.live.add_task(terminal(title), total=count, rate="", start=False)
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()
            self.live = None

    def start(self) -> None:
        """Begin the next pass."""
        self.part += 1
        self.done_of_part = 0
        if not self.done:
            self.began = self.told = time.monotonic()
        title, count = self.parts[self.part]
        if self.live:
            for task in self._tasks():
                self.live.start_task(task)
        elif self.form == "json":
            self._event("start", part=title, images=count)
        elif count:
            self.say(f"{title}: {count} images")

    def advance(self, count: int) -> None:
        """Count ``count`` finished images."""
        self.done += count
        self.done_of_part += count
        now = time.monotonic()
        rate = self.done / max(now - self.began, 1e-9)
        if self.live:
            for task in self._tasks():
                self.live.update(task, advance=count, rate=f"{rate:.1f} images/s")
        elif self.form == "json":
            self._advanced(now, rate)
        elif now - self.told > PLAIN_EVERY_SECONDS:
            self.told = now
            title, total = self.parts[self.part]
            line = f"{title}: {self.done_of_part} of {total}, {rate:.1f} images/s"
            line += f", {(total - self.done_of_part) / rate:.0f} s left"
            if len(self.parts) > 1:
                line += f", {(self.total - self.done) / rate:.0f} s over all"
            self.say(line)

    def step(self, what: str, done: float) -> None:
        """Tell how far a step is that takes long and finishes no image: ``done`` goes from 0 to 1."""
        if self.live:
            self.live.update(TaskID(self.part), rate=f"{what}: {done:.0%}")
            return
        now = time.monotonic()
        if now - self.told < (JSON_EVERY_SECONDS if self.form == "json" else PLAIN_EVERY_SECONDS):
            return
        self.told = now
        if self.form == "json":
            self._event("step", part=self.parts[self.part][0], step=what, done=round(done, 4))
        else:
            self.say(f"{what}: {done:.0%}")

    def say(self, line: str) -> None:
        """Print a line beside the progress."""
        if self.quiet:
            return
        if self.live:
            self.live.console.print(line)
        elif self.form == "json":
            self._event("say", text=line)
        else:
            say(line, sys.stderr)

    def _advanced(self, now: float, rate: float) -> None:
        """Tell how far the pass is, now and then and at its end."""
        title, images = self.parts[self.part]
        if now - self.told < JSON_EVERY_SECONDS and self.done_of_part < images:
            return
        self.told = now
        left = (self.total - self.done) / rate if rate else None
        self._event(
            "progress",
            part=title,
            done=self.done_of_part,
            images=images,
            done_of_all=self.done,
            images_of_all=self.total,
            images_per_second=round(rate, 3),
            seconds_left=None if left is None else round(left, 1),
        )

    def _event(self, name: str, **values: Any) -> None:
        if not self.quiet:
            print(_json(name, **values), file=sys.stderr, flush=True)

    def _tasks(self) -> list[TaskID]:
        return [TaskID(self.part), *([TaskID(len(self.parts))] if len(self.parts) > 1 else [])]


def known_form(form: str) -> str:
    """Return ``form`` if it is one of :data:`FORMS`; :class:`UsageError` names the nearest otherwise."""
    if form not in FORMS:
        raise UsageError(f"unknown form of progress '{form}'.{suggest(form, FORMS)}")
    return form


@contextmanager
def reported(form: str = "auto", log: Path | None = None) -> Iterator[None]:
    """Within, make everything on standard error JSON lines (form ``json``) and keep it in the file ``log``.

    The file is appended to, each line with its time.  What is kept in a file comes as plain lines, not as a
    live bar.

    Raises:
        UsageError: for an unknown form, or a file that cannot be written.
    """
    as_json = known_form(form) == "json"
    if not as_json and log is None:
        yield
        return
    shown = sys.stderr
    with _opened(log) as file:
        sys.stderr = lines = _Lines(shown, as_json, file)
        try:
            yield
        except ZsadError as error:
            lines.told("error", f"error: {error}", shown=as_json)
            raise
        finally:
            lines.close_line()
            sys.stderr = shown


@contextmanager
def _opened(log: Path | None) -> Iterator[TextIO | None]:
    if log is None:
        yield None
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"{log}: cannot be written ({error.strerror}); choose another --log-file") from None
    with file:
        yield file


class _Lines(io.TextIOBase):
    """Whole lines of what is written to it: as JSON, with their time into a file, or both."""

    def __init__(self, shown: TextIO, as_json: bool, log: TextIO | None) -> None:
        self.shown, self.as_json, self.log = shown, as_json, log
        self._rest = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream behind."""
        return self.shown.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """What the stream behind does with signs that it lacks."""
        return self.shown.errors

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Take text; lines are handed on when they are whole."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self.told("say", line)
        return len(text)

    def flush(self) -> None:
        """Flush the streams behind."""
        for stream in filter(None, (self.shown, self.log)):
            stream.flush()

    def close_line(self) -> None:
        """Hand on what is left without an end of line."""
        if self._rest:
            self.write("\n")
        self.flush()

    def told(self, event: str, line: str, shown: bool = True) -> None:
        """Hand on one line; ``shown`` is False for what only the file lacks."""
        plain = _COLOUR.sub("", line)
        told = plain.startswith('{"event": ')
        if shown:
            whole = not self.as_json or told
            print(line if whole else _json(event, text=plain), file=self.shown, flush=True)
        plain = json.loads(plain).get("text", plain) if told else plain
        if self.log and plain:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            print(now, plain, file=self.log, flush=True)


def _json(event: str, **values: Any) -> str:
    content = {"event": event, **values}
    text = json.dumps(content, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(content)
