"""Progress of a pass: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

PLAIN_EVERY_SECONDS = 15.0


class Progress:
    """Counts images of one dataset and tells images per second and the time left."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title, self.quiet = title, quiet
        self.console = Console(stderr=True)
        self.live: RichProgress | None = None
        self.total = self.done = 0
        self.began = self.told = time.monotonic()

    def start(self, total: int) -> None:
        """Begin a pass over ``total`` images."""
        self.total, self.done = total, 0
        self.began = self.told = time.monotonic()
        if self.quiet or not total:
            return
        if self.console.is_terminal:
            self.live = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.live.start()
            self.live.add_task(self.title, total=total, rate="")
        else:
            self.say(f"{self.title}: {total} images")

    def advance(self, count: int) -> None:
        """Count ``count`` finished images."""
        self.done += count
        now = time.monotonic()
        rate = self.done / max(now - self.began, 1e-9)
        if self.live:
            self.live.update(self.live.task_ids[0], advance=count, rate=f"{rate:.1f} images/s")
        elif not self.quiet and now - self.told > PLAIN_EVERY_SECONDS:
            self.told = now
            left = (self.total - self.done) / rate
            self.say(f"{self.title}: {self.done} of {self.total}, {rate:.1f} images/s, {left:.0f} s left")

    def say(self, line: str) -> None:
        """Print a line beside the progress."""
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """End the live display."""
        if self.live:
            self.live.stop()
            self.live = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
