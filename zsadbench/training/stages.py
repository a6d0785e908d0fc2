"""What training is: a recipe whose stages say what is learned and how, with their optimiser and loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..clip import Clip
    from ..inputs import Batch
    from .data import Variation


@dataclass(frozen=True)
class Truth:
    """What is known of a batch: ``masks`` (B, S, S) of 0 and 1, ``labels`` (B,), and ``categories``."""

    masks: Tensor
    labels: Tensor
    categories: Sequence[str]


Features = Mapping[str, Tensor]
"""What the frozen towers make of a batch; first axis = image."""


@dataclass
class Stage:
    """One optimisation.

    ``features`` is the frozen part, computed without gradients, once per image where it is ``cached``;
    ``loss`` returns named scalars, of which ``loss`` is minimised.  ``vary`` may replace an image by an
    augmented one.  ``rate`` gives what the learning rate of every group is multiplied by after so many
    steps, where it is not constant; ``batches``, the steps of an epoch, are known by then.
    """

    name: str
    parameters: Mapping[str, Tensor]
    optimiser: torch.optim.Optimizer
    epochs: int
    batch_size: int
    features: Callable[[Batch], Features]
    loss: Callable[[Features, Truth], Mapping[str, Tensor]]
    shuffle: bool = True
    cached: bool = True
    vary: Variation | None = None
    rate: Callable[[int], float] | None = None
    batches: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)

    def step(self, features: Features, truth: Truth) -> dict[str, float]:
        """Take one step and return the losses before it; gradients stay on the parameters."""
        if self.rate is not None:
            factor = self.rate(self.steps)
            for group in self.optimiser.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        self.optimiser.zero_grad()
        losses = self.loss(features, truth)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.steps += 1
        return {name: float(value.detach()) for name, value in losses.items()}


class Recipe(Protocol):
    """How a method is trained: a frozen dataclass of numbers."""

    @property
    def seed(self) -> int:
        """What every random draw depends on."""
        ...

    def stages(self, method: Any, clip: Clip, wordings: Mapping[str, str]) -> Sequence[Stage]:
        """Return the stages, in order, with their parameters at the start; they share what they hand on."""
        ...


def leaves(start: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return tensors to learn, of any shape, on ``device``."""
    return {name: value.to(device, torch.float32).requires_grad_() for name, value in start.items()}
