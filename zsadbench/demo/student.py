"""The miniature CLIP under training: what it sees in pictures and windows, where it looks, what it reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip import Block, Text, Vision, find_weights
from ..inputs import OPENAI_MEAN, OPENAI_STD, Backbone

GUIDED = 2
"""Last blocks in which the class token is shown where to look."""

FELT = 14.0
"""Logit scale of which cosines of the parts that features do not share are worth it at the start."""


class Student:
    """The miniature CLIP under training: both towers, the tokenizer, the logit scale."""

    def __init__(self, seed: int) -> None:
        import open_clip

        weights = find_weights(Backbone("demo", "random"))
        torch.manual_seed(seed)
        self.model: Any = open_clip.model.CLIP(**weights.architecture())
        narrow(self.model)
        self.vision, self.text = Vision(self.model.visual, "bicubic-antialias"), Text(self.model)
        self.tokenizer = weights.tokenizer()

    @property
    def learning(self) -> list[Tensor]:
        """The parameters that are not frozen."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def see(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class features (B, C), value-value patch features (B, N, C) and the class token's gaze.

        Features are un-normalised; the gaze (B, G, N) is its attention to each patch in the last G blocks,
        mean over heads.
        """
        x = local = self.vision.embed(images)
        gaze = []
        for block in self.vision.blocks:
            q, k, v = block.qkv(x)
            local = local + attend(block, v, v, v)[0]
            if block is self.vision.blocks[-1]:
                x, q = x[:, :1], q[:, :, :1]
            mixed, weights = attend(block, q, k, v)
            x = x + mixed
            x = x + block.mlp(x)
            gaze.append(weights[:, :, 0, 1:])
        looks = torch.stack([weights.float().mean(dim=1) for weights in gaze[-GUIDED:]], dim=1)
        return self.vision.project(x[:, 0]), self.vision.project(local[:, 1:]), looks

    def peep(self, images: Tensor, windows: Tensor) -> Tensor:
        """Return class features (B, K, C) of windows, given as the numbers of their patches (B, K, P)."""
        tokens = self.vision.embed(images)
        rows = torch.arange(len(tokens))[:, None, None]
        patches = tokens[rows, windows + 1]
        x = torch.cat([tokens[:, None, :1].expand(-1, patches.shape[1], -1, -1), patches], dim=2).flatten(
            0, 1
        )
        for block in self.vision.blocks:
            x = x + attend(block, *block.qkv(x))[0]
            x = x + block.mlp(x)
        return torch.unflatten(self.vision.project(x[:, 0]), 0, windows.shape[:2])

    def read(self, texts: list[str]) -> Tensor:
        """Return text features (n, C), un-normalised."""
        tokens = self.tokenizer(texts, self.text.context)
        tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        x = self.text.embed(tokens)
        later = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
        for block in self.text.blocks:
            x = x + attend(block, *block.qkv(x), later)[0]
            x = x + block.mlp(x)
        return self.text.pool(x, tokens)


@torch.no_grad()
def narrow(model: Any) -> None:
    """Fix the logit scale at ln 100, and let all features start in the narrow cone where it acts as ``FELT``.

    Features of large CLIPs share a direction, and what tells texts apart is a small part of them; the scale
    of 100 is made for it.  Here both towers start with one projection and one offset, orthogonal to what
    LayerNorm gives, whose square is 1 - FELT / 100 of a feature's.
    """
    model.text_projection.copy_(model.visual.proj)
    for norm in (model.visual.ln_post, model.ln_final):
        norm.bias.fill_(math.sqrt(100 / FELT - 1))
    model.logit_scale.fill_(math.log(100)).requires_grad_(False)


def attend(
    block: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what ``block.attend`` does, and the weights (B, heads, T, T).

    ``mask`` (T, T) is added to what the softmax takes.  Written out, the gradient is twice as fast on a CPU.
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    weights = torch.softmax(logits if mask is None else logits + mask, dim=-1, dtype=v.dtype)
    return block.attention.out_proj((weights @ v).transpose(1, 2).flatten(2)), weights


def normalised(images: Any) -> Tensor:
    """Return network input (B, 3, S, S) of RGB pictures (B, S, S, 3) uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_MEAN, OPENAI_STD))
    return (pixels - mean) / std
