"""AnoCLIP+ (Deng et al., arXiv 2308.15939): AnoCLIP with an adapter learned on each test image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import Clip, encode
from zsadbench.inputs import Batch, Number, Positive, Seed, Weight
from zsadbench.maps import render
from zsadbench.method import Evidence

from ._shared import Early, as_grid, generator
from .anoclip import AnoClip, AnoClipObserver, stitch

Draw = Callable[[str, str, int, tuple[int, ...], float], Tensor]
"""``draw(key, what, step, shape, std)`` gives random numbers of standard deviation ``std`` for an image.

``what`` is ``weight`` or ``bias`` (step 0, uniform, where the adapter starts) or ``noise`` (normal).
"""

BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class AnoClipPlus(AnoClip):
    """AnoCLIP whose patch tokens pass an adapter, optimised on the image itself without a label.

    ``adapter="text"`` reconstructs tokens from the prompt embeddings, ``"linear"`` is one plain layer.
    Weights are drawn anew for every image.  The optimiser's moments and step count, however, go on
    from image to image of a category, as in the authors' code, so that results depend on the order;
    ``reset`` starts them afresh, and then a whole batch is optimised at once.
    """

    adapter: Literal["text", "linear"] = "text"
    reset: bool = False
    steps: Number = 5
    lr: Positive = 1e-3
    weight_decay: Weight = 0.01
    noise: Weight = 0.055
    residual: Weight = 0.5
    hard_weight: Weight = 0.5
    seed: Seed = 111

    def prepare(self, clip: Clip, wordings: Mapping[str, str]) -> AnoClipPlusObserver:
        """Prepare AnoCLIP, and for the text adapter keep every unit prompt embedding."""
        plain = super().prepare(clip, wordings)
        banks: dict[str, Tensor] = {}
        if self.adapter == "text":
            for category, words in wordings.items():
                both = [encode(clip, prompts) for prompts in self.prompts(category, words)]
                banks[category] = F.normalize(torch.cat(both), dim=-1)
        return AnoClipPlusObserver(self, clip, plain.anchors, banks, Early(seeded(self.seed)))


class Adam:
    """AdamW (Loshchilov and Hutter, 2019) on plain tensors; the first axis may be a batch of problems."""

    def __init__(self, lr: float, weight_decay: float) -> None:
        self.lr, self.weight_decay, self.count = lr, weight_decay, 0
        self.moments: list[tuple[Tensor, Tensor]] = []

    def update(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Move ``parameters`` in place by one step along ``gradients``."""
        if not self.moments:
            self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self.count += 1
        first, second = (1 - beta**self.count for beta in BETAS)
        for p, g, (mean, square) in zip(parameters, gradients, self.moments, strict=True):
            mean.lerp_(g, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            scale = square.sqrt().div_(math.sqrt(second)).add_(EPSILON)
            p.mul_(1 - self.lr * self.weight_decay).addcdiv_(mean, scale, value=-self.lr / first)


@dataclass(frozen=True)
class Step:
    """One step of the adaptation: losses (B,), logits (n, 2, ...) clean and noisy, adapters after it."""

    soft: Tensor
    hard: Tensor
    logits: Sequence[Tensor]
    weight: Tensor
    bias: Tensor


def _unwatched(step: Step) -> None:
    """Take no notice of a step."""


@dataclass(frozen=True)
class AnoClipPlusObserver(AnoClipObserver):
    """Evidence as AnoCLIP's, with ``map`` from adapted tokens.

    ``banks`` holds each category's prompt embeddings (K, C), normal first; ``draw`` gives the random
    numbers; ``watch`` is called after each step of the adaptation.
    """

    method: AnoClipPlus
    banks: Mapping[str, Tensor]
    draw: Draw
    watch: Callable[[Step], None] = _unwatched
    optimisers: dict[str, Adam] = field(default_factory=dict)

    def observe(self, batch: Batch) -> Evidence:
        """Return AnoCLIP's evidence with the map of the adapted tokens."""
        views = super().observe(batch)["views"]
        _, tokens = self.dual_path(batch)
        # Autograd cannot keep tensors of the inference mode the engine observes in: hence the clones.
        with torch.inference_mode(False), torch.enable_grad():
            tiled = tokens.float().clone().view(len(batch.keys), -1, *tokens.shape[1:])
            grid = self.adapted(tiled, batch)
        return {"map": as_grid(grid, self.clip.vision.grid(batch.images)), "views": views}

    def draw_ahead(self, keys: Sequence[str], categories: Sequence[str]) -> None:
        """Begin to draw, on threads, the random numbers of images that come next."""
        if not isinstance(self.draw, Early):
            return
        method, vision = self.method, self.clip.vision
        tiles, side = 1 if method.preprocess.tiles == "none" else 2, method.preprocess.size // vision.patch
        width = vision.proj.shape[1]
        calls: list[tuple[str, str, int, tuple[int, ...], float]] = []
        for key, category in zip(keys, categories, strict=True):
            if (
                category not in self.anchors.table
            ):  # another observer's, where state goes on through a category
                continue
            bank = self.banks.get(category)
            calls += [(key, what, 0, shape, std) for what, shape, std in self.first(width, bank)]
            noise = (tiles, side * side, width)
            calls += [(key, "noise", step, noise, method.noise) for step in range(method.steps)]
        self.draw.announce(calls)

    def adapted(self, tokens: Tensor, batch: Batch) -> Tensor:
        """Return anomaly probabilities (B, T, N) of patch ``tokens`` (B, T, N, C) after the adaptation."""
        grid = tokens.new_empty(tokens.shape[:-1])
        for category, images in self.groups(batch.categories):
            keys = [batch.keys[image] for image in images]
            grid[images] = self.adapt(tokens[images], category, keys, batch.frame[images])
        return grid

    def groups(self, categories: Sequence[str]) -> list[tuple[str, list[int]]]:
        """Return which images are optimised together: those of a category, or each alone and in order."""
        if not self.method.reset:
            return [(category, [image]) for image, category in enumerate(categories)]
        return [
            (name, [i for i, c in enumerate(categories) if c == name]) for name in dict.fromkeys(categories)
        ]

    def adapt(self, tokens: Tensor, category: str, keys: Sequence[str], frames: Tensor) -> Tensor:
        """Optimise the adapters of some images of ``category`` and return their probabilities (B, T, N)."""
        method, bank, optimiser = self.method, self.bank(category), self.optimiser(category)
        normal, anomalous = self.anchors.of([category])[0].clone()
        direction = anomalous - normal
        weight, bias = self.start(keys, tokens.shape[-1], bank)
        for step in range(method.steps):
            noisy = tokens + self.drawn(keys, "noise", step, tuple(tokens.shape[1:]), method.noise)
            mixed = self.mix(torch.stack([tokens, noisy], dim=1), weight, bias, bank)
            logits = positions(F.normalize(mixed, dim=-1) @ direction, frames, method.preprocess.size)
            soft, hard = (torch.cat(losses) for losses in zip(*map(self_training, logits), strict=True))
            gradients = torch.autograd.grad((soft + method.hard_weight * hard).sum(), (weight, bias))
            with torch.no_grad():
                optimiser.update((weight, bias), gradients)
            self.watch(Step(soft, hard, logits, weight, bias))
        with torch.no_grad():
            adapted = self.mix(tokens, weight, bias, bank)
            return torch.sigmoid(F.normalize(adapted, dim=-1) @ direction)

    def bank(self, category: str) -> Tensor | None:
        """Return the prompt embeddings (K, C) of ``category``; the linear adapter has none."""
        return self.banks[category].clone() if self.method.adapter == "text" else None

    def optimiser(self, category: str) -> Adam:
        """Return a fresh optimiser, or the one that goes on through ``category``."""
        fresh = Adam(self.method.lr, self.method.weight_decay)
        return fresh if self.method.reset else self.optimisers.setdefault(category, fresh)

    def start(self, keys: Sequence[str], width: int, bank: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the adapters' first weights (B, K, C) and biases (B, K)."""
        first = self.first(width, bank)
        weight, bias = (self.drawn(keys, what, 0, shape, std) for what, shape, std in first)
        return weight.requires_grad_(), bias.requires_grad_()

    def first(self, width: int, bank: Tensor | None) -> tuple[tuple[str, tuple[int, ...], float], ...]:
        """Return name, shape and standard deviation of an adapter's first weight and bias."""
        rows, std = width if bank is None else len(bank), (3 * width) ** -0.5
        return ("weight", (rows, width), std), ("bias", (rows,), std)

    def drawn(self, keys: Sequence[str], what: str, step: int, shape: tuple[int, ...], std: float) -> Tensor:
        """Return the images' random numbers (B, *shape) on the device of the tower."""
        numbers = torch.stack([self.draw(key, what, step, shape, std) for key in keys])
        if self.clip.device.type == "cuda":
            numbers = numbers.pin_memory()  # else the device is waited for
        return numbers.to(self.clip.device, non_blocking=True)

    def mix(self, tokens: Tensor, weight: Tensor, bias: Tensor, bank: Tensor | None) -> Tensor:
        """Return adapted ``tokens`` (B, ..., C): half themselves, half the adapter of their direction."""
        flat = tokens.flatten(1, -2)
        out = torch.baddbmm(bias[:, None], F.normalize(flat, dim=-1), weight.mT)
        if bank is not None:
            out = out.tanh() @ bank
        return torch.lerp(out, flat, self.method.residual).view(tokens.shape)


def seeded(seed: int) -> Draw:
    """Return draws from a generator of their own for each (seed, key, what, step): free of any order."""

    def draw(key: str, what: str, step: int, shape: tuple[int, ...], std: float) -> Tensor:
        own = generator(seed, key, what, step)
        if what == "noise":
            return torch.from_numpy(own.standard_normal(shape, dtype=np.float32)).mul_(std)
        bound = math.sqrt(3) * std
        return torch.from_numpy(own.random(shape, dtype=np.float32)).mul_(2 * bound).sub_(bound)

    return draw


def positions(logits: Tensor, frames: Tensor, side: int) -> list[Tensor]:
    """Return what the losses average over, each (n, 2, ...): patches, or the pixels of two stitched tiles.

    ``logits`` (B, 2, T, N), clean and noisy; ``frames`` (B, 2) height and width before tiling into ``side``.
    """
    if logits.shape[2] == 1:
        return [logits[:, :, 0]]
    maps = render(as_grid(logits.flatten(0, 2)), (side, side), align_corners=True)
    tiles = maps.view(*logits.shape[:3], side, side)
    return [
        stitch(one[:, 0], one[:, 1], (int(frame[0]), int(frame[1])))[None]
        for one, frame in zip(tiles, frames, strict=True)
    ]


def self_training(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the soft and the hard loss (n,) of ``logits`` (n, 2, ...), clean and noisy.

    Soft is the entropy of the clean prediction; hard pulls noisy tokens to anomalous and clean ones to
    normal.  A two-way softmax is the sigmoid of the difference of its logits.
    """
    clean, noisy = logits.flatten(2).unbind(1)
    p = torch.sigmoid(clean)
    soft = p * F.softplus(-clean) + (1 - p) * F.softplus(clean)
    return soft.mean(dim=1), (F.softplus(-noisy) + F.softplus(clean)).mean(dim=1)
