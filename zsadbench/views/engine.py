"""What judges images for a predictor: a method on its CLIP, in torch."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..clip import checkpoint_file, find_seconds, find_weights, hub_address, load_checkpoint
from ..engine import Encoder, Gathered, Task, pick_device, pick_dtype, related, too_few
from ..environment import environment
from ..errors import MethodError
from ..files import sha256_of, whole_path
from ..images import Loaded
from ..method import WORDLESS, Relating, Resolved, resolve
from ..records import EvidenceStore, Slice, select_rows
from ..run import trained_on
from ..scoring import EvidenceMaps
from .setup import DEFAULT_WORDS, Evidence, Seen, Setup

if TYPE_CHECKING:
    from .overlay import Scale


class ClipEngine:
    """The method of a setup with its CLIP, which is loaded with the first image.

    Raises:
        ZsadError: for a name, parameter or file that cannot be used.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        dtype = pick_dtype(setup.dtype)  # before anything is read
        device = pick_device(setup.device)
        self.resolved = _resolved(setup)
        self.method = self.resolved.inductive
        self.weights = find_weights(self.method.backbone)
        self.words = setup.words.strip() or DEFAULT_WORDS
        self.id, self.spec = self.resolved.id, self.method.preprocess
        self.task = Task(
            self.id,
            self.method,
            {self.words: self.words},
            EvidenceStore(Path()),  # nowhere: the encoder hands evidence back, it stores none
            self.resolved.card.order_dependent,
        )
        self.encoder = Encoder([self.task], device=device, dtype=dtype, batch_size=setup.batch_size)
        self._one, self._call = threading.Lock(), threading.Lock()

    @property
    def relates(self) -> bool:
        """Whether the images of a call are judged by each other."""
        return self.task.relates

    @property
    def batch_size(self) -> int:
        """How many images are observed at once."""
        return self.encoder.batch_size

    @property
    def tower(self) -> tuple[str, str]:
        """Name and weights of the CLIP."""
        return self.method.backbone.name, self.method.backbone.weights

    @contextmanager
    def call(self) -> Iterator[None]:
        """Surround a call: what goes on from image to image starts afresh, with no other call beside it."""
        if not self.task.order_dependent:
            yield
            return
        with self._call:
            self.task.observer = None
            yield

    def observe(self, loaded: Sequence[Loaded]) -> Evidence:
        """Return the evidence (B, ...) of images, a row each; one thread at a time is in the towers."""
        with self._one:
            return self.encoder.observe(loaded, [self.task])[0]

    def relate(self, seen: Iterator[Seen], images: int, step: Callable[[str, float], None]) -> Iterator[Seen]:
        """Observe all images before the first one is judged: each is judged by the others.

        Raises:
            MethodError: for fewer images than the method compares with each other.
        """
        assert isinstance(self.method, Relating)
        self._check_enough(images)
        gathered, held = Gathered(images, self.id), []
        for loaded, tiles, evidence in seen:
            gathered.add([loaded], evidence)
            held.append((dataclasses.replace(loaded, inputs={}), tiles))
        whole = gathered.slice()
        self._check_enough(len(whole.keys))
        device = self.encoder.device
        whole = related(
            whole, self.method, self.id, device, lambda done: step(f"{self.id} relates the images", done)
        )
        rows = count()
        for loaded, tiles in held:
            yield loaded, tiles, select_rows(whole.evidence, [next(rows)]) if tiles else {}

    def _check_enough(self, images: int) -> None:
        if reason := too_few(self.method, images):
            raise MethodError(f"{self.id} {reason}; here are {images} that can be read")

    def maps(self, evidence: Evidence) -> Iterator[NDArray[np.float32]]:
        """Yield the map (H, W) of every row at the size the method is evaluated at."""
        maps, size = self._maps(evidence), self.resolved.size
        for row in range(len(maps.keys)):
            yield maps.render(row, maps.own_size(row) if size == "frame" else (size, size))

    def scores(self, evidence: Evidence, extremes: Sequence[Scale]) -> NDArray[np.float64]:
        """Return the scores (N,); ``extremes`` are the least and the greatest value of each row's map."""
        scores = self._maps(evidence).image_scores(torch.tensor(extremes))
        return np.asarray(scores.double().numpy())

    def _maps(self, evidence: Evidence) -> EvidenceMaps:
        tensors = {name: torch.as_tensor(value) for name, value in evidence.items()}
        keys = [str(row) for row in range(len(tensors["frame"]))]
        return EvidenceMaps(self.method, Slice(tensors, keys, []))

    def identity(self) -> dict[str, Any]:
        """Return what a score depends on, as JSON values; weights and checkpoint by their digests."""
        parameters = dict(self.resolved.parameters)
        parameters["backbone"] = parameters["backbone"] | self.weights.identity()
        seconds = find_seconds(self.method)
        parameters |= {field: parameters[field] | {"weights": one.digest} for field, one in seconds.items()}
        if parameters.get("checkpoint"):
            parameters["checkpoint"] = sha256_of(Path(parameters["checkpoint"]))
        return {
            "method": self.id,
            "version": self.resolved.card.version,
            "parameters": parameters,
            "words": self.words,
            "image_score": "inductive",
            "dtype": self.setup.dtype,
        }

    def names(self) -> dict[str, str]:
        """Return what :meth:`identity` holds by digests as names that lead to the files again."""
        backbone = self.method.backbone
        checkpoint = str(getattr(self.method, "checkpoint", "") or "")
        return {
            "method": self.setup.method,
            "backbone": whole_path(backbone.name),
            "weights": whole_path(backbone.weights),
            "activation": self.weights.activation,
            "checkpoint": checkpoint and (hub_address(checkpoint) or str(Path(checkpoint).resolve())),
        }

    def surroundings(self) -> dict[str, Any]:
        """Return the tag of the weights and the environment, for files that hold scores."""
        return {
            "weights": self.weights.tag,
            "environment": environment(self.encoder.device, self.setup.dtype),
        }

    def remarks(self) -> list[str]:
        """Return what was chosen for the user, or has no effect."""
        setup, found = self.setup, []
        if self.resolved.card.wording == WORDLESS:
            if setup.words.strip():
                found.append(f"the prompts of {self.id} name nothing, so --words changes nothing")
        elif not setup.words.strip():
            found.append(
                f'no --words, so the prompts say "{DEFAULT_WORDS}"; name what is seen for better scores'
            )
        name, own = self.tower[0], self.resolved.card.backbone
        if setup.checkpoint and not setup.backbone and not own.startswith(f"{name}/"):
            found.append(f"on {name}, which the checkpoint was trained on")
        return found


def _resolved(setup: Setup) -> Resolved:
    """Return the method with its inductive score.

    Raises:
        MethodError: if a trained method has no checkpoint, or scores of one image alone do not exist.
    """
    checkpoint = checkpoint_file(setup.checkpoint) if setup.checkpoint else None
    chosen = {"checkpoint": str(checkpoint)} if checkpoint else {}
    towers: dict[str, str] = {}
    if setup.backbone is None and checkpoint:
        towers = trained_on(checkpoint, resolve(setup.method).method.backbone.name)
    given = {name: getattr(setup, name) for name in ("backbone", "weights", "activation")}
    towers |= {name: value for name, value in given.items() if value is not None}
    settings: Mapping[str, Any] = {**setup.settings, **chosen}
    resolved = resolve(setup.method, prompts=setup.prompts, settings=settings, **towers)
    if resolved.needs_checkpoint:
        load_checkpoint("", resolved.card.id, {})  # says how to come by one
    if resolved.card.transductive and not resolved.card.inductive:
        raise MethodError(
            f"'{resolved.id}' scores an image by comparing it with others and has no inductive rule; "
            "choose another method"
        )
    return resolved
