"""The loop of a training: draws batches, steps, tells the loss, keeps what an interruption needs to go on.

Every random draw depends on (seed, stage, epoch, image) alone, so no state of a generator is kept.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import TaskID
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import MethodError, UsageError, is_out_of_memory
from ..files import write_atomic
from ..progress import PLAIN_EVERY_SECONDS
from .feeder import Feeder
from .stages import Stage

if TYPE_CHECKING:
    from ..progress import Progress


@dataclass(frozen=True)
class Position:
    """How far a training has come: ``epochs`` of stage number ``stage`` are done."""

    stage: int = 0
    epochs: int = 0


class ResumeFile:
    """What an interrupted training needs to go on: everything learned and the optimiser's state.

    ``identity`` is a digest of all that the result depends on; a file of another one is refused.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity

    def save(self, stages: Sequence[Stage], position: Position) -> None:
        """Write the state after an epoch, whole or not at all.

        Raises:
            RecordError: if the file cannot be written.
        """
        stage = stages[position.stage]
        tensors = {f"learned/{key}": value for one in stages for key, value in one.parameters.items()}
        for number, state in stage.optimiser.state_dict()["state"].items():
            tensors |= {f"state/{number}/{name}": value for name, value in state.items()}
        about = {
            "identity": self.identity,
            "stage": position.stage,
            "epochs": position.epochs,
            "steps": stage.steps,
        }
        whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        write_atomic(self.path, save(whole, {"training": json.dumps(about)}))

    def load(self, stages: Sequence[Stage]) -> Position:
        """Put the stored state into ``stages`` and return how far it came; the start if there is no file.

        Raises:
            UsageError: if the file is damaged or belongs to a training with other settings.
        """
        if not self.path.is_file():
            return Position()
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads(file.metadata()["training"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{self.path}: the state of an interrupted training is damaged ({error}); delete it to begin "
                "again"
            ) from None
        if about.get("identity") != self.identity:
            raise UsageError(
                f"{self.path}: an interrupted training with other data, settings or versions of them; repeat "
                "its command to go on, delete the file to give it up, or choose another --out"
            )
        self._restore(stages, about, tensors)
        return Position(about["stage"], about["epochs"])

    @staticmethod
    def _restore(stages: Sequence[Stage], about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        stage = stages[about["stage"]]
        for one in stages:
            for key, value in one.parameters.items():
                value.data.copy_(tensors[f"learned/{key}"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == "state":
                number, _, name = rest.partition("/")
                state.setdefault(int(number), {})[name] = value
        whole = stage.optimiser.state_dict() | {"state": state}
        stage.optimiser.load_state_dict(whole)
        stage.steps = about["steps"]

    def remove(self) -> None:
        """Delete the file: the training is complete."""
        self.path.unlink(missing_ok=True)


Losses = list[dict[str, float]]
"""Mean losses of each epoch, in order."""


def images_left(stages: Sequence[Stage], begin: Position, count: int) -> int:
    """Return how many images of a set of ``count`` are still to be stepped through."""
    return count * (sum(stage.epochs for stage in stages[begin.stage :]) - begin.epochs)


def fit(
    stages: Sequence[Stage],
    feeder: Feeder,
    begin: Position,
    finished: Callable[[Position], None],
    progress: Progress,
) -> Losses:
    """Go through the stages from ``begin``; returns the mean losses of each epoch of this call.

    ``finished`` is called after each epoch.

    Raises:
        MethodError: if memory runs out or a loss is not finite.
    """
    if begin != Position():
        progress.say(f"going on after epoch {begin.epochs} of {stages[begin.stage].name}")
    progress.start()
    losses: Losses = []
    for number in range(begin.stage, len(stages)):
        stage = stages[number]
        done = begin.epochs if number == begin.stage else 0
        with _memory_named(stage, feeder.device):
            if done < stage.epochs:
                feeder.begin(stage)
            for epoch in range(done + 1, stage.epochs + 1):
                losses.append(_epoch(stage, number, epoch, feeder, progress))
                finished(Position(number, epoch))
    return losses


def _epoch(stage: Stage, number: int, epoch: int, feeder: Feeder, progress: Progress) -> dict[str, float]:
    """Step through an epoch and return the means of the batches' losses."""
    found: dict[str, list[float]] = {}
    title = f"{progress.parts[0][0]}: {stage.name}, epoch {epoch} of {stage.epochs}"
    for features, truth in feeder.epoch(stage, number, epoch):
        losses = stage.step(features, truth)
        if not math.isfinite(losses["loss"]):
            raise MethodError(
                f"{stage.name}: the loss is {losses['loss']} in epoch {epoch}; lower the learning rate with "
                "--set lr=..."
            )
        for name, value in losses.items():
            found.setdefault(name, []).append(value)
        if progress.live:
            progress.live.update(TaskID(0), description=f"{title}, loss {losses['loss']:.4f}")
        elif time.monotonic() - progress.told > PLAIN_EVERY_SECONDS:
            progress.told = time.monotonic()
            progress.say(f"{title}: loss {losses['loss']:.4f}, {_left(progress)} left")
        progress.advance(len(truth.labels))
    means = {name: sum(values) / len(values) for name, values in found.items()}
    parts = ", ".join(f"{name} {value:.4f}" for name, value in means.items() if name != "loss")
    progress.say(f"{title}: loss {means['loss']:.4f} ({parts}), {_left(progress)} left")
    return means


def _left(progress: Progress) -> str:
    seconds = (time.monotonic() - progress.began) / max(progress.done, 1) * (progress.total - progress.done)
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


@contextmanager
def _memory_named(stage: Stage, device: torch.device) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MethodError(
            f"out of memory on {device} with a batch of {stage.batch_size} ({stage.name}); what is done is "
            "kept; give a smaller batch (another training, with its own --out) or --set size=..., or "
            "another --device"
        ) from error
