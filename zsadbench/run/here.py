"""What observes and scores in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from ..engine import Clips, Encoder, Pass, Task, images_at_once, observe, pick_dtype
from ..environment import device_name, peak_memory_mb
from ..progress import Progress
from ..records import Contents
from ..samples import Dataset
from ..scoring import on_cores
from .jobs import Request


class Here:
    """Observes and scores in this process, on one device.  ``stop`` is set when the user interrupts."""

    sharing = staticmethod(on_cores)

    def __init__(self, device: torch.device, request: Request, stop: threading.Event) -> None:
        self.device, self.dtype, self.request, self.stop = device, pick_dtype(request.dtype), request, stop
        self.batch_size = request.batch_size or images_at_once(device)
        self.about, self.threads = device_name(device), torch.get_num_threads()
        self.clips: Clips = {}

    def begin(self, tasks: Sequence[Task], data: Dataset, contents: Contents, progress: Progress) -> None:
        """Load towers and encode prompts."""
        self.data, self.progress = data, progress
        self.encoder = Encoder(
            tasks, device=self.device, dtype=self.dtype, batch_size=self.batch_size, clips=self.clips
        )
        for task in tasks:
            self.encoder.prepare(task, data.categories[0])

    def see(self, data: Dataset, contents: Contents) -> None:
        """Take it that a dataset to be scored is there."""

    def observe(self) -> Pass:
        """Observe every missing slice."""
        report = observe(
            self.encoder.tasks,
            self.data.samples,
            self.encoder,
            self.progress,
            workers=self.request.workers,
            orient=self.data.masks == "none",
            stop=self.stop,
        )
        self.batch_size = report.batch_size or self.batch_size
        report.memory_mb = peak_memory_mb(self.device)
        return report
