"""How Bayes-PFL (Qu et al., CVPR 2025, arXiv 2503.10080) learns prompts and patches, then the image score."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zsadbench.clip import AuthorTable, Clip, Trace
from zsadbench.inputs import Batch, Count, Positive, Seed, Share, Weight
from zsadbench.maps import render
from zsadbench.training import Augmented, Features, Mosaic, Stage, Truth, leaves, total

from ._bayes_prompts import (
    SIDES,
    Drawn,
    context_bias,
    encode_texts,
    network_shapes,
    state_bias,
    tokens_of,
    word_tokens,
)
from ._shared import as_grid, generator
from .bayes_pfl import BayesPfl, check_fit, checkpoint_shapes, class_logits, differences, patch_tokens
from .clip_ad import inner_layers

IMAGE_SCORE = ("fuse.", "class_mapping.", "image_mapping.")
"""What the second stage learns."""
STAGES: tuple[Literal[1, 2], ...] = (1, 2)
EPSILON, DICE_EPSILON = 1e-8, 1e-5


class Chance(NamedTuple):
    """What is drawn for a step: standard normal ``context`` (B, 1, E), ``state`` (2, 1, E); a ``prompt``."""

    context: Tensor
    state: Tensor
    prompt: int


@dataclass(frozen=True)
class FlowRecipe:
    """Two stages of Adam: every loss without the image score's layers, then cross-entropy for those alone.

    Prompts, temperatures, flows with states, and the rest (``lr``) have learning rates of their own; in the
    first stage all rise over the share ``warmup`` of the steps of both stages, then fall as a cosine.  The
    second stage, of ``class_epochs`` epochs, has the constant ``class_lr``.  ``augment`` varies every image,
    ``mosaic`` is the share that becomes 2 x 2 mosaics of anomalous images first.
    """

    epochs: Count = 20
    class_epochs: Count = 10
    batch_size: Count = 32
    seed: Seed = 333
    prompt_lr: Positive = 1e-3
    temperature_lr: Positive = 1e-2
    flow_lr: Positive = 1e-3
    lr: Positive = 1e-4
    class_lr: Positive = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    warmup: Share = 0.1
    divergence_weight: Weight = 0.01
    mosaic: Share = 0.0
    augment: bool = True

    def stages(self, method: BayesPfl, clip: Clip, wordings: Mapping[str, str]) -> list[Stage]:
        """Return both stages; what the second learns is among what the first holds."""
        check_fit(method, clip)
        learned = leaves(self.start(method, clip), clip.device)
        words = word_tokens(method, clip, wordings)
        before, behind = (dataclasses.replace(method, stage=number) for number in STAGES)

        def every_loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            tokens = tokens_of(truth.categories, words)
            chance = self.chance(before, clip, first.steps, len(tokens))
            return self.losses(before, clip, learned, tokens, inputs, truth, chance)

        def score_loss(inputs: Features, truth: Truth) -> dict[str, Tensor]:
            tokens = tokens_of(truth.categories, words)
            chance = self.chance(behind, clip, second.steps, len(tokens))
            with torch.no_grad():  # texts do not change any more
                texts = drawn_texts(clip, learned, tokens, inputs, chance)[-1][:, :, [chance.prompt]]
            found = class_loss(behind, learned, texts, inputs, truth)
            return {"loss": found, "class": found}

        score = {name: value for name, value in learned.items() if name.startswith(IMAGE_SCORE)}
        adams = (
            torch.optim.Adam(self.groups(learned), betas=self.betas),
            torch.optim.Adam(score.values(), lr=self.class_lr, betas=self.betas),
        )
        seen, size, vary = partial(frozen, method, clip), self.batch_size, self.variation()
        first = Stage("prompts", learned, adams[0], self.epochs, size, seen, every_loss)
        first.rate = lambda steps: self.factor(steps, first.batches)
        second = Stage("image score", score, adams[1], self.class_epochs, size, seen, score_loss)
        for stage in (first, second):
            stage.vary, stage.cached = vary, vary is None
        return [first, second]

    def variation(self) -> Augmented | Mosaic | None:
        """Return what takes the place of an image."""
        mosaic = Mosaic(self.mosaic, "anomalous") if self.mosaic else None
        return Augmented(mosaic) if self.augment else mosaic

    def groups(self, learned: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Return parameters with their learning rates: prompts, temperatures, flows, the rest."""
        rates = {
            "prompt_": self.prompt_lr,
            "temperature_": self.temperature_lr,
            "PFL_": self.flow_lr,
            "": self.lr,
        }
        members: dict[str, list[Tensor]] = {start: [] for start in rates}
        for name, value in learned.items():
            members[next(start for start in rates if name.startswith(start))].append(value)
        return [{"params": members[start], "lr": rate} for start, rate in rates.items()]

    def factor(self, step: int, batches: int) -> float:
        """Return the first stage's schedule after ``step`` steps: it is planned over both stages."""
        planned = batches * (self.epochs + self.class_epochs)
        warm = int(self.warmup * planned)
        if step < warm:
            return step / max(1, warm)
        return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, planned - warm))))

    def chance(self, method: BayesPfl, clip: Clip, step: int, images: int) -> Chance:
        """Return what is drawn for a step of the method's stage, whatever came before it."""
        own, width = generator(self.seed, f"stage {method.stage}", step), clip.text.width
        context, state = (
            torch.from_numpy(own.standard_normal((count, 1, width), dtype=np.float32)).to(clip.device)
            for count in (images, len(SIDES))
        )
        return Chance(context, state, int(own.integers(method.prompts)))

    def losses(
        self,
        method: BayesPfl,
        clip: Clip,
        learned: Mapping[str, Tensor],
        tokens: Tensor,
        inputs: Features,
        truth: Truth,
        chance: Chance,
    ) -> dict[str, Tensor]:
        """Return all losses of a batch and their weighted sum; one prompt's texts meet the images."""
        context, state, texts = drawn_texts(clip, learned, tokens, inputs, chance)
        chosen = texts[:, :, [chance.prompt]]
        found = {
            "class": class_loss(method, learned, chosen, inputs, truth),
            "orthogonal": orthogonality(texts),
        }
        size = (truth.masks.shape[-2], truth.masks.shape[-1])
        logits = differences(method, learned, inputs["patches"].unbind(dim=1), chosen)[:, :, 0]
        for number, layer in enumerate(logits.unbind(dim=1)):
            large = render(as_grid(layer), size, align_corners=True)
            found[f"focal_{number}"] = focal(large, truth.masks)
            found[f"dice_{number}"] = dice(large.sigmoid(), truth.masks)
        normal, abnormal = divergence(state, share=len(tokens))
        quiet = {"kl_context": divergence(context).mean(), "kl_normal": normal, "kl_abnormal": abnormal}
        return {"loss": total(found) + self.divergence_weight * total(quiet), **found, **quiet}

    def start(self, method: BayesPfl, clip: Clip) -> dict[str, Tensor]:
        """Return the parameters at the start, drawn as the authors draw them."""
        own = torch.Generator().manual_seed(self.seed)
        means = {"prompt_state_normal": 0.5, "prompt_state_abnormal": -0.5}
        start = {}
        for name, shape in checkpoint_shapes(method, clip).items():
            if name.startswith("temperature"):
                start[name] = torch.tensor(math.log(1 / 0.07))
            elif name.startswith("RCA.q_proj_pre"):
                bound = clip.text.width**-0.5
                start[name] = torch.empty(shape).uniform_(-bound, bound, generator=own)
            elif name.endswith(".bias"):
                start[name] = torch.zeros(shape)
            else:
                fixed = name.startswith(tuple(f"PFL_{side}" for side in SIDES))
                start[name] = torch.empty(shape).normal_(
                    means.get(name, 0.0), 1.0 if fixed else 0.02, generator=own
                )
        return start

    def author_tables(self, method: BayesPfl, clip: Any) -> list[AuthorTable]:
        """Return what the authors' file holds: 131 entries, of which 54 repeat others and 18 are not used."""
        shapes = checkpoint_shapes(method, clip)
        wide, embed = clip.vision.proj.shape
        idle: dict[str, tuple[int, ...]] = {}
        for name in ("context_decoder", "state_decoder"):
            idle |= network_shapes(f"{name}.weight_mean", embed, wide // 2)
        for name in ("context", *SIDES):
            idle |= {f"PFL_{name}.p_mu.0.weight": (embed, embed), f"PFL_{name}.p_mu.0.bias": (embed,)}
        once = shapes | idle
        repeated = {
            f"PFL_{owner}.{part}{key.removeprefix(f'{kind}_{part}')}": key
            for owner, kind in {"context": "context", **dict.fromkeys(SIDES, "state")}.items()
            for part in ("encoder", "decoder")
            for key in once
            if key.startswith(f"{kind}_{part}.")
        }
        whole = once | {key: once[other] for key, other in repeated.items()}
        own = {name: name for name in shapes}
        return [AuthorTable("MyModel", whole, own, repeated=repeated, named=r"epoch_post_(\d+)_\d$")]


def frozen(method: BayesPfl, clip: Clip, batch: Batch) -> Features:
    """Return what the image tower makes of a batch: ``patches`` (B, blocks, N, W) and ``image`` (B, E)."""
    trace = Trace(clip.vision, batch, {"stream": {*inner_layers(method, clip)}})
    patches = torch.stack(patch_tokens(method, trace), dim=1)
    return {"patches": patches, "image": clip.vision.project(trace.output[:, 0]).float()}


def drawn_texts(
    clip: Clip, learned: Mapping[str, Tensor], tokens: Tensor, inputs: Features, chance: Chance
) -> tuple[Drawn, Drawn, Tensor]:
    """Return the drawn biases of the images and of the states, and the texts (B, 2, P, E) of all prompts."""
    context = context_bias(learned, inputs["image"], chance.context)
    state = state_bias(learned, chance.state)
    return context, state, encode_texts(clip, learned, tokens, context.end, state.end)


def class_loss(
    method: BayesPfl, learned: Mapping[str, Tensor], texts: Tensor, inputs: Features, truth: Truth
) -> Tensor:
    """Return the cross-entropy of the images against ``texts`` (B, 2, 1, E).

    What has a defect is anomalous: a mosaic is, even in a normal image's place.
    """
    logits = class_logits(method, learned, texts, inputs["image"], inputs["patches"].unbind(dim=1))
    return F.cross_entropy(logits[..., 0], torch.maximum(truth.labels, truth.masks.flatten(1).amax(1).long()))


def focal(difference: Tensor, masks: Tensor) -> Tensor:
    """Return the focal loss of logits ``difference`` (B, H, W): the mean over each kind of pixel, summed.

    The means are over the whole batch; a kind that it lacks adds nothing.
    """
    hit = torch.where(masks > 0, difference, -difference).sigmoid()
    loss = -((1 - hit) ** 2) * (hit + EPSILON).log()
    return torch.stack([(loss * kind).sum() / (kind.sum() + EPSILON) for kind in (masks, 1 - masks)]).sum()


def dice(probability: Tensor, masks: Tensor) -> Tensor:
    """Return one minus the soft Dice overlap of ``probability`` (B, H, W), over the whole batch."""
    shared, size = (probability * masks).sum(), probability.sum() + masks.sum()
    return 1 - (2 * shared + DICE_EPSILON) / (size + DICE_EPSILON)


def orthogonality(texts: Tensor) -> Tensor:
    """Return the mean squared cosine of different prompts' ``texts`` (B, 2, P, E), summed over both sides."""
    unit = F.normalize(texts, dim=-1)
    cosines = unit @ unit.mT
    apart = 1 - torch.eye(texts.shape[2], device=texts.device)
    return (cosines * apart).square().mean(dim=(0, 2, 3)).sum()


def divergence(drawn: Drawn, share: int = 1) -> Tensor:
    """Return the divergence (n,) of the flows' draws from a standard normal, from the draws themselves.

    ``share`` divides the log-determinant: the authors divide those of the states by the batch size.
    """
    var, mean = drawn.var[:, None], drawn.mean[:, None]
    before = -0.5 * (var.log() + (drawn.start - mean).square() / var).sum(dim=-1)
    after = -0.5 * drawn.end.square().sum(dim=-1)
    return (before - after - drawn.logdet / share).mean(dim=1)
