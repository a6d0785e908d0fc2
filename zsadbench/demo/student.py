"""The miniature CLIP under training: what it sees in pictures and windows, where it looks, what it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip import Block, PrunedTokenizer, Text, Vision, find_weights
from ..inputs import OPENAI_MEAN, OPENAI_STD, Backbone

GUIDED = 2
"""Last blocks in which the class token is shown where to look."""


class Student:
    """The miniature CLIP under training: both towers, the tokenizer, the logit scale."""

    def __init__(self, seed: int) -> None:
        import open_clip

        weights = find_weights(Backbone("demo", "random"))
        torch.manual_seed(seed)
        self.model: Any = open_clip.model.CLIP(**weights.architecture())
        self.vision, self.text = Vision(self.model.visual, "bicubic-antialias"), Text(self.model)
        self.tokenizer = PrunedTokenizer(
            open_clip.tokenizer.SimpleTokenizer(context_length=self.text.context),
            weights.config["vocabulary"],
        )

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
        return self.text.encode(tokens[:, : int(tokens.argmax(dim=-1).max()) + 1])


def attend(block: Block, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``block.attend`` does, and the weights (B, heads, T, T).

    Written out, its gradient is twice as fast on a CPU.
    """
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1, dtype=v.dtype)
    return block.attention.out_proj((weights @ v).transpose(1, 2).flatten(2)), weights


def normalised(images: Any) -> Tensor:
    """Return network input (B, 3, S, S) of RGB pictures (B, S, S, 3) uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_MEAN, OPENAI_STD))
    return (pixels - mean) / std
