"""Progress of a pass: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
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

PLAIN_EVERY_SECONDS = 15.0


class Progress:
    """Counts the images of each dataset and of all, with images per second and the time left.

    ``parts`` are the title and the number of images of each pass, in order.
    """

    def __init__(self, parts: Sequence[tuple[str, int]], *, quiet: bool = False) -> None:
        self.parts, self.quiet = list(parts), quiet
        self.total = sum(count for _, count in self.parts)
        self.console = Console(stderr=True)
        self.live: RichProgress | None = None
        self.part = -1
        self.done = self.done_of_part = 0
        self.began = self.told = time.monotonic()

    def __enter__(self) -> Progress:
        if not self.quiet and self.total and self.console.is_terminal:
            self.live = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            for title, count in [*self.parts, *([("all", self.total)] if len(self.parts) > 1 else [])]:
                self.live.add_task(title, total=count, rate="", start=False)
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
        elif now - self.told > PLAIN_EVERY_SECONDS:
            self.told = now
            title, total = self.parts[self.part]
            line = f"{title}: {self.done_of_part} of {total}, {rate:.1f} images/s"
            line += f", {(total - self.done_of_part) / rate:.0f} s left"
            if len(self.parts) > 1:
                line += f", {(self.total - self.done) / rate:.0f} s over all"
            self.say(line)

    def say(self, line: str) -> None:
        """Print a line beside the progress."""
        if self.quiet:
            return
        if self.live:
            self.live.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _tasks(self) -> list[TaskID]:
        return [TaskID(self.part), *([TaskID(len(self.parts))] if len(self.parts) > 1 else [])]
