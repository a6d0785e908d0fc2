"""How VCP-CLIP (Qu et al., ECCV 2024, arXiv 2407.12276) learns its prompts, layers and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import AuthorTable, Clip, Trace
from zsadbench.inputs import Batch, Count, Positive, Seed, Share
from zsadbench.maps import render
from zsadbench.training import Augmented, Features, Mosaic, Stage, Truth, dice, focal, leaves, two_way

from ._shared import as_grid
from .clip_ad import inner_layers
from .vcp_clip import VcpClip, check_fit, checkpoint_shapes, differences, encode_texts, patch_tokens

TEMPERATURES = ("prompt_temp", "prompt_temp_l1")
LAYERS, CONTEXT = ("fc.",), ("prompt_query", "prompt_linear1", "prompt_temp")
POST = ("q_proj_pre", "k_proj_pre_1", "v_proj_pre_1", "proj_post_t", "prompt_temp_l1")


@dataclass(frozen=True)
class ContextRecipe:
    """Focal plus Dice loss of every layer's map before and after the texts ask the patches.

    The two temperatures learn at ``temperature_lr``.  ``dropout`` drops numbers of the deep vectors, for
    each sentence by itself; ``augment`` varies every image, ``mosaic`` is the share that becomes 2 x 2
    mosaics of anomalous images first.
    """

    epochs: Count = 10
    batch_size: Count = 32
    seed: Seed = 333
    lr: Positive = 4e-5
    temperature_lr: Positive = 0.01
    betas: tuple[float, float] = (0.5, 0.999)
    dropout: Share = 0.1
    mosaic: Share = 0.0
    augment: bool = True

    def stages(self, method: VcpClip, clip: Clip, wordings: Mapping[str, str]) -> list[Stage]:
        """Return the one stage; categories and their words play no part."""
        check_fit(method, clip)
        learned = leaves(self.start(method, clip), clip.device)
        wanted = {"stream": {*inner_layers(method, clip)}}

        def features(batch: Batch) -> Features:
            trace = Trace(clip.vision, batch, wanted)
            patches = torch.stack(patch_tokens(method, clip, trace), dim=1)
            return {"patches": patches, "image": clip.vision.project(trace.output[:, 0]).float()}

        def loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            keep = self.kept(method, clip, len(inputs["image"]), stage.steps)
            return self.losses(method, clip, learned, inputs, truth, keep)

        rest = [value for name, value in learned.items() if name not in TEMPERATURES]
        hot = [learned[name] for name in TEMPERATURES]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": hot, "lr": self.temperature_lr}]
        adam = torch.optim.Adam(groups, lr=self.lr, betas=self.betas)
        mosaic = Mosaic(self.mosaic, "anomalous") if self.mosaic else None
        vary = Augmented(mosaic) if self.augment else mosaic
        stage = Stage("prompts", learned, adam, self.epochs, self.batch_size, features, loss, cached=not vary)
        stage.vary = vary
        return [stage]

    def kept(self, method: VcpClip, clip: Clip, images: int, step: int) -> Tensor | None:
        """Return what dropout leaves of the deep vectors (blocks, images * 2, n, W), for one step."""
        if not (self.dropout and method.deep):
            return None
        generator = torch.Generator().manual_seed(self.seed * 2**32 + step)
        shape = (len(clip.text.blocks), 2 * images, method.deep_length, clip.text.width)
        kept = torch.rand(shape, generator=generator) >= self.dropout
        return kept.to(clip.device, torch.float32) / (1 - self.dropout)

    def losses(
        self,
        method: VcpClip,
        clip: Clip,
        learned: Mapping[str, Tensor],
        inputs: Features,
        truth: Truth,
        keep: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return focal and Dice losses of the maps of every layer in both spaces, and their sums."""
        texts = F.normalize(encode_texts(method, clip, learned, inputs["image"], keep), dim=-1)
        size = (truth.masks.shape[-2], truth.masks.shape[-1])
        found: dict[str, Tensor] = {}
        logits = differences(method, learned, list(inputs["patches"].unbind(dim=1)), texts)
        for kind, own in zip(("pre", "post"), logits, strict=True):
            large = render(as_grid(own).flatten(0, 1), size, align_corners=True)
            for number, layer in enumerate(torch.unflatten(large, 0, own.shape[:2]).unbind(dim=1)):
                p = two_way(layer)
                found[f"{kind}_focal_{number}"] = focal(p, truth.masks)
                found[f"{kind}_dice_{number}"] = dice(p[:, 1], truth.masks)
            found[kind] = torch.stack([found[name] for name in found if name.startswith(f"{kind}_")]).sum()
        return {"loss": found["pre"] + found["post"], **found}

    def start(self, method: VcpClip, clip: Clip) -> dict[str, Tensor]:
        """Return the parameters at the start, drawn as the authors draw them."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes, start = checkpoint_shapes(method, clip), {}
        for name, shape in shapes.items():
            weight = shapes[name.replace(".bias", ".weight")]
            bound = math.prod(weight[1:]) ** -0.5 if len(weight) > 1 else 1.0
            start[name] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        for name in ("prompt_embeddings", "deep_prompt_embeddings"):
            if name in start:
                start[name].uniform_(-1, 1, generator=generator)
        torch.nn.init.trunc_normal_(start["prompt_query"], generator=generator)
        start |= {name: torch.tensor(math.log(1 / 0.07)) for name in TEMPERATURES}
        if method.deep:
            wide = clip.text.width
            start["prompt_proj.weight"].normal_(0, (2 / wide) ** 0.5, generator=generator)
            start |= {"prompt_norm.weight": torch.ones(wide), "prompt_norm.bias": torch.zeros(wide)}
        return start

    def author_tables(self, method: VcpClip, clip: Any) -> list[AuthorTable]:
        """Return what the authors' file holds: three state dicts, and loose tensors at its top."""
        shapes = dict(checkpoint_shapes(method, clip))
        post = {name: shapes.pop(name) for name in [*shapes] if name.startswith(POST)}
        tables = [AuthorTable("Zero_try", post, {name: name for name in post}, surplus=True)]
        for key, starts in (("trainable_linearlayer", LAYERS), ("New_Lan_Embed", CONTEXT)):
            own = {name: shapes.pop(name) for name in [*shapes] if name.startswith(starts)}
            tables.append(AuthorTable(key, own, {name: name for name in own}, surplus=starts == LAYERS))
        width = clip.text.width
        loose = {**shapes, "prompt_text_projection": (width, clip.vision.proj.shape[1])}
        return [*tables, AuthorTable("", loose, {name: name for name in shapes})]
