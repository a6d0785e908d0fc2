"""What several methods have in common."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, Text, anchor, ensemble
from zsadbench.errors import MethodError
from zsadbench.images import in_pieces

# The template list of WinCLIP's compositional ensemble (Jeong et al., 2023).
TEMPLATES_22 = (
    "a cropped photo of the {}.",
    "a cropped photo of a {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of the {}.",
    "a dark photo of a {}.",
    "a jpeg corrupted photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of the {}.",
    "a blurry photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of the {} for visual inspection.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.",
    "a photo of a {} for anomaly detection.",
)
FLAWLESS = (
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
FLAWED = ("{} with flaw", "{} with defect", "{} with damage")
NORMAL_STATES = ("{}", *FLAWLESS)
ANOMALOUS_STATES = ("damaged {}", *FLAWED)


class Early:
    """Random numbers drawn on threads before they are asked for, each for a call of ``draw`` once.

    ``draw`` must depend on its arguments alone.  Numbers that were not announced are drawn when asked for.
    """

    def __init__(self, draw: Callable[..., Tensor]) -> None:
        self.draw = draw
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: dict[tuple[Any, ...], Future[Tensor]] = {}

    def announce(self, calls: Collection[tuple[Any, ...]]) -> None:
        """Begin to draw for ``calls``; what was announced before them and not asked for is dropped."""
        self._pool = self._pool or ThreadPoolExecutor(4, thread_name_prefix="zsad-draw")
        for call in [call for call in self._waiting if call not in calls]:
            self._waiting.pop(call).cancel()
        for call in calls:
            if call not in self._waiting:
                self._waiting[call] = self._pool.submit(self.draw, *call)

    def __call__(self, *call: Any) -> Tensor:
        """Return what ``draw`` gives for the same arguments."""
        early = self._waiting.pop(call, None)
        return self.draw(*call) if early is None else early.result()


class Anchors:
    """Text anchors of every category: ``table[category]`` (2, C), rows normal and anomalous, unit length."""

    def __init__(self, table: Mapping[str, Tensor]) -> None:
        self.table = table

    def of(self, categories: Sequence[str]) -> Tensor:
        """Return the anchors (B, 2, C) of each image's category.

        Raises:
            MethodError: if a category was not prepared.
        """
        check_prepared(categories, self.table)
        return torch.stack([self.table[category] for category in categories])


def check_prepared(categories: Sequence[str], prepared: Collection[str]) -> None:
    """Refuse a category that was not prepared.

    Raises:
        MethodError: naming it.
    """
    for category in categories:
        if category not in prepared:
            raise MethodError(f"category '{category}' was not prepared; prepared: {', '.join(prepared)}")


def ensemble_anchors(
    clip: Clip,
    wordings: Mapping[str, str],
    normal: Sequence[str],
    anomalous: Sequence[str],
    templates: Sequence[str],
    *,
    normalise_prompts: bool = False,
) -> Anchors:
    """Return anchors of states x templates for each category of ``wordings``."""
    return Anchors(
        {
            category: torch.stack(
                [
                    anchor(clip, ensemble(states, templates, words), normalise_prompts=normalise_prompts)
                    for states in (normal, anomalous)
                ]
            )
            for category, words in wordings.items()
        }
    )


def anomaly_probability(features: Tensor, anchors: Tensor, scale: float = 1.0) -> Tensor:
    """Return the softmax probability (B, ...) of the anomalous anchor for ``features`` (B, ..., C).

    ``anchors`` (B, 2, C); cosines are multiplied by ``scale`` (1 / temperature).
    """
    unit = F.normalize(features.float(), dim=-1)
    difference = (anchors[:, 1] - anchors[:, 0])[:, :, None]
    logits = unit.flatten(1, -2) @ difference if unit.ndim > 2 else unit[:, None] @ difference
    return torch.sigmoid(scale * logits[..., 0]).view(unit.shape[:-1])


def as_grid(values: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Return patch values (B, N) as grids (B, gh, gw), square unless ``grid`` says otherwise."""
    side = math.isqrt(values.shape[-1])
    return torch.unflatten(values, -1, grid or (side, side))


def encode_per_image(
    text: Text, x: Tensor, tokens: Tensor, deep: Mapping[int, Tensor], *, first: int = 0, half: bool = True
) -> Tensor:
    """Return the features (B, P, C) of P sentences for each of B images, un-normalised, in one pass.

    ``x`` (B, P, L, W) enters block ``first`` (from 0), ``tokens`` (P, L) tell where a sentence ends, and
    before a block of ``deep`` its vectors (1 or B, M, W) take the places after the start token.  The pass
    is narrower than that of B images through the image tower.  Gradients reach ``x`` and ``deep``.
    """
    images, sentences = x.shape[:2]
    x = x.flatten(0, 1)
    for number in range(first, len(text.blocks)):
        if number in deep:
            x = overwrite(x, deep_vectors(deep[number].expand(images, -1, -1), sentences, half))
        x = text.blocks[number](x)
    return torch.unflatten(text.pool(x, tokens.repeat(images, 1)), 0, (images, sentences))


def deep_vectors(prompts: Tensor, count: int, half: bool) -> Tensor:
    """Return deep prompts (B, M, W) for ``count`` sentences of each image, (B * count, M, W).

    The cast comes after the expansion: gradients are rounded to float16 per sentence, then summed.
    """
    vectors = prompts[:, None].expand(-1, count, -1, -1)
    return (vectors.half().float() if half else vectors).flatten(0, 1)


def overwrite(x: Tensor, vectors: Tensor) -> Tensor:
    """Return sequences ``x`` (n, L, W) with the positions after the start token replaced by ``vectors``."""
    return torch.cat([x[:, :1], vectors, x[:, 1 + vectors.shape[1] :]], dim=1)


def walked(walk: Callable[[Tensor], Tensor], rows: Tensor, most: Callable[[], int]) -> Tensor:
    """Return ``walk(rows)`` in pieces of at most ``most()`` rows; whole while torch writes a graph.

    A graph has no number of rows, and a loop over pieces would fix one.
    """
    return walk(rows) if torch.compiler.is_compiling() else in_pieces(walk, rows, most())


def generator(seed: int, *place: str | int) -> np.random.Generator:
    """Return a random generator of its own for each (seed, place): free of any order."""
    digest = hashlib.sha256("/".join(map(str, (seed, *place))).encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))
