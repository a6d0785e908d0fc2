"""A method on trial: on a miniature CLIP, with a few images, and noise for what it has not learned."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip import SECOND_MINIATURE, Clip, Provenance, layers_and_patch, save_checkpoint
from ..inputs import Backbone, Batch, second_towers
from .protocol import Evidence, Method, Relating
from .registry import Resolved, resolve
from .settings import override

WORDINGS = {"metal_nut": "metal nut", "carpet": "carpet"}
IMAGES = 3

Load = Callable[[Backbone, torch.dtype], Clip]
"""Gives the CLIP of a backbone with its image tower in a number type."""


def miniature(spec: str, **options: Any) -> Resolved:
    """Resolve ``spec`` on the miniature CLIP with its backbone's patch, at 5 or 6 patches a side."""
    plain = resolve(spec, **options)
    patch = layers_and_patch(plain.method.backbone.name)[1]
    name, size = (plain.card.miniature or "tiny-l14", 84) if patch == 14 else ("tiny-b16p", 80)
    towers = dict.fromkeys(second_towers(plain.method), SECOND_MINIATURE)
    settings = {"size": size, **towers, **(options.pop("settings", None) or {})}
    return resolve(spec, **options, backbone=name, weights="random", settings=settings)


@contextmanager
def with_checkpoint(resolved: Resolved, clip: Clip) -> Iterator[Resolved]:
    """Give a trained method that has no checkpoint one of noise, seeded by the names of its tensors."""
    method: Any = resolved.method
    shapes_of = getattr(sys.modules[type(method).__module__], "checkpoint_shapes", None)
    if not resolved.needs_checkpoint or shapes_of is None:
        yield resolved
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.safetensors"
        tensors = {name: _noise(name, shape) for name, shape in shapes_of(method, clip).items()}
        save_checkpoint(path, tensors, Provenance(method=resolved.card.id))
        given = {"checkpoint": str(path)}
        yield dataclasses.replace(
            resolved, method=override(method, given), inductive=override(resolved.inductive, given)
        )


def _noise(name: str, shape: tuple[int, ...]) -> Tensor:
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    std = max(1, shape[-1] if shape else 1) ** -0.5
    return torch.from_numpy(np.asarray(std * rng.standard_normal(shape), np.float32))


def prompts_sent(resolved: Resolved, clip: Clip, category: str, words: str) -> list[list[str]]:
    """Return the sets of prompts that a method sends to the text tower for a category, in order.

    A trained method without a checkpoint is given noise; its learned words stand as its placeholders.
    """
    heard = clip.listen()
    with with_checkpoint(resolved, clip) as ready, torch.no_grad():
        ready.method.prepare(clip, {category: words})
    clip.vision.forget()
    found: list[list[str]] = []
    for prompts in heard:
        if not any(set(prompts) <= set(other) for other in found):  # tokenizing repeats what is encoded
            found.append(prompts)
    return found


class Bench:
    """A method with its miniature CLIP, a few images, and its evidence of them."""

    def __init__(self, resolved: Resolved, clip: Clip, load: Load) -> None:
        self.resolved, self.clip, self.load = resolved, clip, load
        self.method: Method = resolved.method
        # One pass of a method that is order-dependent, or relates images, is one category.
        self.wordings = dict(list(WORDINGS.items())[: 1 if resolved.whole_categories else 2])
        self.images = max(IMAGES, self.method.fewest) if isinstance(self.method, Relating) else IMAGES
        names = list(self.wordings)
        self.categories = [names[i % len(names)] for i in range(self.images)]
        self.observer: object = None

    @cached_property
    def evidence(self) -> Evidence:
        """The evidence of all images in one batch, with ``frame`` as the engine adds it."""
        return self.observe(range(self.images), self.images)

    def observe(
        self,
        order: Sequence[int],
        batch_size: int,
        method: Method | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Evidence:
        """Return the evidence of the images in ``order``, by a new observer, ``batch_size`` at a time.

        It is the evidence to keep: that of a method that relates images is related.
        """
        method = method or self.method
        clip = self.clip if dtype == torch.float32 else self.load(self.method.backbone, dtype)
        self.observer = observer = method.prepare(clip, self.wordings)
        parts = []
        for start in range(0, len(order), batch_size):
            batch = self.batch(order[start : start + batch_size])
            batch = dataclasses.replace(batch, images=batch.images.to(dtype))
            parts.append({**observer.observe(batch), "frame": batch.frame.float()})
            clip.vision.forget()
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if isinstance(method, Relating):
            related = method.relate(found, torch.device("cpu"), lambda done: None)
            found = {**related, "frame": found["frame"]}
        return found

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return a batch of the images ``indices``; tiled methods get frames of different widths."""
        made = [self._image(index) for index in indices]
        return Batch(
            images=torch.stack([image for image, _, _ in made]),
            boxes=torch.stack([boxes for _, boxes, _ in made]),
            frame=torch.stack([frame for _, _, frame in made]),
            keys=[f"{self.categories[index]}/test/{index:03}.png" for index in indices],
            categories=[self.categories[index] for index in indices],
        )

    def _image(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tiles (T, 3, S, S), boxes (T, 4) and frame (2,): smooth noise with one bright square."""
        spec = self.method.preprocess
        side = spec.size
        width = side + (side * (index + 1)) // 8 if spec.tiles == "ends" else side
        rng = np.random.RandomState(1000 + index)
        coarse = torch.from_numpy(rng.standard_normal((1, 3, 8, 8)).astype(np.float32))
        image = F.interpolate(coarse, (side, width), mode="bicubic", align_corners=False)[0]
        top, left = rng.randint(0, side // 2, 2)
        image[:, top : top + side // 4, left : left + side // 4] += 2.0
        lefts = [0, width - side] if spec.tiles == "ends" else [0]
        boxes = torch.tensor([[x, 0, x + side, side] for x in lefts])
        return torch.stack([image[..., x : x + side] for x in lefts]), boxes, torch.tensor([side, width])
