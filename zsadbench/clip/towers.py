"""The two CLIP towers as steps a method can walk (Radford et al., 2021).

open_clip builds the modules and this file walks them, so that a method taps, doubles or replaces a
stream in a plain loop, batch first everywhere::

    x = vision.embed(images)                      # (B, 1+N, W) after ln_pre
    for block in vision.blocks:
        q, k, v = block.qkv(x)                    # per head, of ln_1(x)
        local = local + block.attend(v, v, v)     # V-V: the block's own projections, no new weights
        x = x + block.attend(q, k, v)
        x = x + block.mlp(x)                      # of ln_2(x)
    tokens = vision.project(local)                # ln_post, then the projection
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import reduce
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MethodError
from ..files import digest_of
from ..inputs import Backbone, Batch, SecondTower, Steps
from .second import Second, load_second
from .tokens import beginnings
from .weights import Weights, find_weights

PositionRule = Literal["bicubic-antialias", "bicubic", "bilinear"]
Correlation = Literal["qq", "kk", "vv", "qq+kk", "qq+kk+vv", "(q+k+v)^2"]
"""What attends to itself: queries, keys or values, several of them summed, or all three joined."""


class Block:
    """One residual attention block, split in the steps that methods recombine."""

    def __init__(self, module: Any, causal: bool = False) -> None:
        self.module, self.attention, self.causal = module, module.attn, causal
        self.heads: int = module.attn.num_heads

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of ``ln_1(x)``, ``x`` (B, T, W), each (B, heads, T, W / heads)."""
        return self.split(self.packed(x))

    def packed(self, x: Tensor) -> Tensor:
        """Return queries, keys and values of ``ln_1(x)`` beside each other, (..., 3 W)."""
        return F.linear(self.module.ln_1(x), self.attention.in_proj_weight, self.attention.in_proj_bias)

    def split(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is ``packed`` (B, T, 3 W) as queries, keys and values (B, heads, T, W / heads)."""
        q, k, v = torch.unflatten(packed, -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the output-projected attention (B, T, W), without a residual."""
        return self.join(self.gather(q, k, v))

    def gather(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of each head, (B, heads, T, W / heads)."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)

    def correlate(self, q: Tensor, k: Tensor, v: Tensor, kind: str) -> Tensor:
        """Return the values gathered by self-correlation (a `Correlation`), (B, T, W), without a residual.

        Several attentions are summed before the one output projection, so its bias enters once.
        """
        sources = {"qq": q, "kk": k, "vv": v}
        joined = kind == "(q+k+v)^2"
        attending = [torch.cat([q, k, v], dim=-1)] if joined else [sources[name] for name in kind.split("+")]
        return self.join(reduce(torch.add, [F.scaled_dot_product_attention(z, z, v) for z in attending]))

    def join(self, mixed: Tensor) -> Tensor:
        """Return the output projection (B, T, W) of what each head has gathered, (B, heads, T, W / heads)."""
        projected: Tensor = self.module.ls_1(self.attention.out_proj(mixed.transpose(1, 2).flatten(2)))
        return projected

    def mlp(self, x: Tensor) -> Tensor:
        """Return the MLP of ``ln_2(x)``, ``x`` (B, T, W), without a residual."""
        out: Tensor = self.module.ls_2(self.module.mlp(self.module.ln_2(x)))
        return out

    def __call__(self, x: Tensor) -> Tensor:
        """Return the ordinary block's output."""
        x = x + self.attend(*self.qkv(x))
        return x + self.mlp(x)

    def class_only(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the block's output for the first token alone, (B, 1, W): the rest is not computed.

        ``q``, ``k`` and ``v`` are those of ``x`` (B, T, W).
        """
        first = x[:, :1] + self.attend(q[:, :, :1], k, v)
        return first + self.mlp(first)


class Vision:
    """The image tower.  ``proj`` (W, C); ``blocks``; ``ln_post``; taps for the shared ``Trace``."""

    def __init__(self, module: Any, position: PositionRule) -> None:
        self.module, self.position = module, position
        self.blocks = [Block(block) for block in module.transformer.resblocks]
        self.ln_post, self.proj = module.ln_post, module.proj
        self.width: int = module.conv1.out_channels
        self.patch: int = module.conv1.kernel_size[0]
        self.native: tuple[int, int] = module.grid_size
        self._positions: dict[tuple[int, int], Tensor] = {self.native: module.positional_embedding}
        self._taps: dict[str, set[int]] = {"stream": set(), "middle": set(), "values": set()}
        self._trace: Trace | None = None
        self.clock = time.perf_counter  # on a GPU one that waits for it, where shared steps are timed there

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return position embeddings (1 + gh*gw, W) for ``grid``, resized from the native grid."""
        if grid not in self._positions:
            native = self.module.positional_embedding.detach().float()
            image = torch.unflatten(native[1:], 0, self.native).permute(2, 0, 1)[None]
            mode, _, antialias = self.position.partition("-")
            resized = F.interpolate(image, grid, mode=mode, antialias=bool(antialias), align_corners=False)
            self._positions[grid] = torch.cat([native[:1], resized[0].flatten(1).T]).to(self.proj.dtype)
        return self._positions[grid]

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches of ``images`` (..., H, W).

        Raises:
            MethodError: if a side is not a multiple of the patch.
        """
        height, width = images.shape[-2:]
        if height % self.patch or width % self.patch:
            raise MethodError(
                f"an input of {height} x {width} pixels does not divide into patches of {self.patch}; choose "
                f"a multiple of {self.patch} with --set size=..."
            )
        return height // self.patch, width // self.patch

    def embed(self, images: Tensor) -> Tensor:
        """Return tokens (B, 1+N, W) of normalised ``images`` (B, 3, H, W), class token first, after ln_pre.

        Raises:
            MethodError: if a side is not a multiple of the patch.
        """
        grid = self.grid(images)
        with torch.backends.cudnn.flags(allow_tf32=False):  # float32 means float32 here, as in the matmuls
            patches = self.module.conv1(images.to(self.proj.dtype))
        first = self.module.class_embedding.expand(images.shape[0], 1, -1)
        x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        tokens: Tensor = self.module.ln_pre(x + self.positions(grid))
        return tokens

    def project(self, tokens: Tensor) -> Tensor:
        """Return ``ln_post(tokens) @ proj``, un-normalised, (..., C)."""
        projected: Tensor = self.ln_post(tokens) @ self.proj
        return projected

    def encode(self, tokens: Tensor) -> Tensor:
        """Return the image embedding (B, C) of embedded ``tokens`` (B, T, W): class token, projected."""
        *inner, last = self.blocks
        for block in inner:
            tokens = block(tokens)
        return self.project(last.class_only(tokens, *last.qkv(tokens))[:, 0])

    def tap(
        self,
        *,
        stream: Iterable[int] = (),
        middle: Iterable[int] = (),
        values: Iterable[int] = (),
        **correlations: Iterable[int],
    ) -> None:
        """Ask, in ``prepare``, that each ``Trace`` keeps these steps (block numbers from 0).

        ``correlations`` are named as in `Correlation`: ``tap(**{"qq+kk+vv": [5, 6]})``.
        """
        for name, wanted in {"stream": stream, "middle": middle, "values": values, **correlations}.items():
            self._taps.setdefault(name, set()).update(wanted)

    def trace(self, batch: Batch) -> Trace:
        """Return the walk over ``batch``; methods that share this tower and batch share the walk."""
        if self._trace is None or self._trace.batch is not batch:
            start = self.clock()
            self._trace = Trace(self, batch, self._taps)
            self._trace.steps.add("walk", self.clock() - start)
        self._trace.steps.use("walk")
        return self._trace

    def took(self) -> tuple[float, float]:
        """Return what :meth:`Steps.took` says of the last trace."""
        return self._trace.steps.took() if self._trace else (0.0, 0.0)

    def forget(self) -> None:
        """Drop the last trace and free its memory."""
        self._trace = None


class Trace:
    """One walk of the plain image tower over a batch, keeping what methods have asked for.

    All tensors are (B*T, 1+N, W), tiles flattened into the batch.  In the last block the class token goes a
    way of its own, so that it has the same bits whether or not a method reads the patches, which are
    computed when they are asked for.
    """

    def __init__(self, vision: Vision, batch: Batch, taps: Mapping[str, set[int]]) -> None:
        self.batch, self._depth = batch, len(vision.blocks)
        self._kept: dict[tuple[str, int], Tensor] = {}
        self.steps = Steps(vision.clock)
        x = vision.embed(batch.images.flatten(0, 1))
        *inner, last = vision.blocks
        for number, block in enumerate(inner):
            q, k, v = self._tapped(taps, number, block, x)
            x = x + block.attend(q, k, v)
            if number in taps.get("middle", ()):
                self._kept["middle", number] = x
            x = x + block.mlp(x)
        self._last = last, x, *self._tapped(taps, len(inner), last, x)
        self.class_token = last.class_only(*self._last[1:])[:, 0]
        """The class token (B*T, W) that leaves the last block."""

    def _tapped(
        self, taps: Mapping[str, set[int]], number: int, block: Block, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of ``x`` in ``block``, and keep what is asked for of them."""
        q, k, v = block.qkv(x)
        if number in taps.get("stream", ()):
            self._kept["stream", number] = x
        if number in taps.get("values", ()):
            self._kept["values", number] = block.attend(v, v, v)
        for kind in get_args(Correlation):
            if number in taps.get(kind, ()):
                self._kept[kind, number] = block.correlate(q, k, v, kind)
        return q, k, v

    @property
    def output(self) -> Tensor:
        """The residual stream (B*T, 1 + N, W) that leaves the last block."""
        middle = self.middle(self._depth - 1)
        return self.shared("output of the last block", lambda: middle + self._last[0].mlp(middle))

    def stream(self, block: int) -> Tensor:
        """Return the residual stream (B, 1 + N, W) as it enters ``block``."""
        return self._get("stream", block)

    def after(self, layer: int) -> Tensor:
        """Return the residual stream (B, 1 + N, W) that leaves ``layer``, counted from 1."""
        return self.output if layer == self._depth else self.stream(layer)

    def middle(self, block: int) -> Tensor:
        """Return the residual stream (B, 1 + N, W) inside ``block``, after its attention, before its MLP."""
        if block == self._depth - 1:
            last, x, *attended = self._last
            return self.shared("middle of the last block", lambda: x + last.attend(*attended))
        return self._get("middle", block)

    def values(self, block: int) -> Tensor:
        """Return the value-value attention (B, 1 + N, W) of ``block``, output-projected, without residual."""
        return self._get("values", block)

    def correlation(self, block: int, kind: Correlation) -> Tensor:
        """Return the self-correlation (B, 1 + N, W) of ``block``: summed, projected once, no residual."""
        return self._get(kind, block)

    def shared(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return ``compute()`` (any shape), computed once for all methods that share trace and ``name``."""
        return self.steps.take(name, compute)

    def _get(self, name: str, block: int) -> Tensor:
        try:
            return self._kept[name, block]
        except KeyError:
            asked = f"{name}=[{block}]" if name.isidentifier() else f"**{{'{name}': [{block}]}}"
            raise MethodError(
                f"the trace kept no '{name}' of block {block}; ask for it in prepare: "
                f"clip.vision.tap({asked})"
            ) from None


class Text:
    """The text tower, always in float32; steps carry gradients where a method learns prompts."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.blocks = [Block(block, causal=True) for block in module.transformer.resblocks]
        self.proj = module.text_projection
        self.width: int = module.token_embedding.embedding_dim
        self.context: int = module.context_length

    def embed(self, tokens: Tensor) -> Tensor:
        """Return embedded ``tokens`` (n, L) as (n, L, W), positions added."""
        x: Tensor = self.module.token_embedding(tokens)
        positions: Tensor = self.module.positional_embedding
        return x + positions[: tokens.shape[1]]

    def pool(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return text features (n, C): the end-of-text row after ln_final, projected, un-normalised."""
        end = self.module.ln_final(x)[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
        features: Tensor = end @ self.proj if isinstance(self.proj, Tensor) else self.proj(end)
        return features

    def encode(self, tokens: Tensor) -> Tensor:
        """Return text features (n, C) of ``tokens`` (n, L).

        What several texts begin with is computed once: nothing that follows reaches it.
        """
        first, nodes = beginnings(tokens)
        x = self.embed(tokens).flatten(0, 1)[first][None]
        for block in self.blocks:
            q, k, v = block.split(block.packed(x)[0][nodes])
            mixed = block.gather(q, k, v).transpose(1, 2).flatten(0, 1)[first]
            x = x + block.join(mixed.transpose(0, 1)[None])
            x = x + block.mlp(x)
        return self.pool(x[0][nodes], tokens)


class Clip:
    """A loaded CLIP: ``vision``, ``text``, ``logit_scale``, a tokenizer, and what it was loaded from."""

    def __init__(self, model: Any, tokenizer: Any, backbone: Backbone, weights: Weights) -> None:
        self.backbone, self.weights = backbone, weights
        self.vision = Vision(model.visual, backbone.position)
        self.text = Text(model)
        self.logit_scale = float(model.logit_scale.detach().exp())
        self._tokenizer = tokenizer
        self._beside: dict[SecondTower, Second] = {}
        self._heard: list[list[str]] | None = None

    @property
    def digest(self) -> str:
        """Digest of the weights, the architecture and the activation: what features depend on."""
        return digest_of([self.weights.digest, self.weights.config, self.weights.activation])

    @property
    def device(self) -> torch.device:
        """Where both towers live."""
        device: torch.device = self.vision.proj.device
        return device

    def beside(self, tower: SecondTower) -> Second:
        """Return a second frozen tower, on this device and in the image tower's number type; loaded once.

        Raises:
            WeightsError: if its weights cannot be had or do not fit.
        """
        if tower not in self._beside:
            self._beside[tower] = load_second(tower, self.device, self.vision.proj.dtype)
        return self._beside[tower]

    def alone(self, position: PositionRule | None = None) -> Clip:
        """Return this CLIP, its weights shared, with a walk of which nothing was asked, by a rule perhaps."""
        other = copy(self)
        other.backbone = replace(self.backbone, position=position or self.backbone.position)
        other.vision = Vision(self.vision.module, other.backbone.position)
        return other

    def listen(self) -> list[list[str]]:
        """Return a list that receives every set of prompts from now on, as it is encoded or tokenized."""
        self._heard = []
        return self._heard

    def hear(self, prompts: Sequence[str]) -> None:
        """Tell who listens that ``prompts`` are sent to the text tower."""
        if self._heard is not None:
            self._heard.append(list(prompts))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids (n, L) int64, cut to the longest prompt (exact under the causal mask).

        Raises:
            MethodError: if a prompt is longer than the context.
        """
        self.hear(prompts)
        ids: Tensor = self._tokenizer(list(prompts), context_length=self.text.context + 1)
        lengths = ids.argmax(dim=-1) + 1
        if int(lengths.max()) > self.text.context or bool((ids[:, -1] != 0).any()):
            longest = prompts[int(lengths.argmax())]
            raise MethodError(f"a prompt exceeds {self.text.context} tokens: '{longest[:80]}'; shorten it")
        return ids[:, : int(lengths.max())].to(self.device)


@torch.inference_mode(False)  # a caller's inference mode would make the parameters unfit for gradients
def load_clip(
    backbone: Backbone, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Clip:
    """Build the CLIP of ``backbone`` with its weights, image tower in ``dtype``, in evaluation mode.

    Raises:
        WeightsError: if the architecture is not a ViT CLIP, or the weights cannot be had or do not fit.
    """
    weights = find_weights(backbone)
    model = weights.outline()
    weights.load_into(model)
    model.attn_mask = None  # the causal rule is applied by Block; a meta buffer cannot be moved
    backbone = replace(backbone, activation=weights.activation)
    model.requires_grad_(False).eval().to(device)
    model.visual.to(dtype)
    return Clip(model, weights.tokenizer(), backbone, weights)
