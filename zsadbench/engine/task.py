"""What is to be observed, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..method import Method, Observer, Relating
from ..records import EvidenceStore, Slice, plan
from ..samples import Sample


@dataclass
class Spent:
    """What a pass cost one method: seconds of its ``own`` steps, and of all those ``shared`` with others.

    Each shared step (above all the plain walk of the image tower) counts whole for every method that uses it,
    so the sum is what the method would take alone.
    """

    own: float = 0.0
    shared: float = 0.0
    images: int = 0

    def add(self, own: float, shared: float = 0.0, images: int = 0) -> None:
        """Count seconds and images."""
        self.own, self.shared, self.images = self.own + own, self.shared + shared, self.images + images

    def described(self) -> dict[str, Any]:
        """Return it as an observation holds it."""
        own, shared = round(self.own, 4), round(self.shared, 4)
        return {"images": self.images, "own_seconds": own, "shared_seconds": shared}


@dataclass
class Task:
    """One method on one dataset: what is to be observed and where it goes.

    ``stored`` are the slices found on disk, without their tensors, ``missing`` those to be observed.
    """

    name: str
    method: Method
    wordings: Mapping[str, str]
    store: EvidenceStore
    order_dependent: bool = False
    slices: list[range] = field(default_factory=list)
    stored: dict[int, Slice] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)
    observer: Observer | None = None
    prepared: str | None = None
    spent: Spent = field(default_factory=Spent)

    @property
    def relates(self) -> bool:
        """Whether the method judges the images of a category by each other."""
        return isinstance(self.method, Relating)

    def plan(self, samples: Sequence[Sample]) -> None:
        """Cut the sample list in slices and find those stored already; failed images are tried again."""
        self.slices = plan(samples, whole_categories=self.order_dependent or self.relates)
        keys = [[samples[i].key for i in part] for part in self.slices]
        found = {number: self.store.find(number, part) for number, part in enumerate(keys)}
        self.stored = {number: part for number, part in found.items() if part}
        self.missing = {number for number, part in found.items() if not part or part.failed}


@dataclass
class Pass:
    """What a pass cost: seconds per phase (of several workers their sum), images encoded, and the rest.

    ``batch_size`` is the one it ended with, ``memory_mb`` the peak of a device; where there were workers,
    ``devices`` says of each what it is and what it did.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0
    batch_size: int = 0
    memory_mb: float = 0.0
    devices: list[dict[str, Any]] = field(default_factory=list)

    def add(self, phase: str, seconds: float) -> None:
        """Count ``seconds`` towards ``phase``."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
